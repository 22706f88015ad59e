"""Slow connections over real sockets: half a request, an answer that is not read; idle ones stay."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from hafm_lightning.listening.serve.connections import ImpatientProtocol

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
SIZE = 64 << 20
"""More than the buffers of two sockets hold."""


class Hasty(ImpatientProtocol):
    headers_s = answer_s = 1.0


async def app(scope: Any, _receive: Any, send: Any) -> None:
    size = SIZE if scope["path"] == "/large" else 2
    headers = [(b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * size})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    server_socket = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=Hasty, log_level="critical", lifespan="off", timeout_keep_alive=60)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[server_socket])))
    thread.start()
    yield server_socket.getsockname()
    server.should_exit = True
    thread.join(30)


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes."""
    connection.settimeout(30)
    content = b""
    try:
        while part := connection.recv(1 << 20):
            content += part
    except ConnectionResetError:
        pass
    return content


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost: 127"])
def test_a_request_that_does_not_arrive_is_given_up(address: tuple[str, int], start: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(start)
        assert read_all(connection) == b""


def test_a_second_request_has_the_same_limit_but_an_idle_connection_stays(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        for _ in range(2):
            connection.sendall(REQUEST)
            answer = b""
            while not answer.endswith(b"\r\n\r\nxx"):
                answer += connection.recv(1 << 16)
            time.sleep(2 * Hasty.headers_s)
        connection.sendall(REQUEST[:20])
        assert read_all(connection) == b""


def test_an_answer_that_is_not_read_is_given_up(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(REQUEST.replace(b"/ ", b"/large ", 1))
        time.sleep(4 * Hasty.answer_s)
        assert len(read_all(connection)) < SIZE
