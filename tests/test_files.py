"""Files and folders are complete or absent: what stays after an error, a race, a full disk; names of any bytes."""

import errno
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from hafm_lightning import files
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_file, atomic_folder, remove_unfinished, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def interrupted_write(folder: Path) -> None:
    (folder / "half").write_bytes(b"half")
    raise KeyboardInterrupt


def test_a_folder_appears_when_all_of_it_is_written(tmp_path):
    target = tmp_path / "parent" / "model"
    with atomic_folder(target) as draft:
        (draft / "inside").mkdir()
        (draft / "inside" / "weights").write_bytes(b"new")
        assert not target.exists()
    assert names(tmp_path / "parent") == ["model", "model/inside", "model/inside/weights"]
    with atomic_folder(target) as draft:
        (draft / "other").write_bytes(b"newer")
    assert names(tmp_path / "parent") == ["model", "model/other"]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    target = tmp_path / "model"
    for exists in (False, True):
        with pytest.raises(KeyboardInterrupt), atomic_folder(target) as draft:
            interrupted_write(draft)
        assert names(tmp_path) == (["model", "model/old"] if exists else [])
        target.mkdir(exist_ok=True)
        (target / "old").touch()


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename

    def refuse(self, to):
        if Path(to) == target and (self / "new").exists():
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(target) as draft:
        (draft / "new").touch()
    assert names(tmp_path) == ["model", "model/old"]


def test_a_folder_that_another_process_put_there_first_is_replaced(tmp_path, monkeypatch):
    target = tmp_path / "model"
    rename, rivals = Path.rename, [b"rival"]

    def late(self, to):
        if Path(to) == target and rivals:
            target.mkdir()
            (target / "file").write_bytes(rivals.pop())
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", late)
    with atomic_folder(target) as draft:
        (draft / "file").write_bytes(b"own")
    assert (target / "file").read_bytes() == b"own"
    assert names(tmp_path) == ["model", "model/file"]


def test_a_file_in_the_place_of_a_folder_stays(tmp_path):
    (tmp_path / "model").write_bytes(b"precious")
    with pytest.raises(NotADirectoryError), atomic_folder(tmp_path / "model") as draft:
        (draft / "new").touch()
    assert (tmp_path / "model").read_bytes() == b"precious"
    assert names(tmp_path) == ["model"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomic(tmp_path / "file", b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "file", b"new")
    with pytest.raises(OSError, match="No space"), atomic_folder(tmp_path / "folder") as draft:
        (draft / "file").touch()
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_folder_that_is_not_writable_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), atomic_file(tmp_path / "file" / "inside"):  # noqa: PT011 - its kind depends on the system
        pytest.fail("the block must not run")


def test_only_old_unfinished_files_and_folders_are_removed(tmp_path):
    for name in ("old", "young"):
        folder = tmp_path / "a" / f".writing-{name}"
        folder.mkdir(parents=True)
        (folder / "part").touch()
        (tmp_path / f".writing-file-{name}").touch()
    for path in (tmp_path / "a" / ".writing-old", tmp_path / ".writing-file-old"):
        os.utime(path, (time.time() - 100, time.time() - 100))
    remove_unfinished(tmp_path, older_than_s=50)
    assert names(tmp_path) == [".writing-file-young", "a", "a/.writing-young", "a/.writing-young/part"]
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["a"]


def test_names_of_any_bytes_become_distinct_text():
    raw = [b"caf\xc3\xa9", b"caf\xe9", b"caf\\xe9", b"caf\xe9\\xe9", b"a\nb", b"a\\nb", b"\xc2\xa0", b"\xa0"]
    shown = [files.printable(name.decode("utf-8", "surrogateescape")) for name in raw]
    assert len(set(shown)) == len(raw)
    assert shown[0] == "café"
    for text in shown:
        assert text.isprintable()
        text.encode("utf-8")


def test_a_folder_that_appears_between_check_and_rename_is_looked_at(tmp_path: Path) -> None:
    # Another process writes its folder after this one has been filled: it must not be replaced unseen.
    target, seen = tmp_path / "model", []

    def is_complete() -> bool:
        seen.append(sorted(path.name for path in target.iterdir()))
        raise RequestError("occupied")

    def write() -> None:
        with atomic_folder(target, is_complete) as draft:
            (draft / "ours").touch()
            target.mkdir()
            (target / "theirs").touch()

    with pytest.raises(RequestError, match="occupied"):
        write()
    assert seen == [["theirs"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert (target / "theirs").is_file()


def test_an_empty_folder_is_filled_without_asking(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    with atomic_folder(target, lambda: pytest.fail("nothing is there to look at")) as draft:
        (draft / "ours").touch()
    assert [path.name for path in target.iterdir()] == ["ours"]


def test_the_private_mode_of_a_librarys_files_is_undone(tmp_path: Path) -> None:
    """safetensors and others write files that the owner alone may read."""
    expected = tmp_path / "expected"
    expected.touch()
    with files.atomic_file(tmp_path / "a") as draft:
        draft.unlink()
        draft.touch(0o600)
    with files.atomic_folder(tmp_path / "folder") as draft:
        (draft / "sub").mkdir()
        (draft / "sub" / "b").touch(0o600)
    for path in (tmp_path / "a", tmp_path / "folder" / "sub" / "b"):
        assert path.stat().st_mode == expected.stat().st_mode
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["sub"]


@pytest.mark.parametrize("refused", ["fsync", "chmod"])
def test_file_systems_without_flushing_or_modes_are_written_to(tmp_path: Path, monkeypatch, refused: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EINVAL if refused == "fsync" else errno.EPERM, "refused")

    monkeypatch.setattr(os, refused, refuse)
    with files.atomic_file(tmp_path / "a") as draft:
        draft.unlink()
        draft.touch(0o600)
    with files.atomic_folder(tmp_path / "folder") as draft:
        (draft / "b").touch(0o600)
    assert (tmp_path / "a").is_file()
    assert (tmp_path / "folder" / "b").is_file()


def test_a_broken_disk_is_still_an_error(tmp_path: Path, monkeypatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        files.write_atomic(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home_has_a_cache(tmp_path: Path, monkeypatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(files.CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(Path, "expanduser", lambda self: homeless() if str(self).startswith("~") else self)
    assert files.cache_folder().name.startswith("hafm_lightning")
    with pytest.raises(RequestError, match="no home"):
        files.expanded("~/data")
    assert files.expanded(tmp_path) == tmp_path
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    assert files.cache_folder() == tmp_path


def test_names_of_a_folder_are_of_one_moment_while_it_is_replaced(tmp_path, monkeypatch):
    """Between two looks another process moves the folder away, or puts a new one there: read again, not mixed."""
    folder = tmp_path / "model"
    assert files.names_in(folder) == frozenset()
    for name in ("config.json", "weights"):
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    real, looks = os.listdir, []

    def listing(path):
        looks.append(path)
        if len(looks) == 1:  # half removed, and replaced behind our back
            (folder / "config.json").unlink()
            found = real(path)
            folder.rename(tmp_path / "old")
            folder.mkdir()
            (folder / "config.json").touch()
            return found
        return real(path)

    monkeypatch.setattr(files.os, "listdir", listing)
    assert files.names_in(folder) == {"config.json"}
    assert len(looks) == 2
    assert files.names_in(folder / "config.json") == {"config.json"}
