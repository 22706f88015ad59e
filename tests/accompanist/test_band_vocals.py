"""What the band takes for a vocal: files, arrays, channels, the noise of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_band import TinyBand, make_band, sing

from hafm_lightning import Accompanist
from hafm_lightning.audio import Audio, SoundWarning
from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers import Tokenizers


@pytest.fixture(scope="module")
def band(live_band: TinyBand) -> Accompanist:
    """Quick: few steps for each window."""
    return Accompanist.from_checkpoints(**live_band.files(), device="cpu", precision="fp32")


def as_array(kind: str, vocal: Audio) -> Any:
    samples = vocal.samples
    return {
        "numpy": samples,
        "mono": samples[0],
        "float64": samples.astype(np.float64),
        "torch": torch.from_numpy(samples),
        "bfloat16 with gradients": torch.from_numpy(samples).bfloat16().requires_grad_(),
        "int16": np.rint(samples * 32768).astype(np.int16),
        "int32": torch.from_numpy(np.rint(samples.astype(np.float64) * 2**31).astype(np.int32)),
        "not contiguous": np.asfortranarray(np.repeat(samples, 2, axis=1))[:, ::2],
    }[kind]


@pytest.mark.parametrize("kind", ["numpy", "mono", "float64", "torch", "bfloat16 with gradients", "int16", "int32"])
def test_arrays_are_vocals(band: Accompanist, kind: str) -> None:
    vocal = sing(0.2, 44100)
    expected = band.accompany(vocal, seed=1)
    take = band.accompany(as_array(kind, vocal), rate_hz=44100, seed=1)
    tolerance = {"int16": 1e-4, "int32": 1e-7, "bfloat16 with gradients": 2e-3}.get(kind, 0)
    assert take.sample_rate_hz == 44100
    assert take.mix.samples.shape == expected.mix.samples.shape
    if not tolerance:
        np.testing.assert_array_equal(take.mix.samples, expected.mix.samples)


@pytest.mark.parametrize(
    ("vocal", "rate_hz", "message"),
    [
        (np.zeros(100, np.float32), None, "rate_hz=44100"),
        (torch.zeros(100), None, "rate_hz=44100"),
        (np.ones((44100, 2), np.float32), 44100, "samples.T"),
        (np.ones((1, 2, 3), np.float32), 44100, r"\[1, 2, 3\]"),
        (np.ones(100, np.uint8), 44100, "uint8"),
        (np.ones(100, bool), 44100, "bool"),
        (np.ones(100, complex), 44100, "complex"),
        (np.ones(100, np.float32), 44100.5, "whole number"),
        (np.ones(100, np.float32), True, "whole number"),
        (np.ones(100, np.float32), -1, "whole number"),
        (np.ones(100, np.float32), 1, "whole number"),
        (np.full(100, np.nan), 44100, "NaN"),
        (np.zeros(100), 44100, "silent"),
        (np.zeros(0), 44100, "no audio"),
        (np.zeros((0, 100)), 44100, "channels"),
        ((44100, np.ones(100)), None, "not a tuple"),
        ([0.1, 0.2], 44100, "rate_hz is for arrays"),
        (None, None, "not a NoneType"),
        (3, None, "not a int"),
        ("vocal.wav", 44100, "rate_hz is for arrays"),
    ],
)
def test_what_is_no_vocal_is_refused_in_a_line(band: Accompanist, vocal: Any, rate_hz: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        band.accompany(vocal, rate_hz=rate_hz)
    assert "\n" not in str(refused.value)


def test_a_vocal_whose_channels_cancel_is_heard(band: Accompanist) -> None:
    mono = sing(0.4, 24000)
    opposite = Audio(np.concatenate([mono.samples, -mono.samples]), 24000)
    with pytest.warns(SoundWarning, match="opposite polarity"):
        take = band.accompany(opposite, seed=1)
    expected = band.accompany(mono, seed=1)
    np.testing.assert_array_equal(take.tokens["vocal_semantic"], expected.tokens["vocal_semantic"])
    np.testing.assert_array_equal(take.mix.samples, expected.mix.samples)


def test_noise_of_training_is_added_to_what_the_semantic_tokenizer_hears(
    live_band: TinyBand, tiny_pair: tuple[Path, Tokenizers], tmp_path: Path
) -> None:
    noisy = make_band(tmp_path, *tiny_pair, "live")
    for path in (noisy.semantic, noisy.coarse, noisy.fine):
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["hafm_lightning"]["vocal_noise_sigma"] = 0.02
        torch.save(checkpoint, path)
    band = Accompanist.from_checkpoints(**noisy.files(), device="cpu", precision="fp32")
    assert band.trained_noise_sigma == 0.02
    vocal = sing(1.0, 24000)
    bounded = min(0.02, 0.05 * float(np.abs(vocal.samples).max()))  # "auto" is at most a twentieth of the peak
    takes = {s: band.accompany(vocal, seed=1, vocal_noise=s) for s in ("auto", bounded, 0, 0.3)}
    tokens = {setting: take.tokens["vocal_semantic"] for setting, take in takes.items()}
    np.testing.assert_array_equal(tokens["auto"], tokens[bounded])
    assert (tokens["auto"] != tokens[0]).any()
    assert (tokens["auto"] != tokens[0.3]).any()
    assert [take.record["vocal_noise_sigma"] for take in takes.values()] == pytest.approx([bounded, bounded, 0, 0.3])
    np.testing.assert_array_equal(band.accompany(vocal, seed=1).tokens["vocal_semantic"], tokens["auto"])
    assert (band.accompany(vocal, seed=2).tokens["vocal_semantic"] != tokens["auto"]).any()  # seeded
    soft = Audio(vocal.samples * np.float32(0.01 / np.abs(vocal.samples).max()), 24000)
    record = band.accompany(soft, seed=1).record
    assert record["vocal_noise_sigma"] == pytest.approx(0.01 / 20)  # a soft vocal does not drown
    plain = Accompanist.from_checkpoints(**live_band.files(), device="cpu", precision="fp32")
    assert plain.accompany(vocal, seed=1).record["vocal_noise_sigma"] == 0  # stages that do not name it
    for wrong in (-0.1, 2, float("nan"), "loud", True):
        with pytest.raises(RequestError, match="vocal_noise"):
            band.accompany(vocal, vocal_noise=wrong)  # type: ignore[arg-type]
