"""Manifests: ids of clips, and files that cannot be used."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_shards import write_full_split

from hafm_lightning.errors import RequestError
from hafm_lightning.shards import (
    Manifest,
    ShardReader,
    clip_id,
    song_of,
)


@given(st.text(min_size=1, max_size=20), st.integers(0, 100_000))
def test_clip_ids_give_back_their_song(song, frame):
    assert song_of(clip_id(song, frame / 25)) == song


def test_manifests_that_cannot_be_used_say_so(tmp_path):
    folder = tmp_path / "train"
    write_full_split(folder)
    manifest = Manifest.load(folder)
    assert manifest.songs() == ["song 0", "song 1"]
    replace(manifest, format_version=99).save(folder)
    with pytest.raises(RequestError, match="format 99"):
        ShardReader(folder)
    broken = {"vocal_semantic": {"rate_hz": 50, "codebooks": 1, "vocabulary": 7}}
    replace(manifest, streams=manifest.streams | broken).save(folder)
    with pytest.raises(RequestError, match="vocal_semantic"):
        ShardReader(folder)
    replace(manifest, streams={"style": manifest.streams["vocal_semantic"]}).save(folder)
    with pytest.raises(RequestError):
        ShardReader(folder)
    outside = replace(manifest.shards[0], file="../train/shard-00000.safetensors")
    replace(manifest, shards=[outside]).save(folder)
    with pytest.raises(RequestError, match="inconsistent"):
        ShardReader(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(RequestError, match="shard manifest is damaged"):
        ShardReader(folder)


@pytest.mark.parametrize("key", ["streams", "shards", "format_version"])
@pytest.mark.parametrize("value", [None, 7, "text", [[]], [{}]])
def test_values_of_a_wrong_type_are_refused(tmp_path, key, value):
    folder = tmp_path / "train"
    write_full_split(folder)
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(RequestError, match=r"manifest\.json"):
        ShardReader(folder)
