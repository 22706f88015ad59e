"""Features of the offline tokenizers: each group has its share of the variance, and a frame its stated context."""

from __future__ import annotations

import pytest
import torch
from tiny_tokenizers import chord_song, noise

from hafm_lightning.tokenizers.frontends import AcousticFrontEnd, AcousticSettings, SemanticFrontEnd, SemanticSettings


def test_weights_share_out_the_variance() -> None:
    settings = SemanticSettings()
    front_end = SemanticFrontEnd(settings)
    frames = torch.cat([front_end(torch.from_numpy(chord_song(seed, 16000)[0])) for seed in range(4)])
    variance = (frames * front_end.scales(frames)).var(dim=0, correction=0)
    cepstra, loudness, onset, chroma = variance.split([12, 1, 3, 12])
    assert float(cepstra.sum()) == pytest.approx(settings.cepstra_weight)
    assert float(loudness.sum()) == pytest.approx(settings.loudness_weight)
    assert float(onset.sum()) == pytest.approx(settings.onset_weight)
    assert float(chroma.sum()) == pytest.approx(settings.chroma_weight)


@pytest.mark.parametrize(
    ("front_end", "rate_hz"),
    [(SemanticFrontEnd(SemanticSettings()), 16000), (AcousticFrontEnd(AcousticSettings()), 24000)],
    ids=["semantic", "acoustic"],
)
def test_a_frame_depends_on_its_context_and_nothing_else(
    front_end: SemanticFrontEnd | AcousticFrontEnd, rate_hz: int
) -> None:
    """Sound is changed from one sample on: frames whose context ends before it stay, those around it change."""
    audio = noise(1, rate_hz)[0]
    changed, first = audio.clone(), rate_hz // 2
    changed[first:] = noise(1, rate_hz, seed=1)[0][first:]
    different = (front_end(audio) != front_end(changed)).any(dim=1)
    centres_s = (torch.arange(len(different)) + 0.5) * 320 / rate_hz
    assert not different[centres_s + front_end.context_s <= first / rate_hz].any()
    assert different[(centres_s - first / rate_hz).abs() < front_end.context_s / 4].all()
