"""The windows of a long vocal: pure arithmetic on a grid of :data:`GRID_S` that every stream shares.

A stage was trained on clips of one length. A longer vocal is covered by overlapping windows of that length: the tokens
already written for the overlap are the prefix of the next window, so that the music continues::

    window 0   |■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■--|
    window 1            |prefix prefix pre ■■■■■■■■■■■■■■■■■■--|
    window 2 (last)                |prefix prefix prefix pre■■■■■■■■■■■■|   ends where the vocal ends
                                                                            (-- right context: written, not kept)

The right context is the sum of the stages' look-aheads: frames so close to a window's end depend on less of the vocal
than in training, so the next window writes them again.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction

from hafm_lightning.errors import RequestError
from hafm_lightning.tokens import FRAME_GRID_S, TokenStream

GRID_S = Fraction(FRAME_GRID_S).limit_denominator(1000)
"""Seconds of one grid unit, the unit of all positions: whole frames of every stream."""


@dataclass(frozen=True)
class Window:
    """One window, in grid units."""

    start: int
    prefix: int  # length of the beginning that the previous window has written
    keep: int  # length of the beginning whose tokens are kept


def grid_units(duration_s: float) -> int:
    """``duration_s`` in grid units; ValueError unless it is a positive whole number of them."""
    exact = Fraction(duration_s).limit_denominator(10**6) / GRID_S
    if exact.denominator != 1 or exact < 1:
        raise ValueError(f"{duration_s} s is not a positive multiple of {float(GRID_S)} s")
    return int(exact)


def covering_units(samples: int, rate_hz: int) -> int:
    """Fewest grid units that cover ``samples`` samples at ``rate_hz``; at least 1."""
    return max(1, math.ceil(Fraction(samples, rate_hz) / GRID_S))


def frames_at(stream: TokenStream, units: int) -> int:
    """Frames of ``stream`` in ``units`` grid units."""
    return int(units * GRID_S * stream.rate_hz)


def window_seed(seed: int, role: str, start: int) -> int:
    """Seed of a stage in the window at grid unit ``start``, so that no two windows draw the same numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{role}/{start}".encode()).digest()[:8], "big") >> 1


def plan_windows(total: int, window: int, overlap: int, right_context: int = 0) -> list[Window]:
    """Cover ``total`` grid units by windows of ``window`` units, of which the last ends at ``total``.

    Args:
        total: Length of the vocal.
        window: Length of each window; a shorter vocal has one window, longer than itself.
        overlap: Least length of the prefix of each window but the first.
        right_context: Length of a window's end that is written but not kept; the last window keeps all.
    """
    if total <= window:
        return [Window(0, 0, window)]
    if overlap + right_context >= window:
        raise ValueError(f"overlap {overlap} and right context {right_context} leave nothing of a window of {window}")
    written = window - right_context
    windows = [Window(0, 0, written)]
    while written < total:
        start = min(written - overlap, total - window)
        keep = window if start + window == total else window - right_context
        windows.append(Window(start, written - start, keep))
        written = start + keep
    return windows


def overlap_units(window: int, right_context: int, overlap_s: float | None, longest: int | None = None) -> int:
    """Overlap of windows in grid units; None gives half of a window without its right context.

    Args:
        window: Length of a window.
        right_context: Length of its end that the next window writes again.
        overlap_s: As the user asks for it.
        longest: Length of the longest vocal: where it fits into one window, nothing overlaps and nothing is refused.

    Raises:
        RequestError: The overlap is not positive, or nothing of a window is left to write.
    """
    free = window - right_context
    if free < 2 and longest is not None and longest <= window:
        return 1
    if free < 2:
        raise RequestError(
            f"the stages look ahead {float(right_context * GRID_S):g} s in all, which leaves nothing of their windows "
            f"of {float(window * GRID_S):g} s; train them on longer clips, or with a smaller look_ahead_s"
        )
    if overlap_s is None:
        return free // 2
    if not 0 < overlap_s < float(free * GRID_S) or covering_units(round(overlap_s * 1000), 1000) >= free:
        raise RequestError(f"overlap_s must be above 0 and below {float(free * GRID_S):g} s, got {overlap_s}")
    return covering_units(round(overlap_s * 1000), 1000)
