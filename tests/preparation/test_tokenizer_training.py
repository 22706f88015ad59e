"""Training tokenizers: on clips of the corpus that pass the filter, the same for both."""

import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from tiny_corpora import RATE_HZ, stem_song, write_stems
from tiny_preparation import shard_bytes, tiny_config, tiny_tokenizers

from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.preparation.quality.filters import FilterSettings
from hafm_lightning.preparation.report.report import PreparationReport
from hafm_lightning.preparation.shard_work import SoundSettings
from hafm_lightning.preparation.tokenizer_training import TokenizerSettings, TrainingSounds
from hafm_lightning.processes.pool import SerialPool
from hafm_lightning.shards import open_shards
from hafm_lightning.songs.clips import ClipSettings
from hafm_lightning.songs.separation import SeparationSettings
from hafm_lightning.tokenizers import load_tokenizers


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def test_tokenizers_are_trained_on_the_corpus(tmp_path):
    for number in range(4):
        write_stems(tmp_path / "songs" / f"{number}", 12.0, seed=number)
    corpora = [{"kind": "StemFolder", "path": str(tmp_path / "songs")}]
    roots = [tmp_path / "one", tmp_path / "two"]
    for root in roots:
        prepare(tiny_config(root, corpora, tokenizers={"training_clips": 12}))
    identities = [open_shards(root, "train").manifest.tokenizers for root in roots]
    assert identities[0] == identities[1]
    training = PreparationReport.load(roots[0]).training
    assert training["semantic"]["clips"] == 24  # a vocal and an accompaniment each
    assert len(training["acoustic"]["kmeans"]) == 8
    kmeans = training["semantic"]["kmeans"]
    row = [kmeans[name] for name in ("points", "centroids", "dead_centroids")]
    cells = r"\s*".join(f"<td>{value}</td>" for value in (0, *row))
    assert re.search(rf">semantic</th>\s*{cells}", (roots[0] / "report.html").read_text())
    assert identities[0]["semantic"]["sha256"] != load_tokenizers(tiny_tokenizers()).semantic.identity.sha256
    assert shard_bytes(roots[0]) == shard_bytes(roots[1])


class CountingPool(SerialPool):
    """Notes the excerpts that it reads."""

    def __init__(self) -> None:
        self.read: list[tuple[str, float]] = []

    def map(self, work, units):
        self.read += [(song.id, start_s) for unit in units for song, start_s in unit]
        return super().map(work, units)


def test_both_tokenizers_are_trained_on_the_same_clips_and_rejected_ones_are_read_once(tmp_path):
    """Every second song is silent, so its clips do not pass the filter."""
    songs = [stem_song(tmp_path / f"{number}", seconds=4.0, seed=number) for number in range(8)]
    for song in songs[::2]:
        samples, rate_hz = soundfile.read(song.vocals)
        soundfile.write(song.vocals, 0 * samples, rate_hz)
    clips = ClipSettings(duration_s=2.0, hop_s=2.0)
    filters = FilterSettings(vocal_activity_min=0.1, loudness_range_max_lu=None)
    sound = SoundSettings(clips, filters, SeparationSettings(), 0.01, 0)
    durations_s = {song.id: 4.0 for song in songs}
    settings = TokenizerSettings(training_clips=5, seed=3)
    pool, strict = CountingPool(), replace(sound, filters=FilterSettings(vocal_activity_min=1.1))
    rejected = TrainingSounds(songs, durations_s, settings, strict, pool).semantic()
    with pytest.raises(RequestError, match="no clip of the training songs passes the filter"):
        list(rejected)
    assert sorted(pool.read) == [(song.id, start_s) for song in songs for start_s in (0.0, 2.0)]  # each once
    pool = CountingPool()
    sounds = TrainingSounds(songs, durations_s, settings, sound, pool)
    first = list(sounds.semantic())
    assert len(first) == 2 * 5
    first_read = list(pool.read)
    assert any(int(name) % 2 == 0 for name, _ in first_read)
    second = list(sounds.acoustic())
    again = pool.read[len(first_read) :]
    assert len(again) == len(second) == 5
    assert all(int(name) % 2 == 1 for name, _ in again)
    assert set(again) <= set(first_read)
    for accompaniment, (name, start_s) in zip(first[1::2], again, strict=True):
        band = soundfile.read(tmp_path / name / "accompaniment.wav", dtype="float32")[0]
        begin = round(start_s * RATE_HZ)
        np.testing.assert_allclose(accompaniment, band[begin : begin + 2 * RATE_HZ], atol=1e-6)
