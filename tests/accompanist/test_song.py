"""One vocal on its way through the windows: refused, cut, joined, and the share of the work that is done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_band import TinyBand, sing

from hafm_lightning import Accompanist
from hafm_lightning.accompanist.song import Song
from hafm_lightning.audio import Audio
from hafm_lightning.errors import RequestError
from hafm_lightning.tokens import INSTRUMENTAL_COARSE


@pytest.fixture(scope="module")
def band(live_band: TinyBand) -> Accompanist:
    return Accompanist.from_checkpoints(**live_band.files(), device="cpu", precision="fp32")


@pytest.mark.parametrize(
    ("vocal", "message"),
    [
        (Audio(np.zeros((1, 24000), np.float32), 24000), "silent"),
        (Audio(np.full((1, 2400), np.nan, np.float32), 24000), "NaN"),
        (Audio(np.zeros((2, 0), np.float32), 24000), "no audio"),
        ("/nowhere/vocal.wav", "/nowhere/vocal.wav"),
    ],
)
def test_vocals_that_cannot_be_accompanied_are_refused(band: Accompanist, vocal: Audio | str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        band.accompany(vocal)


def test_windows_cut_the_vocal_and_join_their_tokens() -> None:
    vocal = sing(1.13, 24000)  # 29 units of 0.04 s; windows of 10 units begin at 0, 4, 8, 12, 16, 19
    song = Song.of(vocal, seed=0, window=10, overlap=4, right_context=2)
    padded = np.pad(vocal.samples[0], (0, 24000))
    every_frame = torch.arange(29 * 3).expand(INSTRUMENTAL_COARSE.codebooks, -1)
    for window in song.windows:
        begin = round(window.start * 0.04 * 24000)
        np.testing.assert_array_equal(song.cut(window, 10, 24000).numpy(), padded[begin : begin + 9600])
        clip = every_frame[:, window.start * 3 : (window.start + 10) * 3]
        if window.prefix:
            assert torch.equal(song.prefix(INSTRUMENTAL_COARSE, window), clip[:, : window.prefix * 3])
        song.append(INSTRUMENTAL_COARSE, window, clip)
    assert [window.start for window in song.windows] == [0, 4, 8, 12, 16, 19]
    assert torch.equal(song.written["instrumental_coarse"], every_frame)


def test_the_same_sound_has_the_same_digest_and_any_change_another_one() -> None:
    vocal = sing(0.3, 24000, channels=2)
    changed = vocal.samples.copy()
    changed[1, 100] += 1e-4
    sounds = [vocal, Audio(vocal.samples.copy(), 24000), Audio(vocal.samples, 48000), Audio(changed, 24000)]
    digests = [Song.of(sound, 0, 10, 4, 2).source["sha256"] for sound in sounds]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_progress_rises_to_one_and_can_cancel(band: Accompanist) -> None:
    shares: list[float] = []
    band.accompany(sing(1.0, 24000), on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert len(shares) > 50

    class Cancelled(Exception):
        pass

    def cancel(share: float) -> None:
        if share > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        band.accompany(sing(1.0, 24000), on_progress=cancel)
