"""What whoever runs a study decides, and the limits of every request."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from hafm_lightning.errors import RequestError

CONSENT = """\
You will hear a singing voice, and then the same voice with two accompaniments. You say which one fits the voice better.

Taking part is voluntary. You may stop at any time without a reason and without a disadvantage.

What is kept: your answers, how sure you are, how long each answer took, and when you agreed, under a random number. \
No name, no address of your device, nothing about your browser. One cookie holds the secret with which you continue \
later; it is used for nothing else.

You can withdraw at any time: "Withdraw" at the foot of the page deletes your answers.
"""
"""What listeners agree to, unless a file replaces it."""
LONGEST_CONSENT, LONGEST_LIST_BYTES = 20_000, 4 << 20
SHORTEST_CODE, LONGEST_CODE = 8, 100
"""Characters of an invitation code."""
SHORTEST_TOKEN = 16
"""Characters of an admin token from a file."""


@dataclass(frozen=True)
class Rate:
    """At most ``burst`` at once, and ``per_minute`` over time."""

    burst: int
    per_minute: float


@dataclass(frozen=True)
class Limits:
    """Limits that keep one visitor from disturbing the others.

    Attributes:
        body_bytes: Largest body of a request; a vote has some 300.
        body_wait_s: How long a body may take to arrive.
        connections: Open at once.
        address: Requests from one address. A class behind one router shares it.
        listener: Requests of one listener; a trial takes eight.
        joins: New listeners from one address.
        secrets: Wrong secrets (links, invitations, admin tokens) from one address.
        listeners: Of the whole study.
    """

    body_bytes: int = 16 << 10
    body_wait_s: float = 10.0
    connections: int = 500
    address: Rate = Rate(1000, 3000)
    listener: Rate = Rate(120, 240)
    joins: Rate = Rate(60, 10)
    secrets: Rate = Rate(10, 5)
    listeners: int = 10_000


@dataclass(frozen=True)
class ServeSettings:
    """How a study is served.

    Attributes:
        host: Address to listen on.
        port: Port to listen on.
        public: ``https://name`` under which a proxy on this machine passes requests on; empty without a proxy.
        consent: What listeners agree to; paragraphs are separated by empty lines.
        invitations: Codes, one of which a listener needs; None lets everybody take part.
        admin_token: Opens the counts and votes.
        limits: Of every request.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    public: str = ""
    consent: str = CONSENT
    invitations: frozenset[str] | None = None
    admin_token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise RequestError(f"--port {self.port}: is out of range; choose one from 1 to 65535")
        address = urlsplit(self.public)
        if self.public and (address.scheme not in ("http", "https") or not address.hostname or address.path.strip("/")):
            raise RequestError(f"--public {self.public[:100]}: expected the address of a site, as https://example.org")

    @property
    def is_loopback(self) -> bool:
        """Whether other machines cannot connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_secure(self) -> bool:
        """Whether browsers come over TLS."""
        return urlsplit(self.public).scheme == "https"

    @property
    def address(self) -> str:
        """Where listeners find the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.public.rstrip("/") or f"http://{host}:{self.port}"


def read_consent(path: Path) -> str:
    """The text of a file that replaces :data:`CONSENT`; RequestError if it cannot be read, or is empty or too long."""
    text = _read(path, "--consent").strip()
    if not 0 < len(text) <= LONGEST_CONSENT:
        raise RequestError(f"--consent {path}: has {len(text)} characters, expected 1 to {LONGEST_CONSENT}")
    return text


def read_invitations(path: Path) -> frozenset[str]:
    """The codes of a file, one a line; RequestError if it cannot be read, or a code is too short or stands twice."""
    codes = [line.strip() for line in _read(path, "--invitations").splitlines() if line.strip()]
    for code in codes:
        if not (SHORTEST_CODE <= len(code) <= LONGEST_CODE and code.isprintable()):
            line = codes.index(code) + 1
            raise RequestError(
                f"--invitations {path}: code {line} has not {SHORTEST_CODE} to {LONGEST_CODE} printable characters\n"
                "short codes can be guessed; `openssl rand -hex 8` prints a good one"
            )
    if not codes or len(set(codes)) < len(codes):
        raise RequestError(f"--invitations {path}: expected one code a line, each once")
    return frozenset(codes)


def read_admin_token(path: Path) -> str:
    """The token in a file; RequestError if it cannot be read or is too short."""
    token = _read(path, "--admin-token-file").strip()
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()):
        raise RequestError(
            f"--admin-token-file {path}: expected at least {SHORTEST_TOKEN} ASCII characters in one line\n"
            "`openssl rand -hex 24` prints a good token"
        )
    return token


def _read(path: Path, option: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_LIST_BYTES + 1)
        if len(content) > LONGEST_LIST_BYTES:
            raise RequestError(f"{option} {path}: is larger than {LONGEST_LIST_BYTES >> 20} MiB")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"{option} {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{option} {path}: is not UTF-8 text") from error
