"""Counts and votes for whoever runs the study, behind a token.

The token comes in the header ``Authorization``, never in an address or a cookie. What listeners chose is not shown
while a study runs; failed controls are counted only if the key was given.
"""

from __future__ import annotations

import hashlib
import hmac
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hafm_lightning.listening.serve.guard import too_many
from hafm_lightning.listening.serve.listeners import Listeners
from hafm_lightning.listening.serve.rates import RateLimit, visitor_of
from hafm_lightning.listening.serve.settings import ServeSettings
from hafm_lightning.listening.study import SILENCE, Key, Study
from hafm_lightning.listening.votes import Vote, VoteStore


class Admin:
    """The routes of whoever runs the study.

    Args:
        study: The study.
        store: Its votes.
        listeners: Beside the votes.
        settings: With the token.
        key: Counts failed controls; None does not.
    """

    def __init__(
        self, study: Study, store: VoteStore, listeners: Listeners, settings: ServeSettings, key: Key | None
    ) -> None:
        self._study, self._store, self._listeners, self._key = study, store, listeners, key
        self._token = hashlib.sha256(settings.admin_token.encode()).digest()
        self._wrong = RateLimit(settings.limits.secrets)

    def routes(self) -> list[Route]:
        """Both; the page itself holds nothing private."""
        return [Route("/admin/counts", self._show_counts), Route("/admin/votes.jsonl", self._show_votes)]

    def counts(self) -> dict[str, Any]:
        """Votes by trial and by listener, and failed controls where the key is known."""
        votes = self._store.votes()
        by_trial, by_voter = Counter(vote.trial for vote in votes), Counter(vote.voter for vote in votes)
        orders = Counter((vote.trial, vote.presentation) for vote in votes)
        known = {listener.voter: listener for listener in self._listeners.all()}
        voters = []
        for voter in [*known, *sorted(by_voter.keys() - known.keys())]:
            listener = known.get(voter)
            row: dict[str, Any] = {"voter": voter, "votes": by_voter[voter]}
            row["agreed_at"] = listener.agreed_at if listener else ""
            row["withdrawn"] = listener is not None and listener.withdrawn
            if self._key is not None:
                row |= self._controls(self._key, [vote for vote in votes if vote.voter == voter])
            voters.append(row)
        trials = [
            {
                "trial": trial.id,
                "votes": by_trial[trial.id],
                "AB": orders[trial.id, "AB"],
                "BA": orders[trial.id, "BA"],
            }
            for trial in self._study.trials
        ]
        return {
            "study": self._study.study_id,
            "title": self._study.title,
            "votes": len(votes),
            "controls": self._key is not None,
            "trials": trials,
            "listeners": voters,
        }

    def _controls(self, key: Key, votes: list[Vote]) -> dict[str, int]:
        """Controls failed and answered, as the report counts them: by the overall preference."""
        criterion = "overall" if "overall" in self._study.criteria else self._study.criteria[-1]
        row = {"silence_failed": 0, "silence_trials": 0, "same_tied": 0, "same_trials": 0}
        for vote in votes:
            assignment, choice = key.assignments[vote.trial], vote.choices[criterion]
            if assignment.kind == "silence":
                row["silence_trials"] += 1
                row["silence_failed"] += choice == "tie" or assignment.system(choice) == SILENCE
            elif assignment.kind == "same":
                row["same_trials"] += 1
                row["same_tied"] += choice == "tie"
        return row

    async def _show_counts(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse(await run_in_threadpool(self.counts))

    async def _show_votes(self, request: Request) -> Response:
        refusal = self._refusal(request)
        if refusal:
            return refusal
        headers = {"content-disposition": f'attachment; filename="votes-{self._study.study_id}.jsonl"'}
        return Response(await run_in_threadpool(self._lines), media_type="application/x-ndjson", headers=headers)

    def _lines(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="hafm-votes-") as folder:
            path = Path(folder) / "votes.jsonl"
            self._store.export_lines(path)
            return path.read_bytes()

    def _refusal(self, request: Request) -> Response | None:
        address = visitor_of(request.client.host if request.client else "")
        if wait_s := self._wrong.wait_s(address):
            return too_many(wait_s)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).digest()
        if hmac.compare_digest(given, self._token) and scheme.lower() == "bearer":
            return None
        self._wrong.take(address)
        return JSONResponse({"error": "The admin token is missing or wrong."}, 401, {"www-authenticate": "Bearer"})
