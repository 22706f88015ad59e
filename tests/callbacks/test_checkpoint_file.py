"""One checkpoint file: written whole or not at all, and read as data only."""

import os
import resource
import stat

import pytest
import torch

from hafm_lightning.callbacks import AtomicCheckpointIO
from hafm_lightning.errors import RequestError


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    writer, path = AtomicCheckpointIO(), tmp_path / "folder" / "a.ckpt"
    writer.save_checkpoint({"weights": torch.arange(3)}, path)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, "a checkpoint is readable to those who may read"

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        writer.save_checkpoint({"weights": torch.zeros(3)}, path)
    monkeypatch.undo()
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]
    assert writer.load_checkpoint(path)["weights"].tolist() == [0, 1, 2]
    writer.remove_checkpoint(path)
    assert not path.exists()


def test_a_disk_that_fills_up_is_an_error_of_the_disk(tmp_path):
    """The limit on a file's size ends a write as a full disk does: in the middle, from below torch.save."""
    writer, path = AtomicCheckpointIO(), tmp_path / "a.ckpt"
    writer.save_checkpoint({"weights": torch.arange(3)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large.*a\.ckpt"):
            writer.save_checkpoint({"weights": torch.zeros(10**6)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    assert writer.load_checkpoint(path)["weights"].tolist() == [0, 1, 2]


def test_the_temporary_file_is_in_the_same_folder_whatever_tmpdir_says(tmp_path, monkeypatch):
    seen = []
    save = torch.save
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setattr(torch, "save", lambda content, file: (seen.extend(tmp_path.iterdir()), save(content, file)))
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt")
    assert len(seen) == 1
    assert seen[0].name.startswith(".writing-")


def test_only_data_is_read(tmp_path):
    hostile = tmp_path / "hostile.ckpt"
    torch.save({"run": os.system}, hostile)
    for path in (hostile, tmp_path / "absent.ckpt", "https://example.org/a.ckpt"):
        with pytest.raises(RequestError):
            AtomicCheckpointIO().load_checkpoint(path)
