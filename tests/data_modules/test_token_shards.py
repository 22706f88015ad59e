"""TokenShards: what a batch holds, what is refused, and what the loader's workers may not change."""

import json
import multiprocessing

import numpy as np
import pytest
import torch
from faults import poison
from tiny_shards import TINY_DURATION_S, write_tiny_shards, write_tiny_split

from hafm_lightning.data_modules import TokenShards
from hafm_lightning.errors import RequestError
from hafm_lightning.tokens import STREAMS, TokenBatch, check_ids

ALL = ("vocal_semantic", "instrumental_semantic", "instrumental_codes", "vocal_acoustic", "style")


@pytest.fixture
def root(tmp_path):
    return write_tiny_shards(tmp_path / "shards")


def read_all(loader):
    return TokenBatch.concatenate(list(loader))


def test_batches_hold_the_ids_of_their_clips(tmp_path):
    arrays = write_tiny_split(tmp_path, "train", (5, 3), names=ALL)
    data = TokenShards(str(tmp_path), batch_size=4)
    batch = read_all(data.train_dataloader())
    rows = [int(clip[6]) * 5 + int(clip[8]) for clip in batch.clip_ids]  # "train 1-2@0.00" is row 5 + 2
    assert sorted(rows) == list(range(8))
    codes = arrays["instrumental_codes"][rows].astype(np.int64)
    expected = {
        "vocal_semantic": arrays["vocal_semantic"][rows][:, None],
        "instrumental_semantic": arrays["instrumental_semantic"][rows][:, None],
        "instrumental_coarse": codes[:, :4],
        "instrumental_fine": codes[:, 4:],
        "vocal_acoustic": arrays["vocal_acoustic"][rows],
        "style": arrays["style"][rows][:, None, None],
    }
    assert set(batch.streams) == set(expected)
    for name, ids in batch.streams.items():
        assert ids.dtype == torch.int64
        check_ids(STREAMS[name], ids, name)
        np.testing.assert_array_equal(ids.numpy(), expected[name].astype(np.int64))


def test_crops_keep_the_streams_together(tmp_path):
    """Each frame's id is its own time in grid steps, so that a crop of one stream tells where the others must begin."""
    duration_s, clips = 2.0, 6
    write_tiny_split(tmp_path, "train", (clips,), duration_s=duration_s)
    path = tmp_path / "train" / "shard-00000.safetensors"
    from hafm_lightning.shards import Manifest, write_shard

    semantic = np.tile(np.arange(100, dtype=np.uint16) // 2, (clips, 1))
    codes = np.tile(np.arange(150, dtype=np.uint16) // 3, (clips, 8, 1))
    manifest = Manifest.load(path.parent)
    arrays = {"vocal_semantic": semantic, "instrumental_semantic": semantic, "instrumental_codes": codes}
    manifest.shards[0] = write_shard(path, arrays, manifest.shards[0].clip_ids, duration_s)
    manifest.save(path.parent)

    data = TokenShards(str(tmp_path), batch_size=2, crop_s=0.4)
    first_frames = set()
    for epoch in range(12):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for row in range(len(batch)):
                start = int(batch["vocal_semantic"][row, 0, 0])
                first_frames.add(start)
                semantic_times = start + torch.arange(20) // 2
                acoustic_times = start + torch.arange(30) // 3
                assert torch.equal(batch["vocal_semantic"][row, 0], semantic_times)
                assert torch.equal(batch["instrumental_semantic"][row, 0], semantic_times)
                assert torch.equal(batch["instrumental_coarse"][row], acoustic_times.expand(4, -1))
                assert torch.equal(batch["instrumental_fine"][row], acoustic_times.expand(4, -1))
    assert min(first_frames) >= 0
    assert max(first_frames) <= 40  # (2.0 - 0.4) / 0.04
    assert len(first_frames) > 15


@pytest.mark.parametrize("crop_s", [None, 0.2])
def test_workers_do_not_change_the_batches(root, crop_s):
    batches = {}
    for workers in (0, 2):
        data = TokenShards(str(root), batch_size=3, crop_s=crop_s, seed=4, workers=workers)
        before = torch.random.get_rng_state()
        batches[workers] = [*data.train_dataloader(), *data.val_dataloader()]
        assert torch.equal(torch.random.get_rng_state(), before), "the loader must not draw from the global generator"
    for alone, worker in zip(batches[0], batches[2], strict=True):
        assert alone.clip_ids == worker.clip_ids
        for name, ids in alone.streams.items():
            assert worker.streams[name].dtype == torch.int64
            assert torch.equal(worker.streams[name], ids)


def test_batches_survive_spawned_workers(root):
    """Readers reopen their files in processes that share no memory with the parent (macOS, Windows, Python 3.14)."""
    data = TokenShards(str(root), batch_size=4, workers=1)
    loader = data.val_dataloader()
    loader.multiprocessing_context = multiprocessing.get_context("spawn")
    assert sorted(read_all(loader).clip_ids) == sorted(TokenShards(str(root), 1)._open("validation").reader.clip_ids)


def test_evaluation_sees_each_clip_once_and_always_the_same_crop(root):
    data = TokenShards(str(root), batch_size=2, crop_s=0.2)
    first, second = read_all(data.val_dataloader()), read_all(data.val_dataloader())
    assert sorted(first.clip_ids) == sorted(data.manifests["validation"].clip_ids())
    assert first.clip_ids == second.clip_ids
    assert all(torch.equal(first[name], second[name]) for name in first.streams)


@pytest.mark.parametrize("workers", [0, 1])
def test_each_clip_of_an_evaluation_has_the_same_clip_of_another_song_whatever_the_batches(root, workers):
    """Pairs are those of the whole split, cut alike, in batches of any size, on any number of processes."""
    seen = []
    for batch_size, world in ((1, 1), (2, 1), (3, 2)):
        pairs = {}
        for rank in range(world):
            data = TokenShards(str(root), batch_size, crop_s=0.2, workers=workers)
            data._ranks = lambda rank=rank, world=world: (rank, world)
            for batch in data.val_dataloader():
                moved = batch.to("cpu")
                for row, clip in enumerate(moved.clip_ids):
                    pairs[clip] = {name: moved.other[name][row].tolist() for name in moved.streams}
        seen.append(pairs)
    assert seen[0] == seen[1] == seen[2]
    clips = TokenShards(str(root), 9, crop_s=0.2).val_dataloader()
    (whole,) = list(clips)
    for clip, streams in seen[0].items():
        row = next(
            row
            for row in range(len(whole))
            if all(whole[name][row].tolist() == streams[name] for name in ("vocal_semantic", "instrumental_coarse"))
        )
        assert whole.clip_ids[row].rsplit("@", 1)[0] != clip.rsplit("@", 1)[0], (
            "and cropped as where the other song is scored"
        )
    assert type(next(iter(TokenShards(str(root), 2).train_dataloader()))) is TokenBatch
    write_tiny_split(root, "validation", (1,))
    assert type(next(iter(TokenShards(str(root), 2).val_dataloader()))) is TokenBatch, "one song has no other"


def test_streams_can_be_chosen(root):
    data = TokenShards(str(root), batch_size=2, streams=["instrumental_coarse"])
    assert set(next(iter(data.train_dataloader())).streams) == {"instrumental_coarse"}
    with pytest.raises(RequestError, match="holds no stream 'vocal_acoustic'"):
        TokenShards(str(root), batch_size=2, streams=["vocal_acoustic"]).setup("fit")


def test_tokenizers_and_manifests_are_told(root):
    (root / "tokenizers").mkdir()
    data = TokenShards(str(root), batch_size=2)
    assert data.tokenizers["semantic"]["sha256"] == "a1"
    data.setup("fit")
    assert set(data.manifests) == {"train", "validation"}
    assert data.manifests["train"].duration_s == TINY_DURATION_S
    assert data.tokenizers_folder == (root / "tokenizers").resolve()


def refusal(action) -> str:
    with pytest.raises(RequestError) as error:
        action()
    lines = str(error.value).splitlines()
    assert len(lines) <= 3
    return str(error.value)


def test_what_does_not_fit_is_refused_before_the_first_step(root, tmp_path):
    assert "does not exist" in refusal(lambda: TokenShards(str(tmp_path / "absent"), 2).setup("fit"))
    assert "has no split 'train'" in refusal(lambda: TokenShards(str(tmp_path), 2).setup("fit"))
    assert "batch_size is 0" in refusal(lambda: TokenShards(str(root), 0))
    assert "--data.batch_size 8" in refusal(lambda: TokenShards(str(root), 9).setup("fit"))
    assert "shorter crop" in refusal(lambda: TokenShards(str(root), 2, crop_s=3.0).setup("fit"))

    write_tiny_split(root, "validation", (2,), sha256="another")
    message = refusal(lambda: TokenShards(str(root), 2).setup("fit"))
    assert "the split 'validation'" in message
    assert "was prepared with a different tokenizer than the split 'train'" in message
    write_tiny_split(root, "validation", (2,), duration_s=0.8)
    assert "different duration_s (0.4 and 0.8)" in refusal(lambda: TokenShards(str(root), 2).setup("fit"))


def test_an_id_outside_the_vocabulary_is_named_with_its_clip(root):
    poison(root / "train" / "shard-00001.safetensors", offset_from_end=2)  # the last id of vocal_semantic
    message = refusal(lambda: TokenShards(str(root), 2).setup("fit"))
    assert "shard-00001.safetensors" in message
    assert "'train 1-2@0.00'" in message
    assert "5000 in 'vocal_semantic'" in message


def test_a_manifest_of_another_version_is_refused(root):
    path = root / "train" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    assert "format 99" in refusal(lambda: TokenShards(str(root), 2).setup("fit"))
