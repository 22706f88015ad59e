"""Limits of everything that is read from outside, in one place, with their reasons and the way to change them.

A file may claim anything: a minute of sound that unpacks to gigabytes, a network of a billion layers, lists within
lists. Each reader compares such claims with :func:`current` before it allocates. ``HAFM_LIMITS`` changes the defaults::

    HAFM_LIMITS="audio_seconds=28800 layers=1024" python -m hafm_lightning generate ...
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from hafm_lightning.errors import RequestError

__all__ = ["NAMES", "VARIABLE", "Limits", "current", "using"]

VARIABLE = "HAFM_LIMITS"
"""Environment variable with changed limits: ``name=value``, separated by spaces or commas."""


@dataclass(frozen=True)
class Limits:
    """The most (or least) that is read.

    Attributes:
        audio_bytes: Size of a sound file in bytes. An hour of stereo at 96 kHz in 32 bits has 2.8e9.
        audio_seconds: Length of a sound in seconds, after decoding. Four hours: longer than any song or concert.
        audio_channels: Channels of a sound file. 7.1.4 has 12, a recorder's multitrack file up to 32.
        audio_min_rate_hz: Lowest sample rate, in samples a second. Lower rates hold no singing voice.
        audio_max_rate_hz: Highest sample rate, in samples a second. The highest of PCM recorders is 384,000.
        json_bytes: Size of a JSON file in bytes. A manifest takes about 50 bytes for each clip: five million clips.
        json_depth: Lists and objects inside one another. The deepest file of this project has 8.
        json_digits: Characters of one number. The longest that is written, a 64-bit float, has 24.
        json_items: Values in one JSON file. Each takes up to 100 bytes of memory.
        layers: Layers of a network. The paper's have 8 to 16.
        width: Width of a network's layers and the number of its heads. The paper's is 1024.
        parameters: Parameters of a network; each takes 4 bytes. The paper's stages have 0.2e9.
        name_bytes: Bytes of a file name. File systems hold 255.
        threads: CPU threads that a record may ask for.
        app_bytes: Size of an upload to the app in bytes.
        app_seconds: Length of an upload to the app in seconds.
        app_channels: Channels of an upload to the app.
    """

    audio_bytes: int = 4_000_000_000
    audio_seconds: float = 14_400.0
    audio_channels: int = 32
    audio_min_rate_hz: int = 4_000
    audio_max_rate_hz: int = 384_000
    json_bytes: int = 256_000_000
    json_depth: int = 100
    json_digits: int = 100
    json_items: int = 20_000_000
    layers: int = 512
    width: int = 65_536
    parameters: int = 20_000_000_000
    name_bytes: int = 255
    threads: int = 1024
    app_bytes: int = 200_000_000
    app_seconds: float = 1_200.0
    app_channels: int = 8


NAMES = tuple(item.name for item in fields(Limits))
"""Names of all limits."""
_changes: dict[str, float] = {}
"""Changes by :func:`using`, for all threads of the process."""


def current() -> Limits:
    """The limits that hold now: defaults, changed by ``HAFM_LIMITS`` and :func:`using`; RequestError if malformed."""
    changes = _parsed(os.environ.get(VARIABLE, "")) | _changes
    return _changed(changes) if changes else Limits()


@contextmanager
def using(**changes: float) -> Iterator[Limits]:
    """Other limits for the block, in all threads of this process; RequestError for an unknown name."""
    before = dict(_changes)
    _check_names(changes, "limits")
    _changes.update(changes)
    try:
        yield current()
    finally:
        _changes.clear()
        _changes.update(before)


def _parsed(text: str) -> dict[str, float]:
    changes: dict[str, float] = {}
    for part in text.replace(",", " ").split():
        name, _, value = part.partition("=")
        _check_names([name], VARIABLE)
        try:
            changes[name] = float(value)
        except ValueError:
            raise RequestError(f"{VARIABLE}: {name} must be a number, got {value!r:.40}") from None
        if not (math.isfinite(changes[name]) and changes[name] > 0):
            raise RequestError(f"{VARIABLE}: {name} must be positive and finite, got {value!r:.40}")
    return changes


def _check_names(names: Iterable[str], where: str) -> None:
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RequestError(f"{where}: unknown limit {name!r:.40}{hint}\nknown: {', '.join(NAMES)}")


def _changed(changes: dict[str, float]) -> Limits:
    defaults = Limits()
    whole = {item.name for item in fields(Limits) if isinstance(getattr(defaults, item.name), int)}
    values: dict[str, Any] = {name: int(value) if name in whole else value for name, value in changes.items()}
    return replace(defaults, **values)
