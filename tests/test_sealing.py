"""A sealed archive with any bit changed is refused; one without a seal by the checksums of its members."""

import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hafm_lightning import sealing
from hafm_lightning.errors import RequestError


def check(path: Path) -> bool:
    return sealing.check_seal(path, what="WHAT", advice="ADVICE")


def save(path: Path) -> None:
    torch.save({"weights": torch.arange(5000.0), "facts": {"a": [1, "b"]}}, path)


def flipped(path: Path, place: int) -> bytes:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << (place % 8)
    return bytes(content)


def test_a_sealed_file_reads_as_before_and_survives_copies(tmp_path: Path) -> None:
    save(tmp_path / "plain.ckpt")
    save(tmp_path / "a.ckpt")
    sealing.seal(tmp_path / "a.ckpt")
    assert check(tmp_path / "a.ckpt")
    moved = shutil.copyfile(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    assert check(moved)
    for mapped in (False, True):
        content = torch.load(moved, weights_only=True, mmap=mapped)
        assert torch.equal(content["weights"], torch.arange(5000.0))
    assert zipfile.ZipFile(moved).testzip() is None
    assert moved.stat().st_size - (tmp_path / "plain.ckpt").stat().st_size < 100
    np.savez(tmp_path / "c.npz", rows=np.arange(7.0))
    sealing.seal(tmp_path / "c.npz")
    assert check(tmp_path / "c.npz")
    assert np.load(tmp_path / "c.npz")["rows"].tolist() == list(range(7))
    with pytest.raises(ValueError, match="without a comment"):
        sealing.seal(moved)


@pytest.mark.parametrize("sealed", [True, False])
def test_flipped_bits_never_change_what_is_read(tmp_path: Path, sealed: bool) -> None:
    path = tmp_path / "a.ckpt"
    save(path)
    if sealed:
        sealing.seal(path)
    size = path.stat().st_size
    content_at = path.read_bytes().index(torch.arange(5000.0).numpy().tobytes())
    places = [*random.Random(0).sample(range(size), 40), content_at, content_at + 19_999, size - 1, 0, 40]
    original = torch.load(path, weights_only=True)
    for place in places:
        damaged = tmp_path / f"{place}.ckpt"
        damaged.write_bytes(flipped(path, place))
        try:
            carries = check(damaged)
            content = torch.load(damaged, weights_only=True)
        except Exception:  # noqa: BLE001 - refused, by the seal or by PyTorch
            continue
        # a bit of the seal's own mark, or of padding that no reader looks at
        assert not (carries and sealed), place
        assert torch.equal(content["weights"], original["weights"])
        assert content["facts"] == original["facts"]
        assert not content_at <= place < content_at + 20_000


def test_truncated_zeroed_and_extended_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    save(path)
    sealing.seal(path)
    content = path.read_bytes()
    middle = len(content) // 2
    for name, changed in {
        "zeroed": content[:middle] + bytes(500) + content[middle + 500 :],
        "inserted": content[:middle] + b"x" + content[middle:],
    }.items():
        damaged = tmp_path / name
        damaged.write_bytes(changed)
        with pytest.raises(RequestError, match=r"WHAT is damaged.*ADVICE"):
            check(damaged)


def test_a_file_without_a_seal_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.ckpt")
    assert not check(tmp_path / "a.ckpt")
    assert not check(tmp_path / "a.ckpt")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "a.ckpt: carries no digest" in lines[0]


def test_a_changed_file_is_compared_again(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    save(path)
    sealing.seal(path)
    assert check(path)
    path.write_bytes(flipped(path, path.stat().st_size // 2))
    with pytest.raises(RequestError, match="damaged"):
        check(path)
