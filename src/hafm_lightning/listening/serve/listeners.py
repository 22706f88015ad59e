"""Who takes part: tables beside the votes, in the same database.

Choices:

* A listener has a random id, under which the votes stand, and a secret of 256 bits. Only the hash of the secret is
  stored, so that a copy of the database lets nobody vote. Invitation codes are shorter: their hash is keyed by a secret
  of the study's.
* No address, browser or name is stored.
* Who withdraws stays as an empty row, so that a link or an invitation cannot begin anew unnoticed.
* One connection behind a lock: changes are short and rare.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.votes import WAIT_S

_TABLES = (
    "CREATE TABLE IF NOT EXISTS serve_secret (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), secret BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS listeners (voter TEXT PRIMARY KEY, token_hash BLOB NOT NULL UNIQUE, "
    "invitation_hash BLOB UNIQUE, agreed_at TEXT NOT NULL, consent_sha256 TEXT NOT NULL, "
    "withdrawn INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE IF NOT EXISTS plays (voter TEXT NOT NULL, trial TEXT NOT NULL, sound TEXT NOT NULL, "
    "times INTEGER NOT NULL, PRIMARY KEY (voter, trial, sound))",
)


@dataclass(frozen=True)
class Listener:
    """Somebody who has agreed to take part.

    Attributes:
        voter: Random id of 16 hexadecimal digits.
        agreed_at: UTC, to the minute.
        withdrawn: Whether the votes were deleted on request.
    """

    voter: str
    agreed_at: str
    withdrawn: bool


class Listeners:
    """The listeners of a study.

    Args:
        path: The SQLite file of a :class:`VoteStore`, which has checked it.

    Raises:
        RequestError: The file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._explained():
            self._connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            with self._transaction() as connection:
                for table in _TABLES:
                    connection.execute(table)
                connection.execute("INSERT OR IGNORE INTO serve_secret VALUES (1, ?)", (secrets.token_bytes(32),))
                self.secret: bytes = connection.execute("SELECT secret FROM serve_secret").fetchone()[0]
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def add(self, consent: str, invitation: str | None = None) -> str | None:
        """Store that somebody agreed to ``consent``; returns the listener's secret.

        A code whose listener has not voted opens that listener again, under a new secret: the answer that brought the
        first one may have been lost. Otherwise a code that was used gives None.
        """
        token, voter = secrets.token_urlsafe(32), secrets.token_hex(8)
        hashed = None if invitation is None else self._invitation_hash(invitation)
        agreed_at = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")
        consent_sha256 = hashlib.sha256(consent.encode()).hexdigest()
        with self._transaction() as connection:
            found = connection.execute(
                "SELECT voter, withdrawn FROM listeners WHERE invitation_hash = ?", (hashed,)
            ).fetchone()
            if found is None:
                connection.execute(
                    "INSERT INTO listeners VALUES (?, ?, ?, ?, ?, 0)",
                    (voter, _token_hash(token), hashed, agreed_at, consent_sha256),
                )
                return token
            voted = connection.execute("SELECT 1 FROM votes WHERE voter = ?", (found[0],)).fetchone()
            if voted or found[1]:
                return None
            connection.execute(
                "UPDATE listeners SET token_hash = ?, agreed_at = ?, consent_sha256 = ? WHERE voter = ?",
                (_token_hash(token), agreed_at, consent_sha256, found[0]),
            )
            return token

    def find(self, token: str) -> Listener | None:
        """The listener with this secret; the hash is looked up, so that the time tells nothing of the secret."""
        with self._read() as connection:
            row = connection.execute(
                "SELECT voter, agreed_at, withdrawn FROM listeners WHERE token_hash = ?", (_token_hash(token),)
            ).fetchone()
        return None if row is None else Listener(row[0], row[1], bool(row[2]))

    def all(self) -> list[Listener]:
        """Everybody, also who has withdrawn."""
        with self._read() as connection:
            rows = connection.execute("SELECT voter, agreed_at, withdrawn FROM listeners ORDER BY rowid").fetchall()
        return [Listener(voter, agreed_at, bool(withdrawn)) for voter, agreed_at, withdrawn in rows]

    def count(self) -> int:
        """How many there are."""
        with self._read() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM listeners").fetchone()[0])

    def play(self, voter: str, trial: str, sound: str) -> None:
        """Store that a listener has heard a sound of a trial to its end."""
        with self._transaction("NORMAL") as connection:  # after a power cut the page may ask to hear a sound again
            connection.execute(
                "INSERT INTO plays VALUES (?, ?, ?, 1) "
                "ON CONFLICT (voter, trial, sound) DO UPDATE SET times = times + 1",
                (voter, trial, sound),
            )

    def played(self, voter: str, trial: str) -> set[str]:
        """The sounds of a trial that a listener has heard."""
        with self._read() as connection:
            rows = connection.execute("SELECT sound FROM plays WHERE voter = ? AND trial = ?", (voter, trial))
            return {row[0] for row in rows}

    def withdraw(self, voter: str) -> None:
        """Mark that a listener has withdrawn, and forget what they heard."""
        with self._transaction() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("UPDATE listeners SET withdrawn = 1 WHERE voter = ?", (voter,))
            connection.execute("DELETE FROM plays WHERE voter = ?", (voter,))

    def _invitation_hash(self, code: str) -> bytes:
        return hmac.digest(self.secret, b"invitation\0" + code.encode(), "sha256")

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            yield self._connection

    @contextmanager
    def _transaction(self, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RequestError(
                f"{self.path}: cannot be read or written ({error}); check the disk and the folder's permissions"
            ) from error


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
