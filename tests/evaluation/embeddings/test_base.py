"""What every embedding does: rows of several clips, refused sounds, identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from embedding_sounds import sound

from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding


def test_rows_of_several_clips_are_those_of_each() -> None:
    embedding = LogMelEmbedding(framing="google")
    clips = [sound(1.0, seed=1), torch.from_numpy(sound(2.2, seed=2))]
    np.testing.assert_array_equal(embedding.rows(clips), np.concatenate([embedding.rows(clip) for clip in clips]))
    assert embedding.rows([]).shape == (0, 128)


@pytest.mark.parametrize("bad", [np.zeros((2, 16000), np.float32), np.full(16000, np.nan, np.float32)])
def test_stereo_and_nan_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"mono waveform|NaN"):
        LogMelEmbedding().rows(bad)


def test_identity_tells_settings_apart() -> None:
    first, same, other = LogMelEmbedding(), LogMelEmbedding(), LogMelEmbedding(framing="google")
    assert first.identity == same.identity != other.identity
    assert first.identity.startswith("logmel:")
    assert first.provenance(clips=33)["clips"] == 33
