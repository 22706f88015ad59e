"""The front end against the published recipe, and the embedding ``logmel`` against a cosine transform."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
from embedding_sounds import published_log_mel, sound

from hafm_lightning.evaluation.embeddings import log_mel
from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding


def test_front_end_equals_the_published_recipe_number_by_number() -> None:
    signal = sound(0.2)
    expected = published_log_mel(signal)
    found = log_mel.log_mel(torch.from_numpy(signal)).numpy()
    assert found.shape == expected.shape == (18, 64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.5


@pytest.mark.parametrize(
    ("framing", "seconds", "rows"),
    [("contiguous", 10.0, 10), ("google", 10.0, 19), ("contiguous", 3.0, 3), ("google", 3.0, 5), ("google", 1.0, 1)],
)
def test_framings_give_the_published_numbers_of_rows(framing: str, seconds: float, rows: int) -> None:
    signal = torch.from_numpy(sound(seconds))
    found = log_mel.patches(signal, framing)
    assert found.shape == (rows, 96, 64)
    step = 96 * 160 if framing == "contiguous" else 8000
    last = signal[(rows - 1) * step :][: 400 + 95 * 160]
    torch.testing.assert_close(found[-1], log_mel.log_mel(last), rtol=0, atol=1e-6)


def test_too_short_a_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="15600 samples"):
        LogMelEmbedding().rows(sound(0.9))
    with pytest.raises(ValueError, match="unknown framing"):
        LogMelEmbedding(framing="vast")


def test_logmel_is_the_low_corner_of_a_cosine_transform() -> None:
    signal = sound(2.0)
    found = LogMelEmbedding().rows(signal)
    for index, patch in enumerate(log_mel.patches(torch.from_numpy(signal), "contiguous").numpy()):
        expected = scipy.fft.dctn(patch.astype(np.float64), norm="ortho")[:8, :16].reshape(-1) / np.sqrt(patch.size)
        np.testing.assert_allclose(found[index], expected, atol=3e-6)
        assert found[index, 0] == pytest.approx(patch.mean(), rel=1e-5)
