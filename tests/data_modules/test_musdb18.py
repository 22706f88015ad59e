"""Musdb18: songs become batches on first use, and stay usable without the songs."""

import shutil

import pytest
from tiny_corpora import write_musdb
from tiny_preparation import tiny_tokenizers

from hafm_lightning.data_modules import Musdb18
from hafm_lightning.errors import RequestError


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def test_songs_are_prepared_once_and_dealt_out(tmp_path):
    songs = write_musdb(tmp_path / "songs", train=4, test=2, seconds=4.0)
    settings = {"batch_size": 2, "clip_s": 2.0, "allow_partial": True, "preparation_workers": 1}
    data = Musdb18(str(songs), str(tmp_path / "root"), str(tiny_tokenizers()), **settings)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert {split: len(manifest.songs()) for split, manifest in data.manifests.items()} == {
        "train": 3,
        "validation": 1,
        "test": 2,
    }
    batch = next(iter(data.test_dataloader()))
    assert batch["vocal_semantic"].shape == (2, 1, 100)
    assert batch["instrumental_coarse"].shape == (2, 4, 150)
    assert all("Song test" in clip for clip in batch.clip_ids)

    manifest = (tmp_path / "root" / "test" / "manifest.json").read_bytes()
    data.prepare_data()
    assert (tmp_path / "root" / "test" / "manifest.json").read_bytes() == manifest
    shutil.rmtree(songs)
    data.prepare_data()  # everything is there
    with pytest.raises(RequestError, match="does not exist"):
        Musdb18(str(songs), str(tmp_path / "other"), str(tiny_tokenizers()), batch_size=2).prepare_data()
