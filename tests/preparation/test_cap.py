"""The seeded choice of clips of a split."""

import numpy as np
import pytest
from tiny_shards import write_tiny_split

from hafm_lightning.preparation.cap import capped, chosen_clips
from hafm_lightning.preparation.plan import SplitSettings
from hafm_lightning.shards import map_shard, open_shards


def test_each_clip_is_chosen_as_often_as_any_other():
    names = [f"song {number // 5}@{number % 5}.00" for number in range(40)]
    counts = dict.fromkeys(names, 0)
    for seed in range(600):
        chosen = chosen_clips(names, 10, seed)
        assert len(chosen) == 10
        for name in chosen:
            counts[name] += 1
    values = np.array(list(counts.values()))  # binomial, 600 times 1/4: 150 +- 10.6
    assert values.mean() == 150
    assert np.abs(values - 150).max() < 4.5 * 10.6
    assert chosen_clips(names, 10, 3) == chosen_clips(list(reversed(names)), 10, 3)
    assert chosen_clips(names, 99, 3) == set(names)


@pytest.mark.parametrize("cap", [1, 5, 9, 12])
def test_a_capped_split_holds_the_chosen_rows(tmp_path, cap):
    root = tmp_path / "shards"
    write_tiny_split(root, "train", (4, 5, 3))
    reader = open_shards(root, "train")
    shards, folder = reader.manifest.shards, root / "train"
    before = {shard.file: (folder / shard.file).read_bytes() for shard in shards}
    rows = {
        name: {key: ids[row].copy() for key, ids in map_shard(folder / shard.file).items()}
        for shard in shards
        for row, name in enumerate(shard.clip_ids)
    }
    for _ in range(2):  # a run that is started again ends with the same bytes
        left = capped(shards, folder, cap, 7, reader.manifest.duration_s)
        assert sum(shard.clips for shard in left) == cap
        assert {name for shard in left for name in shard.clip_ids} == chosen_clips(list(rows), cap, 7)
        for shard in left:
            for row, name in enumerate(shard.clip_ids):
                for key, ids in map_shard(folder / shard.file).items():
                    assert np.array_equal(ids[row], rows[name][key])
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_fewer_clips_than_asked_for_are_told(tmp_path, capsys):
    write_tiny_split(tmp_path / "shards", "train", (2,))
    shards = open_shards(tmp_path / "shards", "train").manifest.shards
    assert capped(shards, tmp_path / "shards" / "train", 44547, 0, 1.0) == shards
    assert "train: 2 clips after the quality filter, 44547 were asked for" in capsys.readouterr().err
    assert capped(shards, tmp_path / "shards" / "train", None, 0, 1.0) == shards


def test_a_cap_of_nothing_is_refused():
    with pytest.raises(ValueError, match="validation_clips is 0, must be 1 or more"):
        SplitSettings(validation_clips=0)
