"""From a study folder to a running server and back: checks first, then the port, then requests until a signal."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.serve.admin import Admin
from hafm_lightning.listening.serve.connections import ImpatientProtocol
from hafm_lightning.listening.serve.desk import Desk
from hafm_lightning.listening.serve.level import check_sizes
from hafm_lightning.listening.serve.listeners import Listeners
from hafm_lightning.listening.serve.routes import application
from hafm_lightning.listening.serve.settings import ServeSettings
from hafm_lightning.listening.study import Key, Study
from hafm_lightning.listening.votes import VoteStore
from hafm_lightning.processes.locks import held

TERMINATED = 143
"""Exit code after SIGTERM."""
BACKLOG = 512
FINISH_S = 5
"""How long requests under way may take after a signal."""


@contextmanager
def opened(study: Study, votes: Path, settings: ServeSettings, key: Key | None = None) -> Iterator[ASGIApp]:
    """The application of a study, with its files open for the block.

    Args:
        study: The study.
        votes: Its database, which is begun if there is none.
        settings: How it is served.
        key: Counts failed controls for whoever runs the study.

    Raises:
        RequestError: The database is damaged, of another study, or served by another process, or the sounds of the
            study have different sizes.
    """
    check_sizes(study)
    lock = votes.with_name(f"{votes.name}.serve.lock")
    with (
        VoteStore.for_study(votes, study) as store,
        held(lock, f"{votes}", "stop that server first, or name another file with --votes", erase=True),
    ):
        listeners = Listeners(votes)
        try:
            desk, admin = Desk(study, store, listeners, settings), Admin(study, store, listeners, settings, key)
            yield application(desk, admin)
        finally:
            listeners.close()


def bound(settings: ServeSettings) -> socket.socket:
    """A socket on the host and port; RequestError if the port is taken or the host is not this machine's."""
    advice = "choose another one with --port, or stop the program that uses it"
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        # asyncio switches Nagle's delays off only for sockets that name TCP: 40 ms for every answer otherwise
        server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise RequestError(f"--host {settings.host}: is no address ({error.strerror or error})") from error
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a killed server leaves its port half closed
        server.bind((settings.host, settings.port))
        server.listen(BACKLOG)
    except OSError as error:
        server.close()
        raise RequestError(
            f"port {settings.port} on {settings.host} cannot be used ({error.strerror or error})\n{advice}"
        ) from error
    return server


def run(app: ASGIApp, settings: ServeSettings, server_socket: socket.socket) -> None:
    """Answer requests until Ctrl-C (KeyboardInterrupt) or SIGTERM (SystemExit of :data:`TERMINATED`)."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    config = uvicorn.Config(
        app,
        access_log=False,  # addresses of listeners are not kept
        log_level="warning",
        server_header=False,
        date_header=True,
        proxy_headers=bool(settings.public),  # of a proxy on this machine, for the limits of each address
        forwarded_allow_ips="127.0.0.1,::1",
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=FINISH_S,
        lifespan="off",
        http=ImpatientProtocol,
        ws="none",
    )
    before = signal.signal(signal.SIGTERM, terminate)  # uvicorn ends cleanly, then raises the signal again
    try:
        uvicorn.Server(config).run(sockets=[server_socket])
    finally:
        signal.signal(signal.SIGTERM, before)
