"""One vocal on its way through the windows: refused, cut, joined, and the share of the work that is done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_band import TinyBand, sing

from hafm_lightning import Accompanist
from hafm_lightning.accompanist.song import Song, noise, surroundings
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
    mirrored = np.concatenate([vocal.samples[0], vocal.samples[0, ::-1]])
    every_frame = torch.arange(29 * 3).expand(INSTRUMENTAL_COARSE.codebooks, -1)
    for window in song.windows:
        begin = round(window.start * 0.04 * 24000)
        np.testing.assert_array_equal(song.cut(window, 10, 24000).numpy(), mirrored[begin : begin + 9600])
        clip = every_frame[:, window.start * 3 : (window.start + 10) * 3]
        if window.prefix:
            assert torch.equal(song.prefix(INSTRUMENTAL_COARSE, window), clip[:, : window.prefix * 3])
        song.append(INSTRUMENTAL_COARSE, window, clip)
    assert [window.start for window in song.windows] == [0, 4, 8, 12, 16, 19]
    assert torch.equal(song.written["instrumental_coarse"], every_frame)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 9, 21])
def test_a_sound_goes_on_mirrored_as_often_as_needed(length: int) -> None:
    sound = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    there_and_back = np.concatenate([sound, sound[:, ::-1]] * 4, axis=1)
    np.testing.assert_array_equal(surroundings(sound, length), there_and_back[:, :length])
    np.testing.assert_array_equal(
        surroundings(sound, length, before=True), surroundings(sound[:, ::-1], length)[:, ::-1]
    )
    np.testing.assert_array_equal(surroundings(np.zeros((2, 0), np.float32), length), np.zeros((2, length)))


def test_a_short_vocal_is_not_followed_by_silence() -> None:
    vocal = sing(0.2, 24000)
    song = Song.of(vocal, seed=0, window=10, overlap=4, right_context=2)
    clip = song.cut(song.windows[0], 10, 16000).numpy()
    assert clip.shape == (6400,)
    levels = np.sqrt(np.square(clip.reshape(10, 640)).mean(axis=1))
    assert levels.min() > 0.2 * levels.max()


def test_noise_is_a_function_of_seed_and_place() -> None:
    whole = noise(3, 0, 50, 16000)
    assert whole.shape == (50 * 640,)
    np.testing.assert_array_equal(noise(3, 7, 20, 16000), whole[7 * 640 : 27 * 640])
    np.testing.assert_array_equal(noise(3, -4, 6, 16000)[4 * 640 :], whole[: 2 * 640])  # before a live session began
    assert abs(float(np.corrcoef(noise(4, 0, 50, 16000), whole)[0, 1])) < 0.02
    assert abs(float(np.corrcoef(whole[:-640], whole[640:])[0, 1])) < 0.02
    assert float(whole.std()) == pytest.approx(1, abs=0.02)
    assert float(whole.mean()) == pytest.approx(0, abs=0.02)


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
