"""Votes of listeners and judges in one SQLite file: none is lost, none is counted twice.

Choices:

* WAL mode with ``synchronous=FULL``: an accepted vote survives ``kill -9`` and a power cut.
* One vote for each voter, trial and presentation. The same vote again, as after a lost answer, is accepted as stored
  already; another one is refused, so that nobody can change a vote.
* A file belongs to one study, and is checked whole when it is opened.
* Every thread has a connection of its own; several processes may write at once.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_file
from hafm_lightning.listening.study import Presentation, Study
from hafm_lightning.listening.vote import LONGEST_NOTE
from hafm_lightning.listening.vote import Choice as Choice
from hafm_lightning.listening.vote import Failure as Failure
from hafm_lightning.listening.vote import Vote as Vote
from hafm_lightning.untrusted import parse_json

LINES_FORMAT, LINES_VERSION = "hafm_lightning.votes", 1
APPLICATION_ID, SCHEMA_VERSION = 0x48414C56, 1
"""In the header of the SQLite file: what it is, and which tables it has."""
WAIT_S = 30.0
"""How long a writer waits for another one."""

_TABLES = """
CREATE TABLE study (study_id TEXT NOT NULL);
CREATE TABLE votes (
    number INTEGER PRIMARY KEY, study_id TEXT NOT NULL, voter TEXT NOT NULL, trial TEXT NOT NULL,
    presentation TEXT NOT NULL, choices TEXT NOT NULL, confidence REAL, seconds REAL, note TEXT NOT NULL,
    UNIQUE (study_id, voter, trial, presentation));
CREATE TABLE failures (
    number INTEGER PRIMARY KEY, study_id TEXT NOT NULL, voter TEXT NOT NULL, trial TEXT NOT NULL,
    presentation TEXT NOT NULL, reason TEXT NOT NULL,
    UNIQUE (study_id, voter, trial, presentation));
"""
_PLACE = "study_id = ? AND voter = ? AND trial = ? AND presentation = ?"
T = TypeVar("T")


class VoteConflict(RequestError):
    """A voter has voted otherwise on this trial before; the earlier vote stays."""


@dataclass(frozen=True)
class Counts:
    """What a store holds: votes and failures in all, and votes by voter and by trial."""

    votes: int
    failures: int
    by_voter: Mapping[str, int]
    by_trial: Mapping[str, int]


class VoteStore:
    """Votes on one study; open it with :meth:`open` or :meth:`for_study`.

    Args:
        path: The SQLite file.
        study_id: Of the study.
        trials: Ids that can be voted on; None does not check them.
        criteria: Criteria of the study, each of which a vote must answer; None does not check them.
    """

    def __init__(
        self,
        path: Path,
        study_id: str,
        trials: Collection[str] | None = None,
        criteria: Collection[str] | None = None,
    ) -> None:
        self.path, self.study_id = path, study_id
        self._trials = None if trials is None else frozenset(trials)
        self._criteria = None if criteria is None else frozenset(criteria)
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, study_id: str, *, must_exist: bool = False) -> VoteStore:
        """Open the votes on a study, or begin them.

        Raises:
            RequestError: The file is damaged, holds the votes on another study or something else, or cannot be
                written; with ``must_exist`` also where there is none.
        """
        return cls(Path(path), study_id)._begun(must_exist)

    @classmethod
    def for_study(cls, path: str | Path, study: Study) -> VoteStore:
        """Open as :meth:`open`; votes on trials or criteria that the study does not have are refused."""
        return cls(Path(path), study.study_id, [trial.id for trial in study.trials], study.criteria)._begun(False)

    def __enter__(self) -> VoteStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
            self._local = threading.local()

    def add(self, vote: Vote) -> bool:
        """Store a vote, on the disk when this returns.

        Returns:
            Whether it is new; False if the same vote was stored before.

        Raises:
            VoteConflict: The voter has answered this trial otherwise; the earlier vote stays.
            RequestError: The study has no such trial, a criterion is missing, or the file cannot be written.
        """
        self._check(vote.trial, vote)
        place = (self.study_id, vote.voter, vote.trial, vote.presentation)
        choices = json.dumps(dict(vote.choices), sort_keys=True)
        with self._transaction() as connection:
            row = connection.execute(f"SELECT * FROM votes WHERE {_PLACE}", place).fetchone()
            if row is not None:
                if _vote(row).same_answer(vote):
                    return False
                raise VoteConflict(f"{vote.voter} has voted on trial {vote.trial} before; the first vote counts")
            connection.execute(
                "INSERT INTO votes (study_id, voter, trial, presentation, choices, confidence, seconds, note) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*place, choices, vote.confidence, vote.seconds, vote.note),
            )
            connection.execute(f"DELETE FROM failures WHERE {_PLACE}", place)
        return True

    def add_failure(self, voter: str, trial: str, presentation: Presentation, reason: str) -> None:
        """Store that a judge gave no vote on a trial; a later failure replaces its reason, a later vote the failure.

        Raises:
            RequestError: As :meth:`add`.
        """
        failure = Failure(voter, trial, presentation, reason[:LONGEST_NOTE] or "no reason given")
        self._check(trial)
        with self._transaction() as connection:
            place = (self.study_id, voter, trial, presentation)
            if connection.execute(f"SELECT 1 FROM votes WHERE {_PLACE}", place).fetchone() is None:
                connection.execute(
                    "INSERT OR REPLACE INTO failures (study_id, voter, trial, presentation, reason) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (*place, failure.reason),
                )

    def votes(self) -> list[Vote]:
        """All votes in the order in which they came."""
        return [_vote(row) for row in self._rows("votes")]

    def trials_of(self, voter: str) -> set[str]:
        """Ids of the trials on which ``voter`` has voted."""
        with self._explained("cannot be read"):
            query = "SELECT trial FROM votes WHERE study_id = ? AND voter = ?"
            return {row["trial"] for row in self._connection().execute(query, (self.study_id, voter))}

    def remove(self, voter: str) -> int:
        """Delete all votes and failures of ``voter``, also from the bytes of the file; returns how many votes.

        Raises:
            RequestError: The file cannot be written.
        """
        with self._transaction() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            place = (self.study_id, voter)
            removed = connection.execute("DELETE FROM votes WHERE study_id = ? AND voter = ?", place).rowcount
            connection.execute("DELETE FROM failures WHERE study_id = ? AND voter = ?", place)
        with self._explained("cannot be written"):  # the log of changes still holds the old rows
            self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return removed

    def failures(self) -> list[Failure]:
        """All failures in the order in which they came."""
        names = ("voter", "trial", "presentation", "reason")
        return [Failure(**{name: row[name] for name in names}) for row in self._rows("failures")]

    def counts(self) -> Counts:
        """How many votes and failures there are."""
        places = [(row["voter"], row["trial"]) for row in self._rows("votes")]
        by_voter, by_trial = (Counter(place[index] for place in places) for index in (0, 1))
        return Counts(len(places), len(self._rows("failures")), dict(by_voter), dict(by_trial))

    def export_lines(self, path: str | Path) -> int:
        """Write everything as JSON lines; returns the number of votes and failures.

        Raises:
            RequestError: The file cannot be written.
        """
        header = {"format": LINES_FORMAT, "version": LINES_VERSION, "study_id": self.study_id}
        entries = [{"vote": vote.as_dict()} for vote in self.votes()]
        entries += [{"failure": asdict(failure)} for failure in self.failures()]
        lines = [json.dumps(entry, sort_keys=True, allow_nan=False) for entry in (header, *entries)]
        try:
            with atomic_file(Path(path)) as draft:
                draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise RequestError(f"{path}: cannot be written ({error.strerror}); choose another file") from error
        return len(entries)

    def import_lines(self, path: str | Path) -> int:
        """Add the votes and failures of a file of :meth:`export_lines`; returns how many votes are new.

        All of them or none is stored.

        Raises:
            RequestError: The file cannot be read, is of another study, or a line is wrong or contradicts a stored vote.
        """
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{path}: cannot be read ({error}); name a file that was exported") from error
        header = _line(path, 1, lines[0], lambda content: content)
        if header.get("format") != LINES_FORMAT or header.get("version") != LINES_VERSION:
            raise RequestError(f"{path}: does not hold `format: {LINES_FORMAT}` of version {LINES_VERSION}")
        if header.get("study_id") != self.study_id:
            raise RequestError(f"{path}: holds votes on another study than {self.study_id}")

        def stored(content: dict[str, Any]) -> bool:
            if set(content) == {"vote"}:
                return self.add(Vote.from_dict(content["vote"]))
            failure = Failure.from_dict(content.get("failure"))
            self.add_failure(failure.voter, failure.trial, failure.presentation, failure.reason)
            return False

        with self._transaction():
            return sum(_line(path, number, line, stored) for number, line in enumerate(lines[1:], start=2))

    def _check(self, trial: str, vote: Vote | None = None) -> None:
        if self._trials is not None and trial not in self._trials:
            raise RequestError(f"study {self.study_id} has no trial {trial[:40]!r}; the vote is not stored")
        if vote is not None and self._criteria is not None and set(vote.choices) != self._criteria:
            raise RequestError(f"a vote on this study answers {', '.join(sorted(self._criteria))}, each once")

    def _begun(self, must_exist: bool) -> VoteStore:
        try:
            self._begin(must_exist)
        except BaseException:
            self.close()
            raise
        return self

    def _begin(self, must_exist: bool) -> None:
        if must_exist and not self.path.is_file():
            raise RequestError(f"{self.path}: no such file of votes; `listen serve` and `judge` write one")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"{self.path}: cannot be made ({error.strerror}); choose another place") from error
        with self._explained("cannot be read"):
            connection = self._connection()
            problems = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if problems != "ok":
                raise sqlite3.DatabaseError(problems)
            connection.execute("BEGIN IMMEDIATE")  # two processes may begin the same file
            try:
                self._begin_tables(connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            _use_write_ahead_log(connection)

    def _begin_tables(self, connection: sqlite3.Connection) -> None:
        application, version = (
            connection.execute(f"PRAGMA {n}").fetchone()[0] for n in ("application_id", "user_version")
        )
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
            connection.execute("INSERT INTO study VALUES (?)", (self.study_id,))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            return
        if application != APPLICATION_ID:
            raise RequestError(f"{self.path}: is a database of another program; choose another file for the votes")
        if version != SCHEMA_VERSION:
            raise RequestError(f"{self.path}: has version {version}, this program reads version {SCHEMA_VERSION}")
        owners = [row[0] for row in connection.execute("SELECT study_id FROM study")]
        if owners != [self.study_id]:
            raise RequestError(
                f"{self.path}: holds votes on study {', '.join(map(str, owners))[:80]}, not on {self.study_id}\n"
                "name the file of votes of this study, or a new one"
            )

    def _connection(self) -> sqlite3.Connection:
        """The connection of this thread."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            # used by one thread only; `close` may run in another
            found = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            with self._lock:
                self._connections.append(found)
            found.row_factory = sqlite3.Row
            found.execute("PRAGMA synchronous = FULL")
            self._local.connection = found
        return found

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All changes of the block, or none; inside another transaction a part of it."""
        with self._explained("the vote was not stored"):
            connection = self._connection()
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _rows(self, table: Literal["votes", "failures"]) -> list[sqlite3.Row]:
        with self._explained("cannot be read"):
            query = f"SELECT * FROM {table} WHERE study_id = ? ORDER BY number"
            return self._connection().execute(query, (self.study_id,)).fetchall()

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, full, read-only, no permission
            raise RequestError(f"{self.path}: {what} ({error}); check the disk and the folder's permissions") from error
        except sqlite3.DatabaseError as error:
            raise RequestError(
                f"{self.path}: is damaged or no file of votes ({str(error)[:100]})\n"
                "restore it from a copy, or from exported lines, and keep the damaged file"
            ) from error


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    until = time.monotonic() + WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # SQLite does not wait for a lock here, whatever its time limit is.
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _vote(row: sqlite3.Row) -> Vote:
    try:
        choices = parse_json(row["choices"], "its choices", advice="restore the file")
    except (ValueError, TypeError, AttributeError) as error:  # SQLite holds any type in any column
        raise sqlite3.DatabaseError(f"vote {row['number']}: {error}") from error
    names = ("voter", "trial", "presentation", "confidence", "seconds", "note")
    return Vote(choices=choices, **{name: row[name] for name in names})


def _line(path: Path, number: int, line: str, use: Callable[[dict[str, Any]], T]) -> T:
    """Use one JSON line; errors name the file and the line."""
    try:
        content = parse_json(line, "the line", advice="correct it")
        if not isinstance(content, dict):
            raise RequestError("expected a JSON object")
        return use(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}, line {number}: {str(error)[:300]}") from error
