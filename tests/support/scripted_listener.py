"""A listener without ears: does over HTTP what the page does, and remembers what was answered."""

from __future__ import annotations

import json
import random
from typing import Any

HEADERS = {"X-Listening-Study": "1", "Content-Type": "application/json"}
SOUNDS = ("vocal", "first", "second")


class ScriptedListener:
    """One listener.

    Args:
        client: An HTTP client of its own (httpx or Starlette's), which keeps the cookie.
        seed: Of the answers.
    """

    def __init__(self, client: Any, seed: int = 0) -> None:
        self.client, self.secret = client, ""
        self.sent: list[dict[str, Any]] = []
        self._draw = random.Random(seed)

    def post(self, path: str, body: Any) -> Any:
        return self.client.post(path, content=json.dumps(body), headers=HEADERS)

    def join(self, **more: Any) -> Any:
        answer = self.post("/api/join", {"agree": True, **more})
        self.secret = answer.json().get("secret", "")
        return answer

    def state(self) -> Any:
        return self.client.get("/api/state").json()

    def hear(self, state: Any) -> None:
        """Fetch and report the three sounds of the current trial."""
        for sound in SOUNDS:
            answer = self.client.get(f"/sounds/{state['trial']['sounds'][sound]}")
            assert answer.status_code == 200, answer.text
            assert self.post("/api/plays", {"trial": state["trial"]["name"], "sound": sound}).status_code == 200

    def answer_for(self, state: Any) -> dict[str, Any]:
        answers = {name: self._draw.choice(("first", "second", "tie")) for name in ("rhythm", "harmony", "overall")}
        confidence, seconds = self._draw.randint(1, 5), round(self._draw.uniform(3, 30), 2)
        return {"trial": state["trial"]["name"], "answers": answers, "confidence": confidence, "seconds": seconds}

    def vote(self, state: Any | None = None) -> Any:
        """Hear and answer the current trial; the server's answer."""
        state = state or self.state()
        self.hear(state)
        body = self.answer_for(state)
        self.sent.append(body)
        return self.post("/api/votes", body)
