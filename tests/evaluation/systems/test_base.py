"""Controls: codec, random pairing, takes for other vocals, and sounds of the clip's length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tiny_music import TinyMusic, tiny_selection

from hafm_lightning.evaluation.segments import (
    ClipReader,
    MusicClip,
    SelectedClips,
)
from hafm_lightning.evaluation.systems.base import (
    RandomPairing,
    ThroughCodec,
    fitted,
)


def test_codec_ceiling_is_the_decoded_truth(music: TinyMusic, clips: list[MusicClip]) -> None:
    for codebooks in (8, 4):
        codes = music.tokenizers.acoustic.encode(torch.from_numpy(clips[0].accompaniment)[None])
        expected = music.tokenizers.acoustic.decode(codes[:, :codebooks])[0].numpy()
        (outcome,) = ThroughCodec(music.tokenizers, codebooks).play(clips[:1])
        np.testing.assert_array_equal(outcome.samples, expected)


def test_random_pairing_takes_unevaluated_music_of_other_songs(music: TinyMusic) -> None:
    chosen = tiny_selection(music, clips=3)
    pairing = RandomPairing(SelectedClips(chosen, ClipReader.of(music.tokenizers)), "spare", seed=0)
    evaluated = {segment.clip_id for segment in chosen.segments}
    for segment in chosen.segments:
        partner = pairing.partners[segment.clip_id]
        assert partner.song.id != segment.song.id
        assert partner.clip_id not in evaluated
    alone = SelectedClips(replace(chosen, spare=[]), ClipReader.of(music.tokenizers))
    without_spare = RandomPairing(alone, "spare", seed=0)
    assert all(without_spare.partners[s.clip_id].song.id != s.song.id for s in chosen.segments)


def test_sounds_are_fitted_to_the_clip(clips: list[MusicClip]) -> None:
    short, long = np.ones(100, np.float32), np.ones(30000, np.float32)
    assert fitted(clips[0], short).samples.sum() == 100
    assert len(fitted(clips[0], long).samples) == len(clips[0].accompaniment)
