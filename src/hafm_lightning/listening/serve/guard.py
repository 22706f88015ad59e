"""Limits and headers of every request, before any route sees it.

* Hosts: a server for this machine alone answers to its names, one behind a proxy also to the public name. A page
  elsewhere cannot reach it under a name of its own (DNS rebinding).
* Changes come from our own page: a header that other sites cannot send unasked, the right ``Origin``, JSON.
* Bodies are read whole, within a size and a time, before a route runs.
* Requests are counted for each address; an address is kept in memory, never written.
"""

from __future__ import annotations

import asyncio
import math
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hafm_lightning.listening.serve.rates import RateLimit, visitor_of
from hafm_lightning.listening.serve.settings import ServeSettings

OWN_HEADER = "x-listening-study"
"""Sent by our page with every change; another site's page may not send it without being asked."""
SECURITY_HEADERS = {
    # blob: is for sounds that our own script has fetched: they play without a second request
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "x-robots-tag": "noindex, nofollow",
    "cache-control": "private, no-store",
}
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """The outermost layer.

    Args:
        app: What is behind it.
        settings: Limits and names.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        self._addresses = RateLimit(settings.limits.address)
        public = urlsplit(settings.public).hostname
        self._hosts: frozenset[str] | None = None  # any: a machine on a local network has names unknown here
        if public:
            self._hosts = LOOPBACK_NAMES | {public}
        elif settings.is_loopback:
            self._hosts = LOOPBACK_NAMES | {settings.host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    answer[name] = value
                if self._settings.is_secure:
                    answer["strict-transport-security"] = "max-age=31536000"
            await send(message)

        wait_s = self._addresses.take(visitor_of(scope["client"][0] if scope.get("client") else ""))
        if wait_s:
            refusal: JSONResponse | None = too_many(wait_s)
        else:
            refusal = self._refusal(scope["method"], headers)
        body = b""
        if refusal is None:
            try:
                body = await asyncio.wait_for(self._body(headers, receive), self._settings.limits.body_wait_s)
            except _TooLarge:
                refusal = _error(413, "The request is too large.")
            except asyncio.TimeoutError:
                refusal = _error(408, "The request did not arrive in time.")
        if refusal is not None:
            refusal.headers["connection"] = "close"
            await refusal(scope, receive, send_with_headers)
            return
        await self._app(scope, _replayed(body, receive), send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        name = _host_name(host)
        if self._hosts is not None and name not in self._hosts:
            return _error(421, "This server has another name.")
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return _error(405, "This server knows GET and POST.")
        origin = headers.get("origin")
        own = {f"http://{host}", f"https://{host}", self._settings.public.rstrip("/")}
        if headers.get("sec-fetch-site", "same-origin") != "same-origin" or (origin is not None and origin not in own):
            return _error(403, "This request came from another site.")
        if OWN_HEADER not in headers:
            return _error(403, f"The header {OWN_HEADER} is missing.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _error(415, "Expected application/json.")
        return None

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        most = self._settings.limits.body_bytes
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 12 or int(length) > most:
            raise _TooLarge
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":  # the visitor has gone
                return b""
            part: bytes = message.get("body", b"")
            body += part
            if len(body) > most:
                raise _TooLarge
            if not message.get("more_body", False):
                return body


class _TooLarge(Exception):
    pass


def too_many(wait_s: float) -> JSONResponse:
    """The answer to a visitor who has to wait."""
    answer = _error(429, "Too many requests. Please wait a moment.")
    answer.headers["retry-after"] = str(math.ceil(wait_s))
    return answer


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read, for the app to read again."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()  # waits until the visitor goes
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
