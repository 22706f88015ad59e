"""Stages in a live session: they write as far as their conditions allow, in windows that roll."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tiny_band import TinyBand, sing
from torch import Tensor

from hafm_lightning import Accompanist
from hafm_lightning.accompanist import LiveOptions
from hafm_lightning.accompanist.live_tracks import FilledTrack, NewestIds, Track, WrittenTrack
from hafm_lightning.audio import Audio
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.tokens import VOCAL_SEMANTIC

LIVE = LiveOptions(hop_s=0.2, listen_s=0.4, context_s=0.2)
FRAMES = 150  # of the coarse stream: 2 s, five windows
RATES_HZ = {"vocal_semantic": 50, "instrumental_semantic": 50, "instrumental_coarse": 75}


@pytest.fixture(scope="module")
def band(live_band: TinyBand) -> Accompanist:
    return Accompanist.from_checkpoints(**live_band.files(), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def conditions() -> dict[str, Tensor]:
    """Random tokens of 2 s."""
    numbers = torch.Generator().manual_seed(3)
    ids = {
        name: torch.randint(500, (1, 100), generator=numbers) for name in ("vocal_semantic", "instrumental_semantic")
    }
    return ids | {"instrumental_coarse": torch.randint(1024, (4, FRAMES), generator=numbers)}


def track_of(band: Accompanist, number: int) -> Track:
    kind = FilledTrack if number == 2 else WrittenTrack
    return kind(band.networks[number], SamplingOptions(), LIVE, 7, band.window)


def until(conditions: Mapping[str, Tensor], time_s: float) -> dict[str, Tensor]:
    return {name: ids[:, : round(time_s * RATES_HZ[name])] for name, ids in conditions.items()}


@pytest.mark.parametrize("number", [0, 1], ids=["semantic", "coarse"])
def test_tokens_do_not_depend_on_the_pieces_in_which_conditions_come(
    band: Accompanist, conditions: dict[str, Tensor], number: int
) -> None:
    whole, pieces = track_of(band, number), track_of(band, number)
    expected = whole.write(conditions)
    written = [pieces.write(until(conditions, 0.04 * step)) for step in range(1, 51)]
    assert torch.equal(torch.cat(written, dim=1), expected)
    assert torch.equal(pieces.done.kept, expected)
    rate_hz = whole.target.rate_hz
    assert expected.shape[1] == 2 * rate_hz - whole.right_context
    assert len(expected[0, rate_hz:].unique()) > 10  # it goes on after the first window


@pytest.mark.parametrize("number", [0, 1, 2], ids=["semantic", "coarse", "fine"])
def test_tokens_depend_on_no_condition_after_the_look_ahead(
    band: Accompanist, conditions: dict[str, Tensor], number: int
) -> None:
    # 1 s of conditions are equal, then they differ; all is written in steps of 0.2 s
    other = {
        name: torch.cat((ids[:, : RATES_HZ[name]], ids[:, : RATES_HZ[name]]), 1) for name, ids in conditions.items()
    }
    tracks = [track_of(band, number) for _ in range(2)]
    for step in range(1, 11):
        for track, streams in zip(tracks, (conditions, other), strict=True):
            track.write(until(streams, 0.2 * step))
    one, two = (track.done.kept for track in tracks)
    safe = tracks[0].target.rate_hz - tracks[0].right_context
    assert torch.equal(one[:, :safe], two[:, :safe])
    assert not torch.equal(one[:, safe:], two[:, safe:])  # but it follows its conditions


def test_ids_are_numbered_from_the_beginning_and_the_oldest_are_gone() -> None:
    newest, everything = NewestIds(VOCAL_SEMANTIC, window=10), torch.zeros(1, 0, dtype=torch.int64)
    most = 50 * (3 * 10 * 0.04 + 10)
    for step in range(400):
        ids = torch.arange(step * 7, step * 7 + 7)[None]
        begin = max(0, everything.shape[1] - step % 3)  # some are written again
        everything = torch.cat((everything[:, :begin], ids), dim=1)
        newest.write(begin, ids)
        assert newest.shape == everything.shape
        assert torch.equal(newest[:, -300:], everything[:, -300:]) or everything.shape[1] < 300
        assert newest.kept.shape[1] <= 2 * most
    assert torch.equal(newest[:, 2000:2100], everything[:, 2000:2100])
    assert newest[:, 10**6 :].shape == (1, 0)
    with pytest.raises(IndexError, match="frame 3 is gone"):
        newest[:, 3:9]


def test_it_plays_on_through_rolling_windows(band: Accompanist) -> None:
    vocal = sing(2.2, 24000)  # more than five windows of 0.4 s
    pieces = band.stream(
        (Audio(vocal.samples[:, start : start + 2400], 24000) for start in range(0, 52800, 2400)), seed=1, live=LIVE
    )
    sound = np.concatenate([piece.samples[0] for piece in pieces])
    levels = np.sqrt(np.mean(sound[: len(sound) // 2400 * 2400].reshape(-1, 2400) ** 2, axis=1))
    assert levels.min() > 0.05 * levels.max()
    assert np.abs(sound).max() <= 10 ** (-1 / 20) + 1e-6


@pytest.mark.parametrize("name", ["hop_s", "listen_s", "edge_s", "context_s", "sound_context_s"])
def test_sizes_off_the_grid_are_refused_by_name(name: str) -> None:
    with pytest.raises(RequestError, match=rf"{name}.*0\.05"):
        LiveOptions(**{name: 0.05})
