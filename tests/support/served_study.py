"""A tiny study behind the listening application, without a socket."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from scripted_listener import ScriptedListener
from starlette.testclient import TestClient

from hafm_lightning.listening.serve.server import opened
from hafm_lightning.listening.serve.settings import Limits, Rate, ServeSettings
from hafm_lightning.listening.study import Key, Study
from hafm_lightning.listening.votes import VoteStore

TOKEN = "a token of the admin's own"
SETTINGS = ServeSettings(admin_token=TOKEN)
FREE = Limits(address=Rate(10**6, 10**6), listener=Rate(10**6, 10**6), secrets=Rate(10**6, 10**6))


class Served:
    """A study behind the application, without a socket."""

    def __init__(self, study: Study, key: Key, stack: ExitStack) -> None:
        self.study, self.key, self._stack = study, key, stack
        self.votes_file = study.folder / "votes.sqlite"
        self._apps = 0

    def start(self, chosen: ServeSettings = SETTINGS, key: Key | None = None) -> Served:
        self._app = self._stack.enter_context(opened(self.study, self.votes_file, chosen, key))
        return self

    def client(self, address: str = "192.0.2.1", base: str = "http://127.0.0.1:8000") -> TestClient:
        return TestClient(self._app, base_url=base, client=(address, 5000), raise_server_exceptions=False)

    def listener(self, seed: int = 0) -> ScriptedListener:
        listener = ScriptedListener(self.client(), seed)
        assert listener.join().status_code == 201
        return listener

    def votes(self) -> list[Any]:
        with VoteStore.open(self.votes_file, self.study.study_id) as store:
            return store.votes()
