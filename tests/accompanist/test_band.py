"""The band as a whole, on tiny random stages: lengths, seeds, batches, long form, mixing, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_band import WINDOW_S, TinyBand, sing

from hafm_lightning import Accompanist
from hafm_lightning.accompanist import MixOptions
from hafm_lightning.accompanist.windows import GRID_S, window_seed
from hafm_lightning.audio import Audio, loudness_lufs, read_audio, resample, true_peak_dbtp, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.decoding import generate
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.tokens import STREAMS


@pytest.fixture(scope="module")
def band(live_band: TinyBand) -> Accompanist:
    """Quick: few steps for each window."""
    return Accompanist.from_checkpoints(**live_band.files(), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def paper(paper_band: TinyBand) -> Accompanist:
    return Accompanist.from_checkpoints(**paper_band.files(), device="cpu", precision="fp32")


# --- lengths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duration_s", "rate_hz", "channels"),
    [(0.01, 44100, 1), (0.4, 48000, 2), (0.601, 44100, 1), (0.5, 96000, 2), (0.7, 8000, 1)],
)
def test_accompaniment_and_mix_are_as_long_as_the_vocal_to_the_sample(
    band: Accompanist, duration_s: float, rate_hz: int, channels: int
) -> None:
    vocal = sing(duration_s, rate_hz, channels=channels)
    take = band.accompany(vocal, seed=1)
    assert take.sample_rate_hz == rate_hz
    assert take.instrumental.samples.shape == (1, vocal.samples.shape[1])
    assert take.mix.samples.shape == (channels, vocal.samples.shape[1])


def test_tokens_cover_the_vocal_on_every_stream(band: Accompanist) -> None:
    take = band.accompany(sing(0.53, 44100), seed=1)
    units = -(-530 // 40)
    for name, ids in take.tokens.items():
        stream = STREAMS[name]
        assert ids.shape == (stream.codebooks, units * stream.rate_hz * GRID_S)
        assert ids.min() >= 0
        assert ids.max() < stream.vocabulary
    assert set(take.tokens) == {"vocal_semantic", "instrumental_semantic", "instrumental_coarse", "instrumental_fine"}


def test_the_sound_is_the_decoded_tokens(band: Accompanist) -> None:
    take = band.accompany(sing(0.4, 24000), seed=1)
    codes = np.concatenate([take.tokens["instrumental_coarse"], take.tokens["instrumental_fine"]])
    decoded = band.tokenizers.acoustic.decode(torch.from_numpy(codes)[None])[0].numpy()
    np.testing.assert_array_equal(take.decoded.samples[0], decoded)
    gain = 10 ** (take.record["gains_db"]["band"] / 20)
    assert take.record["gains_db"]["limiter"] == 0  # else the gain would not be the same everywhere
    np.testing.assert_allclose(take.instrumental.samples[0], gain * decoded, atol=1e-4)


# --- seeds and batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["band", "paper"])
def test_a_seed_gives_the_same_take_and_another_one_another(name: str, request: pytest.FixtureRequest) -> None:
    here: Accompanist = request.getfixturevalue(name)
    vocal = sing(0.4, 24000)
    first, again, other = (here.accompany(vocal, seed=seed, top_k=None) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.mix.samples, again.mix.samples)
    assert (first.tokens["instrumental_coarse"] != other.tokens["instrumental_coarse"]).mean() > 0.1


def test_a_take_does_not_depend_on_its_companions(band: Accompanist) -> None:
    vocals = [sing(0.7, 44100, seed=0), sing(0.3, 24000, seed=1), sing(0.5, 48000, seed=2)]
    together = band.accompany_batch(vocals, seeds=[4, 5, 6])
    for vocal, seed, take in zip(vocals, (4, 5, 6), together, strict=True):
        (alone,) = band.accompany_batch([vocal], seeds=[seed])
        for name, ids in take.tokens.items():
            np.testing.assert_array_equal(ids, alone.tokens[name], err_msg=name)
        np.testing.assert_array_equal(take.mix.samples, alone.mix.samples)


def test_stages_and_windows_draw_different_numbers(band: Accompanist) -> None:
    # with guidance 0 nothing is heard; were numbers reused, every window would begin with the same tokens
    take = band.accompany(sing(1.3, 24000), seed=1, guidance=0.0, top_k=None)
    ids = take.tokens["instrumental_coarse"]
    assert len({tuple(ids[:, start : start + 3].ravel()) for start in range(0, ids.shape[1] - 3, 3)}) > 20


def test_greedy_takes_do_not_depend_on_the_seed(band: Accompanist) -> None:
    vocal = sing(0.4, 24000)
    takes = [band.accompany(vocal, seed=seed, temperature=0.0) for seed in (1, 2)]
    one_choice = band.accompany(vocal, seed=3, top_k=1)
    for take in (*takes[1:], one_choice):
        np.testing.assert_array_equal(take.tokens["instrumental_fine"], takes[0].tokens["instrumental_fine"])


# --- long form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["band", "paper"])
def test_a_window_goes_on_from_what_the_one_before_wrote(name: str, request: pytest.FixtureRequest) -> None:
    # the beginning of a long vocal is written as a short one's: later windows never change what is there
    here: Accompanist = request.getfixturevalue(name)
    vocal = sing(0.6, 24000)
    keep_s = float((here.window - here.right_context) * GRID_S)
    first = here.accompany(Audio(vocal.samples[:, : round(WINDOW_S * 24000)], 24000), seed=2)
    longer = here.accompany(vocal, seed=2)
    for stream_name, ids in longer.tokens.items():
        frames = round(keep_s * STREAMS[stream_name].rate_hz)
        np.testing.assert_array_equal(ids[:, :frames], first.tokens[stream_name][:, :frames], err_msg=stream_name)
    tail = longer.tokens["instrumental_coarse"][:, round(keep_s * 75) :]
    assert len(np.unique(tail)) > 3  # and it goes on writing


def test_what_follows_begins_with_what_was_written(paper: Accompanist) -> None:
    # the second window, computed here by hand: its own clip of the vocal, and the first window's tokens as beginning
    vocal = sing(0.6, 16000)
    take = paper.accompany(vocal, seed=2)
    written = torch.from_numpy(take.tokens["instrumental_semantic"])[None]  # 30 frames; windows at 0 and 0.2 s
    clip = torch.from_numpy(vocal.samples[:, 3200:9600])
    stage = paper.networks[0]

    def second_window(beginning: torch.Tensor) -> torch.Tensor:
        return generate(
            stage.model,
            {"vocal_semantic": paper.tokenizers.semantic.encode(clip)},
            SamplingOptions(),
            [window_seed(2, "semantic", 5)],
            prefix=beginning,
        )

    assert torch.equal(second_window(written[:, :, 10:20]), written[:, :, 10:30])
    assert not torch.equal(second_window(written[:, :, :10])[:, :, 10:], written[:, :, 20:])  # the beginning matters


def test_an_overlap_that_leaves_nothing_is_refused(band: Accompanist) -> None:
    for overlap_s in (0.0, -1.0, WINDOW_S, 0.39):
        with pytest.raises(RequestError, match="overlap_s"):
            band.accompany(sing(1.0, 24000), overlap_s=overlap_s)


def test_what_is_written_depends_on_the_vocal_up_to_the_right_context_alone(band: Accompanist) -> None:
    # another end of the vocal: tokens of the first window that are kept may not hear it, at any place of the change
    vocal = sing(1.0, 24000)  # more than two windows
    assert band.tokenizers.semantic.context_s is not None
    whole = band.accompany(vocal, seed=2, top_k=None)
    for cut in range(4, 12):
        changed = vocal.samples.copy()
        changed[:, round(cut * 0.04 * 24000) :] *= -0.1
        takes = [whole, band.accompany(Audio(changed, 24000), seed=2, top_k=None)]
        heard = [take.tokens["vocal_semantic"] for take in takes]
        first = int((heard[0] != heard[1]).any(axis=0).argmax())  # the first semantic frame that differs
        free = first // 2 - band.right_context  # a unit has two semantic frames and three acoustic ones
        # not the fine stage, which fills a window in the order of its confidence, over the whole window
        for name, rate in (("instrumental_semantic", 2), ("instrumental_coarse", 3)):
            same = [take.tokens[name][:, : max(0, free) * rate] for take in takes]
            np.testing.assert_array_equal(*same, err_msg=f"{name}, cut at unit {cut}")


def test_the_frames_that_the_delay_pattern_writes_late_belong_to_the_right_context(band: Accompanist) -> None:
    semantic, coarse, fine = band.networks
    # 0.04 s of look-ahead each: 2 semantic frames, 3 acoustic ones, and K - 1 = 3 more of the delayed stage
    assert [n.right_context for n in (semantic, coarse, fine)] == [2, 6, 3]
    assert [n.right_context_units for n in (semantic, coarse, fine)] == [1, 2, 1]
    assert band.right_context == 4


# --- mixing -----------------------------------------------------------------------------------------------------


def test_mix_and_instrumental_stay_below_the_true_peak(band: Accompanist) -> None:
    loud = sing(0.8, 44100)
    loud = Audio(loud.samples / np.abs(loud.samples).max(), 44100)
    take = band.accompany(loud, seed=1, mix=MixOptions(gain_db=12.0))
    assert true_peak_dbtp(take.mix) <= -1 + 0.01
    assert true_peak_dbtp(take.instrumental) <= -1 + 0.01


def test_rate_channels_and_gain_are_as_asked(band: Accompanist) -> None:
    vocal = sing(0.8, 44100, channels=2)
    voice = resample(vocal.mono().samples, 44100, 48000)
    levels = []
    for gain_db in (0.0, -6.0):
        take = band.accompany(vocal, seed=1, mix=MixOptions(rate_hz=48000, channels=1, gain_db=gain_db, peak_dbtp=0.0))
        assert take.sample_rate_hz == 48000
        assert take.mix.samples.shape == (1, 38400)
        levels.append(loudness_lufs(Audio(take.mix.samples - voice, 48000)))
    assert levels[0] - levels[1] == pytest.approx(6.0, abs=0.1)
    assert levels[0] == pytest.approx(loudness_lufs(Audio(voice, 48000)), abs=0.2)  # matched to the vocal's


@pytest.mark.parametrize(
    "options",
    [
        {"peak_dbtp": 1.0},
        {"peak_dbtp": float("nan")},
        {"peak_dbtp": -1e308},
        {"rate_hz": 100},
        {"rate_hz": 10**30},
        {"channels": 3},
        {"gain_db": float("nan")},
        {"gain_db": 1e6},
        {"gain_db": -1e6},
    ],
)
def test_mixing_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(options))):
        MixOptions(**options)


# --- saving -----------------------------------------------------------------------------------------------------


def test_saved_files_hold_the_take(band: Accompanist, tmp_path: Path) -> None:
    path = tmp_path / "vocal.wav"
    write_audio(path, sing(0.5, 44100))
    take = band.accompany(path, seed=3, guidance=2.0)
    folder = take.save(tmp_path / "out" / "deeper")
    assert sorted(file.name for file in folder.iterdir()) == ["instrumental.wav", "mix.wav", "take.json"]
    for name, audio in (("instrumental.wav", take.instrumental), ("mix.wav", take.mix)):
        np.testing.assert_allclose(read_audio(folder / name).samples, audio.samples, atol=1 / 32768)
    record = json.loads((folder / "take.json").read_text())
    assert (record["seed"], record["settings"]["guidance"], record["settings"]["stages"]) == (3, 2.0, 3)
    assert record["vocal"]["path"] == str(path)
    assert set(record["model"]["stages"]) == {"semantic", "coarse", "fine"}
    assert len(record["outputs"]["mix.wav"]["sha256"]) == 64


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"guidance": -1.0}, {"top_k": 0}, {"temperature": -0.1}, {"top_p": 0.0}, {"style": "rock"}]
)
def test_options_out_of_range_are_refused_by_name(band: Accompanist, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(options))):
        band.accompany(sing(0.3, 24000), **options)
