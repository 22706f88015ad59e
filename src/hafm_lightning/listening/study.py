"""A listening study on disk: what anyone may know, and the key that names the systems.

``study/study.json`` lists the trials and says nothing about systems; ``study/key.json`` holds the mapping and may be
moved away. ``study/trials/<id>/`` holds ``vocal.wav``, ``A.wav`` and ``B.wav``: 16-bit PCM of one rate and length.

Choices:

* Trials are listed by id, and ids are random, so that their order tells nothing.
* Both files are checked field by field when they are read, and every sound against its sha256: a vote is worth nothing
  if nobody knows what was heard.
* File names follow from the ids. Whatever stands in study.json, no path leads out of the folder.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from hafm_lightning.configuration.settings import build
from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of
from hafm_lightning.untrusted import open_file, parse_json

Side = Literal["A", "B"]
Presentation = Literal["AB", "BA"]
"""The order in which the sides of a trial are played."""
Kind = Literal["pair", "same", "silence"]

CRITERIA = ("rhythm", "harmony", "overall")
SILENCE = "silence"
"""Name of the side without accompaniment in trials of the kind ``silence``."""
STUDY_FILE, KEY_FILE, TRIALS_FOLDER = "study.json", "key.json", "trials"
STUDY_FORMAT, KEY_FORMAT = "hafm_lightning.study", "hafm_lightning.study_key"
VERSION = 1
"""Of both files."""
LARGEST_FILE_BYTES = 64 << 20
"""study.json and key.json of 100,000 trials are smaller."""

_TRIAL_ID, _STUDY_ID, _SHA256 = (re.compile(rf"[0-9a-f]{{{digits}}}") for digits in (12, 16, 64))
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """One trial, without the systems.

    Attributes:
        id: 12 random hexadecimal digits.
        vocal_sha256: Of :attr:`vocal`.
        a_sha256: Of :attr:`a`.
        b_sha256: Of :attr:`b`.
    """

    id: str
    vocal_sha256: str
    a_sha256: str
    b_sha256: str

    def __post_init__(self) -> None:
        if not _TRIAL_ID.fullmatch(self.id):
            raise RequestError(f"trial id {self.id[:40]!r}: expected 12 hexadecimal digits")
        if not all(map(_SHA256.fullmatch, (self.vocal_sha256, self.a_sha256, self.b_sha256))):
            raise RequestError(f"trial {self.id}: a sha256 has 64 hexadecimal digits")

    @property
    def vocal(self) -> str:
        """The vocal alone, relative to the study folder."""
        return sound_file(self.id, "vocal")

    @property
    def a(self) -> str:
        """Vocal and accompaniment of side A."""
        return sound_file(self.id, "A")

    @property
    def b(self) -> str:
        """Vocal and accompaniment of side B."""
        return sound_file(self.id, "B")

    @property
    def files(self) -> dict[str, str]:
        """Relative path -> sha256."""
        return {self.vocal: self.vocal_sha256, self.a: self.a_sha256, self.b: self.b_sha256}


def sound_file(trial: str, sound: str) -> str:
    """Relative path of ``vocal``, ``A`` or ``B`` of a trial."""
    return f"{TRIALS_FOLDER}/{trial}/{sound}.wav"


@dataclass(frozen=True)
class Study:
    """A study as listeners may see it.

    Attributes:
        study_id: 16 hexadecimal digits.
        title: Heading of the page.
        question: What listeners are asked.
        criteria: Some of :data:`CRITERIA`.
        duration_s: Length of every sound.
        rate_hz: Sample rate of every sound.
        trials: Sorted by id.
        folder: Where the study lies.
    """

    study_id: str
    title: str
    question: str
    criteria: tuple[str, ...]
    duration_s: float
    rate_hz: int
    trials: tuple[Trial, ...]
    folder: Path

    def __post_init__(self) -> None:
        if not _STUDY_ID.fullmatch(self.study_id):
            raise RequestError(f"study_id {self.study_id[:40]!r}: expected 16 hexadecimal digits")
        check_criteria(self.criteria)
        if not (math.isfinite(self.duration_s) and self.duration_s > 0 and self.rate_hz > 0):
            raise RequestError("duration_s and rate_hz must be above 0")
        ids = [trial.id for trial in self.trials]
        if not ids or ids != sorted(set(ids)):
            raise RequestError("trials must be listed once each, sorted by id, and there must be one")

    @property
    def sha256(self) -> str:
        """Of study.json, which every key repeats."""
        return sha256_of(self.folder / STUDY_FILE)

    def trial(self, trial_id: str) -> Trial:
        """A trial by its id; RequestError if the study has no such trial."""
        for trial in self.trials:
            if trial.id == trial_id:
                return trial
        raise RequestError(f"study {self.study_id} has no trial {trial_id[:40]!r}")

    def order_for(self, voter: str) -> list[tuple[Trial, Presentation]]:
        """The trials in an order of ``voter``'s own, half of them (rounded at random) with A first.

        The same voter always gets the same order, so that a page can be loaded again.
        """
        digest = hashlib.sha256(f"{self.study_id}:{voter}".encode()).digest()
        generator = random.Random(int.from_bytes(digest, "big"))
        trials = generator.sample(self.trials, len(self.trials))
        first, second = generator.sample(("AB", "BA"), 2)
        presentations = [first, second] * (len(trials) // 2 + 1)
        presentations = presentations[: len(trials)]
        generator.shuffle(presentations)
        return [(trial, "AB" if order == "AB" else "BA") for trial, order in zip(trials, presentations, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """Content of study.json."""
        content = {name: value for name, value in asdict(self).items() if name != "folder"}
        return {"format": STUDY_FORMAT, "version": VERSION, **content}

    @classmethod
    def load(cls, folder: str | Path) -> Study:
        """Read a study and check every sound.

        Raises:
            RequestError: It is absent, damaged or of another version, or a sound is missing or was changed.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise RequestError(f"{folder}: no such study folder; `listen build` makes one")
        content = read_object(folder / STUDY_FILE, STUDY_FORMAT, "name the folder that `listen build` wrote")
        facts = _made(_StudyFile, content, folder / STUDY_FILE)

        def make() -> Study:
            trials = tuple(_texts(Trial, entry) for entry in facts.trials)
            return cls(**{**_fields(facts), "trials": trials}, folder=folder)

        study = _checked(make, folder / STUDY_FILE)
        for trial in study.trials:
            for name, sha256 in trial.files.items():
                _check_sound(folder / name, sha256)
        return study


@dataclass(frozen=True)
class _StudyFile:
    """Fields of study.json."""

    study_id: str
    title: str
    question: str
    criteria: tuple[str, ...]
    duration_s: float
    rate_hz: int
    trials: list[Any]


@dataclass(frozen=True)
class Assignment:
    """What a trial compares.

    Attributes:
        clip: ``song@start_s``.
        song: Song of the clip.
        kind: ``pair``: two systems; ``same``: one system on both sides; ``silence``: one side is the vocal alone.
        a: System of side A, or ``silence``.
        b: System of side B, or ``silence``.
    """

    clip: str
    song: str
    kind: Kind
    a: str
    b: str

    def __post_init__(self) -> None:
        if not all((self.clip, self.song, self.a, self.b)):
            raise RequestError("an assignment needs clip, song, a and b")
        if self.kind not in get_args(Kind):
            raise RequestError(f"clip {self.clip}: no such kind of trial as {self.kind}")
        if (self.kind == "same") != (self.a == self.b) or (self.kind == "silence") != (SILENCE in (self.a, self.b)):
            raise RequestError(f"clip {self.clip}: {self.a} and {self.b} are no trial of the kind {self.kind}")

    def system(self, side: Side) -> str:
        """The system of one side."""
        return self.a if side == "A" else self.b


@dataclass(frozen=True)
class Key:
    """The mapping from trials to systems.

    Attributes:
        study_id: Of the study.
        study_sha256: Of its study.json.
        seed: From which order and sides were drawn. Whoever knows it can find the mapping.
        systems: Those that are compared.
        assignments: Trial id -> what it compares.
        sources: Where the sounds come from: models, sampling, protocol, hashes.
    """

    study_id: str
    study_sha256: str
    seed: int
    systems: tuple[str, ...]
    assignments: Mapping[str, Assignment]
    sources: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {*self.systems, SILENCE}
        for trial, assignment in self.assignments.items():
            # a control compares with ground truth, also where that is not one of the compared systems
            if assignment.kind == "pair" and not {assignment.a, assignment.b} <= known:
                raise RequestError(f"trial {trial}: {assignment.a} or {assignment.b} is not one of the systems")

    def as_json(self) -> dict[str, Any]:
        """Content of key.json."""
        return {"format": KEY_FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def load(cls, path: str | Path, study: Study) -> Key:
        """Read the key of ``study``.

        Raises:
            RequestError: It is absent, damaged, of another version or of another study.
        """
        path = Path(path)
        advice = f"name the key.json of study {study.study_id} with --key"
        content = read_object(path, KEY_FORMAT, advice)
        if content.get("study_id") != study.study_id or content.get("study_sha256") != study.sha256:
            raise RequestError(f"{path}: is the key of another study than {study.folder}; {advice}")
        facts = _made(_KeyFile, content, path)
        if facts.assignments.keys() != {trial.id for trial in study.trials}:
            raise RequestError(f"{path}: its trials are not those of {study.folder}; {advice}")

        def make() -> Key:
            assignments = {name: _texts(Assignment, entry) for name, entry in facts.assignments.items()}
            return cls(**{**_fields(facts), "assignments": assignments})

        return _checked(make, path)


@dataclass(frozen=True)
class _KeyFile:
    """Fields of key.json."""

    study_id: str
    study_sha256: str
    seed: int
    systems: tuple[str, ...]
    assignments: dict[str, Any]
    sources: dict[str, Any]


def check_criteria(criteria: tuple[str, ...]) -> None:
    """RequestError unless these are some of :data:`CRITERIA`, once each."""
    if not criteria or len(set(criteria)) < len(criteria) or not set(criteria) <= set(CRITERIA):
        raise RequestError(f"criteria: choose one or more of {', '.join(CRITERIA)}, got {', '.join(criteria)[:200]}")


def read_object(path: Path, file_format: str, advice: str) -> dict[str, Any]:
    """A JSON object of one of our formats, without the entries ``format`` and ``version``.

    Raises:
        RequestError: The file is absent, too large, not JSON, or of another format or version.
    """
    with open_file(path, what="", advice=advice, most_bytes=LARGEST_FILE_BYTES) as file:
        content = parse_json(file.read(), f"{path}:", advice=advice)
    if not isinstance(content, dict) or content.get("format") != file_format:
        raise RequestError(f"{path}: does not hold `format: {file_format}`; {advice}")
    if content.get("version") != VERSION:
        version = str(content.get("version"))[:20]
        raise RequestError(f"{path}: has version {version}, this program reads version {VERSION}; {advice}")
    return {name: value for name, value in content.items() if name not in ("format", "version")}


def _made(kind: type[T], content: Any, path: Path) -> T:
    """``content`` as a dataclass whose every field is checked."""
    return _checked(lambda: build(kind, content), path)


def _checked(make: Callable[[], T], path: Path) -> T:
    try:
        return make()
    except (RequestError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RequestError(f"{path}: is damaged ({reason}); restore or rebuild it") from error


def _texts(kind: Callable[..., T], content: Any) -> T:
    """A dataclass of texts alone; a study has thousands of them."""
    names = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(content, dict) or content.keys() != names:
        raise RequestError(f"expected {', '.join(sorted(names))}, got {str(content)[:100]}")
    wrong = [name for name, value in content.items() if not isinstance(value, str)]
    if wrong:
        raise RequestError(f"{wrong[0]}: expected a text, got {str(content[wrong[0]])[:100]}")
    return kind(**content)


def _fields(facts: Any) -> dict[str, Any]:
    return {entry.name: getattr(facts, entry.name) for entry in fields(facts)}


def _check_sound(path: Path, sha256: str) -> None:
    advice = "restore the study folder, or build it again"
    try:
        actual = sha256_of(path)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    if actual != sha256:
        raise RequestError(f"{path}: was changed since the study was built (its sha256 is another one); {advice}")
