"""Windows of a long vocal: every grid unit is written once, after the prefix that the window before wrote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafm_lightning.accompanist.windows import (
    Window,
    covering_units,
    frames_at,
    grid_units,
    overlap_units,
    plan_windows,
)
from hafm_lightning.errors import RequestError
from hafm_lightning.tokens import INSTRUMENTAL_COARSE, VOCAL_SEMANTIC


@given(
    total=st.integers(1, 2000), window=st.integers(2, 300), share=st.floats(0, 0.99), context_share=st.floats(0, 0.99)
)
def test_windows_cover_the_vocal_once_and_end_with_it(
    total: int, window: int, share: float, context_share: float
) -> None:
    overlap = int(share * (window - 1))
    right_context = int(context_share * (window - 1 - overlap))
    windows = plan_windows(total, window, overlap, right_context)
    written = 0
    for number, here in enumerate(windows):
        assert here.start >= 0
        assert here.start + here.prefix == written  # begins exactly where the one before was kept to
        assert 0 <= here.prefix < here.keep <= window
        assert number == 0 or here.prefix >= overlap
        written = here.start + here.keep
    if total > window:
        assert written == total
        assert windows[-1].keep == window  # the last one keeps everything
        assert all(here.keep == window - right_context for here in windows[:-1])
    else:
        assert windows == [Window(0, 0, window)]


def test_a_minute_by_hand() -> None:
    # 25 s in windows of 10 s (250 units), 4 s overlap, 1 s right_context: kept to 9 s, 14 s, 19 s, 24 s, then the end
    windows = plan_windows(625, 250, 100, 25)
    assert [(w.start, w.prefix, w.keep) for w in windows] == [
        (0, 0, 225),
        (125, 100, 225),
        (250, 100, 225),
        (375, 100, 250),
    ]


@pytest.mark.parametrize(("overlap", "right_context"), [(10, 0), (5, 5), (0, 10)])
def test_nothing_left_of_a_window_is_refused(overlap: int, right_context: int) -> None:
    with pytest.raises(ValueError, match="leave nothing"):
        plan_windows(100, 10, overlap, right_context)


@pytest.mark.parametrize(
    ("samples", "rate_hz", "units"),
    [(1, 44100, 1), (1764, 44100, 1), (1765, 44100, 2), (441000, 44100, 250), (441441, 44100, 251), (960, 24000, 1)],
)
def test_a_unit_begun_counts(samples: int, rate_hz: int, units: int) -> None:
    assert covering_units(samples, rate_hz) == units


def test_units_are_whole_frames_of_both_rates() -> None:
    assert (frames_at(VOCAL_SEMANTIC, 1), frames_at(INSTRUMENTAL_COARSE, 1)) == (2, 3)
    assert (frames_at(VOCAL_SEMANTIC, 250), frames_at(INSTRUMENTAL_COARSE, 250)) == (500, 750)
    assert grid_units(10.0) == 250
    with pytest.raises(ValueError, match="multiple"):
        grid_units(0.05)


def test_stages_that_look_ahead_as_far_as_their_windows_are_refused() -> None:
    with pytest.raises(RequestError, match=r"look ahead 0\.92 s .* windows of 0\.4 s"):
        overlap_units(10, 23, None)
    with pytest.raises(RequestError, match="look ahead"):
        overlap_units(10, 23, None, longest=11)
    assert plan_windows(10, 10, overlap_units(10, 23, None, longest=10), 23) == [Window(0, 0, 10)]  # nothing overlaps
