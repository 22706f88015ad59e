"""The routes of listeners, and the whole application. Files that are served are named here or by :class:`Desk`."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.serve.admin import Admin
from hafm_lightning.listening.serve.desk import Desk, Refused
from hafm_lightning.listening.serve.guard import Guard, too_many
from hafm_lightning.listening.serve.level import level_check
from hafm_lightning.listening.serve.listeners import Listener
from hafm_lightning.listening.serve.rates import RateLimit, visitor_of
from hafm_lightning.untrusted import parse_json

STATIC = {
    "page.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "player.js": "text/javascript; charset=utf-8",
    "requests.js": "text/javascript; charset=utf-8",
    "admin.html": "text/html; charset=utf-8",
    "admin.js": "text/javascript; charset=utf-8",
}
"""Our own files -> media type."""
COOKIE_S = 365 * 24 * 3600
T = TypeVar("T")


class Pages:
    """The routes of listeners.

    Args:
        desk: Decides.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._level: bytes | None = None
        self._level_lock = threading.Lock()
        limits = desk.settings.limits
        self._listeners, self._joins, self._secrets = map(RateLimit, (limits.listener, limits.joins, limits.secrets))
        folder = files("hafm_lightning.listening.serve") / "static"
        self._static = {name: (folder / name).read_bytes() for name in STATIC}
        prefix = "__Host-" if desk.settings.is_secure else ""
        # browsers send a cookie to every port of a host: the study is a part of the name
        self._cookie = f"{prefix}listener-{desk.study.study_id}"

    def routes(self) -> list[Route]:
        """All of them."""
        static = [Route(f"/static/{name}", partial(self._file, name)) for name in STATIC if not name.endswith("html")]
        return [
            Route("/", partial(self._file, "page.html")),
            Route("/admin", partial(self._file, "admin.html")),
            *static,
            Route("/favicon.ico", _nothing),
            Route("/robots.txt", _nothing),
            Route("/sounds/level.wav", self._level_check),
            Route("/sounds/{name}", self._sound),
            Route("/api/study", self._about),
            Route("/api/state", self._state),
            Route("/api/link", self._link),
            Route("/api/join", self._join, methods=["POST"]),
            Route("/api/resume", self._resume, methods=["POST"]),
            Route("/api/plays", self._heard, methods=["POST"]),
            Route("/api/votes", self._vote, methods=["POST"]),
            Route("/api/withdraw", self._withdraw, methods=["POST"]),
        ]

    async def _file(self, name: str, _request: Request) -> Response:
        return Response(self._static[name], media_type=STATIC[name])

    async def _level_check(self, _request: Request) -> Response:
        def content() -> bytes:
            with self._level_lock:  # made when first asked for: measuring loudness imports for seconds
                self._level = self._level or level_check(self._desk.study)
                return self._level

        return Response(await run_in_threadpool(content), media_type="audio/wav")

    async def _about(self, _request: Request) -> Response:
        return JSONResponse(self._desk.about())

    async def _join(self, request: Request) -> Response:
        body, address = _json(await request.body()), _address(request)
        if token := request.cookies.get(self._cookie):
            try:
                await run_in_threadpool(self._desk.listener, token)
            except Refused:
                pass
            else:  # a second click, or a second tab
                return JSONResponse({"secret": token})
        if wait_s := self._secrets.wait_s(address) or self._joins.take(address):
            return too_many(wait_s)
        token = await self._counting_secrets(address, 403, partial(self._desk.join, body))
        return self._with_cookie(JSONResponse({"secret": token}, 201), token)

    async def _resume(self, request: Request) -> Response:
        body, address = _json(await request.body()), _address(request)
        if wait_s := self._secrets.wait_s(address):
            return too_many(wait_s)
        token = body.get("secret") if isinstance(body, dict) else None
        listener = await self._counting_secrets(address, 401, partial(self._desk.listener, token))
        assert isinstance(token, str), "the desk knows no other secrets"
        return self._with_cookie(JSONResponse(await run_in_threadpool(self._desk.state, listener)), token)

    async def _state(self, request: Request) -> Response:
        listener, _ = await self._listener(request)
        return JSONResponse(await run_in_threadpool(self._desk.state, listener))

    async def _link(self, request: Request) -> Response:
        _, token = await self._listener(request)
        return JSONResponse({"secret": token})

    async def _sound(self, request: Request) -> Response:
        listener, _ = await self._listener(request)

        def content() -> bytes:
            return self._desk.sound(listener, request.path_params["name"]).read_bytes()

        # no date and no tag of the file: they could tell the sides apart
        return Response(await run_in_threadpool(content), media_type="audio/wav")

    async def _heard(self, request: Request) -> Response:
        listener, _ = await self._listener(request)
        await run_in_threadpool(self._desk.heard, listener, _json(await request.body()))
        return JSONResponse({"stored": True})

    async def _vote(self, request: Request) -> Response:
        listener, token = await self._listener(request)
        new = await run_in_threadpool(self._desk.vote, listener, token, _json(await request.body()))
        state = await run_in_threadpool(self._desk.state, listener)
        return JSONResponse({"new": new, "state": state}, 201 if new else 200)

    async def _withdraw(self, request: Request) -> Response:
        listener, _ = await self._listener(request)
        body = _json(await request.body())
        if not isinstance(body, dict) or body.keys() != {"withdraw"} or body["withdraw"] is not True:
            raise Refused(400, "Expected a JSON object that says withdraw.")
        await run_in_threadpool(self._desk.withdraw, listener)
        answer = JSONResponse({"withdrawn": True})
        answer.delete_cookie(self._cookie, secure=self._desk.settings.is_secure, httponly=True, samesite="strict")
        return answer

    async def _listener(self, request: Request) -> tuple[Listener, str]:
        """The listener whose cookie this is."""
        token = request.cookies.get(self._cookie)
        if token is None:
            raise Refused(401, "You have not agreed to take part yet.")
        # A cookie of 256 bits cannot be guessed: others at an address go on while somebody tries.
        try:
            listener = await run_in_threadpool(self._desk.listener, token)
        except Refused as refused:
            if refused.status == 401 and (wait_s := self._secrets.take(_address(request))):
                raise Waiting(wait_s) from refused
            raise
        if wait_s := self._listeners.take(listener.voter):
            raise Waiting(wait_s)
        return listener, token

    async def _counting_secrets(self, address: str, status: int, check: Callable[[], T]) -> T:
        """Check a secret; wrong ones count against the address."""
        try:
            return await run_in_threadpool(check)
        except Refused as refused:
            if refused.status == status:
                self._secrets.take(address)
            raise

    def _with_cookie(self, answer: Response, token: str) -> Response:
        secure = self._desk.settings.is_secure
        answer.set_cookie(self._cookie, token, max_age=COOKIE_S, httponly=True, samesite="strict", secure=secure)
        return answer


class Waiting(Exception):
    """A visitor has to wait.

    Args:
        wait_s: For so long.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s


def application(desk: Desk, admin: Admin) -> ASGIApp:
    """The whole application: pages of listeners and of whoever runs the study, behind the guard."""
    handlers: Mapping[Any, Callable[[Request, Any], Any]] = {
        Refused: _refused,
        Waiting: _waiting,
        HTTPException: _http_error,
        RequestError: _not_stored,
        Exception: _failed,
    }
    routes = [*Pages(desk).routes(), *admin.routes()]
    # around the whole: Starlette answers unexpected errors outside of its middleware
    return Guard(Starlette(routes=routes, exception_handlers=handlers), desk.settings)


def _json(body: bytes) -> Any:
    try:
        return parse_json(body, "the request", advice="send it again")
    except RequestError as error:
        raise Refused(400, "The request is not JSON.") from error


def _address(request: Request) -> str:
    return visitor_of(request.client.host if request.client else "")


async def _nothing(_request: Request) -> Response:
    return Response(status_code=204)


async def _refused(_request: Request, error: Refused) -> Response:
    return JSONResponse({"error": error.message}, error.status)


async def _waiting(_request: Request, error: Waiting) -> Response:
    return too_many(error.wait_s)


async def _http_error(_request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": "There is no such page."}, error.status_code)


async def _not_stored(_request: Request, error: RequestError) -> Response:
    # the disk is full, or the database locked: whoever runs the study has to see it, listeners only have to wait
    print(f"error: {error}", file=sys.stderr, flush=True)
    return JSONResponse({"error": "The server cannot store or read anything now. Please wait."}, 503)


async def _failed(_request: Request, error: Exception) -> Response:
    traceback.print_exception(error)
    return JSONResponse({"error": "The server made a mistake. Please wait."}, 500)
