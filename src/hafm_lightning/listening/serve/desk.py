"""What a listener may do, without HTTP: join, hear, answer once, come back, withdraw.

Choices:

* A listener meets the trials one after the other, in :meth:`Study.order_for`'s order, as "first" and "second"; votes
  are stored in the study's sides.
* Trials and sounds have names of each listener's own, keyed by a secret: two listeners cannot compare addresses, and a
  name that is not among a listener's own means nothing. No name becomes a path.
* The sounds of the current and of the next trial can be fetched, no others.
* A vote needs reports that all three sounds were heard to their end. The page makes them; the server cannot hear.
"""

from __future__ import annotations

import hmac
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hafm_lightning.listening.serve.listeners import Listener, Listeners
from hafm_lightning.listening.serve.settings import LONGEST_CODE, ServeSettings
from hafm_lightning.listening.study import Presentation, Study, Trial
from hafm_lightning.listening.vote import Choice, Vote
from hafm_lightning.listening.votes import VoteConflict, VoteStore

SOUNDS = ("vocal", "first", "second")
"""In the order in which they are first played."""
ANSWERS = ("first", "second", "tie")
CONFIDENCES = range(1, 6)
LONGEST_ANSWER_S = 7 * 24 * 3600.0
"""A page may stay open over night; more is no measurement."""
PLANS_KEPT = 2000

_TOKEN, _NAME = re.compile(r"[A-Za-z0-9_-]{43}"), re.compile(r"[0-9a-f]{32}")


class Refused(Exception):
    """A request that cannot be granted.

    Args:
        status: HTTP status.
        message: For the listener, without anything about the server.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Place:
    """A trial as one listener meets it.

    Attributes:
        trial: The trial.
        presentation: Which side is "first".
        name: The listener's own name of the trial.
        sounds: Sound -> the listener's own name of it.
    """

    trial: Trial
    presentation: Presentation
    name: str
    sounds: Mapping[str, str]

    def file(self, sound: str) -> str:
        """Relative path of a sound of :data:`SOUNDS`."""
        if sound == "vocal":
            return self.trial.vocal
        return self.trial.a if (sound == "first") == (self.presentation == "AB") else self.trial.b

    def choice(self, answer: str) -> Choice:
        """An answer in the sides of the study."""
        if answer == "tie":
            return "tie"
        return "A" if (answer == "first") == (self.presentation == "AB") else "B"


class Desk:
    """Serves the listeners of one study; safe in threads.

    Args:
        study: The study.
        store: Its votes.
        listeners: Beside the votes.
        settings: How it is served.
    """

    def __init__(self, study: Study, store: VoteStore, listeners: Listeners, settings: ServeSettings) -> None:
        self.study, self.settings = study, settings
        self._store, self._listeners = store, listeners
        self._plan = lru_cache(PLANS_KEPT)(self._planned)
        self._changes = threading.Lock()
        for listener in listeners.all():
            if listener.withdrawn:
                store.remove(listener.voter)  # the server may have been killed between the two steps of a withdrawal

    def about(self) -> dict[str, Any]:
        """What anyone may know before they agree."""
        study = self.study
        return {
            "study": study.study_id,
            "title": study.title,
            "question": study.question,
            "criteria": list(study.criteria),
            "duration_s": study.duration_s,
            "trials": len(study.trials),
            "consent": self.settings.consent,
            "invitation": self.settings.invitations is not None,
        }

    def join(self, body: Any) -> str:
        """A new listener who has agreed; returns the secret."""
        _expect(body, {"agree"}, {"invitation"})
        if body["agree"] is not True:
            raise Refused(400, "Only who agrees can take part.")
        with self._changes:
            if self._listeners.count() >= self.settings.limits.listeners:
                raise Refused(503, "This study has enough listeners. Thank you all the same.")
            token = self._listeners.add(self.settings.consent, self._invitation(body.get("invitation")))
        if token is None:
            raise Refused(403, "This invitation has been used. Continue with the link that you were given then.")
        return token

    def listener(self, token: Any) -> Listener:
        """The listener with this secret; refused if there is none or they have withdrawn."""
        found = None
        if isinstance(token, str) and _TOKEN.fullmatch(token):
            found = self._listeners.find(token)
        if found is None:
            raise Refused(401, "This link or cookie belongs to no listener of this study.")
        if found.withdrawn:
            raise Refused(410, "You have withdrawn from this study; your answers were deleted.")
        return found

    def state(self, listener: Listener) -> dict[str, Any]:
        """Where a listener stands: progress, the current trial, and the sounds of the next one."""
        plan = self._plan(listener.voter)
        waiting = self._waiting(listener)
        state: dict[str, Any] = {"done": len(plan) - len(waiting), "total": len(plan), "trial": None, "next": []}
        if waiting:
            place = waiting[0]
            heard = self._listeners.played(listener.voter, place.trial.id)
            state["trial"] = {
                "name": place.name,
                "sounds": dict(place.sounds),
                "heard": [sound for sound in SOUNDS if sound in heard],
            }
            state["next"] = [name for later in waiting[1:2] for name in later.sounds.values()]
        return state

    def sound(self, listener: Listener, name: str) -> Path:
        """The file behind a listener's own name of a sound."""
        for place in self._waiting(listener)[:2]:
            for sound, own in place.sounds.items():
                if hmac.compare_digest(own.encode(), name.encode("utf-8", "replace")):
                    return self.study.folder / place.file(sound)
        raise Refused(404, "There is no such sound.")

    def heard(self, listener: Listener, body: Any) -> None:
        """Store that a sound was heard to its end; vocal, first and second come in this order."""
        _expect(body, {"trial", "sound"})
        place, sound = self._place(listener, body["trial"]), body["sound"]
        if sound not in SOUNDS:
            raise Refused(400, "There is no such sound.")
        with self._changes:
            if self._current(listener) != place:
                raise Refused(409, "Another trial has its turn.")
            heard = self._listeners.played(listener.voter, place.trial.id)
            if not heard >= set(SOUNDS[: SOUNDS.index(sound)]):
                raise Refused(409, "The sounds are played in their order: vocal, first, second.")
            self._listeners.play(listener.voter, place.trial.id, sound)

    def vote(self, listener: Listener, token: str, body: Any) -> bool:
        """Store an answer, on the disk when this returns; False if the same answer was stored before."""
        _expect(body, {"trial", "answers", "confidence", "seconds"})
        place = self._place(listener, body["trial"])
        vote = self._checked_vote(listener, place, body)
        with self._changes:
            self.listener(token)  # who withdraws in another window must not vote after it
            if place.trial.id not in self._store.trials_of(listener.voter):
                if self._current(listener) != place:
                    raise Refused(409, "Another trial has its turn.")
                if self._listeners.played(listener.voter, place.trial.id) != set(SOUNDS):
                    raise Refused(409, "Please hear all three sounds to their end first.")
            try:
                return self._store.add(vote)
            except VoteConflict as error:
                raise Refused(409, "You have answered this trial before; the first answer counts.") from error

    def withdraw(self, listener: Listener) -> None:
        """Delete a listener's votes; nobody can go on under this secret."""
        with self._changes:
            self._listeners.withdraw(listener.voter)
            self._store.remove(listener.voter)

    def _checked_vote(self, listener: Listener, place: Place, body: Mapping[str, Any]) -> Vote:
        answers, confidence, seconds = body["answers"], body["confidence"], body["seconds"]
        _expect(answers, set(self.study.criteria))
        if not all(isinstance(answer, str) and answer in ANSWERS for answer in answers.values()):
            raise Refused(400, "Every answer is first, second or tie.")
        if type(confidence) is not int or confidence not in CONFIDENCES:
            raise Refused(400, "The confidence is a whole number from 1 to 5.")
        if type(seconds) not in (int, float) or not 0 <= seconds <= LONGEST_ANSWER_S:
            raise Refused(400, "The time is a number of seconds.")
        choices = {criterion: place.choice(answer) for criterion, answer in answers.items()}
        return Vote(listener.voter, place.trial.id, place.presentation, choices, float(confidence), float(seconds))

    def _invitation(self, code: Any) -> str | None:
        codes = self.settings.invitations
        if codes is None:
            return None
        if not isinstance(code, str) or len(code) > LONGEST_CODE or not code.isprintable():
            code = ""
        text = str(code).strip()
        # every code is compared, in constant time each
        if not sum(hmac.compare_digest(text.encode(), known.encode()) for known in codes):
            raise Refused(403, "This invitation is not known. Please check the code.")
        return text

    def _planned(self, voter: str) -> tuple[Place, ...]:
        return tuple(
            Place(
                trial,
                presentation,
                self._own_name(voter, trial.id, "trial"),
                {sound: self._own_name(voter, trial.id, sound) for sound in SOUNDS},
            )
            for trial, presentation in self.study.order_for(voter)
        )

    def _own_name(self, *parts: str) -> str:
        return hmac.digest(self._listeners.secret, "\0".join(parts).encode(), "sha256").hex()[:32]

    def _place(self, listener: Listener, name: Any) -> Place:
        if isinstance(name, str) and _NAME.fullmatch(name):
            for place in self._plan(listener.voter):
                if hmac.compare_digest(place.name, name):
                    return place
        raise Refused(404, "There is no such trial.")

    def _waiting(self, listener: Listener) -> list[Place]:
        done = self._store.trials_of(listener.voter)
        return [place for place in self._plan(listener.voter) if place.trial.id not in done]

    def _current(self, listener: Listener) -> Place | None:
        return next(iter(self._waiting(listener)), None)


def _expect(body: Any, needed: set[str], possible: frozenset[str] | set[str] = frozenset()) -> None:
    if not isinstance(body, dict) or not needed <= body.keys() <= needed | possible:
        raise Refused(400, f"Expected a JSON object with {', '.join(sorted(needed))}.")
