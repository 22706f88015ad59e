"""Identities, and folders that are complete or not there."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers import base
from hafm_lightning.tokenizers.base import TokenizerIdentity, content_sha256, read_description, write_folder

IDENTITY = TokenizerIdentity("offline-semantic", "ab" * 32, 16000, 50, 1, 500, "soxr-hq", {"layer": 9})
ARRAYS = {"a": torch.arange(6.0).reshape(2, 3)}


def test_an_identity_survives_json() -> None:
    assert TokenizerIdentity.from_dict(json.loads(json.dumps(asdict(IDENTITY)))) == IDENTITY


def test_an_identity_of_other_keys_is_refused() -> None:
    values = asdict(IDENTITY)
    del values["resampler"]
    values["colour"] = "blue"
    with pytest.raises(RequestError, match=r"missing keys \['resampler'\], unknown keys \['colour'\]"):
        TokenizerIdentity.from_dict(values)


def test_frames_are_exact_or_refused() -> None:
    assert IDENTITY.hop == 320
    assert IDENTITY.frames(160000) == 500
    for samples in (0, 319, 160001):
        with pytest.raises(ValueError, match="multiple of 320"):
            IDENTITY.frames(samples)


def test_the_digest_sees_everything_but_order() -> None:
    arrays = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    settings = {"x": 1, "y": [1, 2]}
    digest = content_sha256(arrays, settings)
    assert digest == content_sha256(dict(reversed(arrays.items())), dict(reversed(settings.items())))
    others = [
        ({**arrays, "b": torch.full((4,), 1 + 1e-7)}, settings),
        ({**arrays, "a": torch.zeros(3, 2)}, settings),
        ({**arrays, "a": torch.zeros(2, 3, dtype=torch.float64)}, settings),
        ({"c": arrays["a"], "b": arrays["b"]}, settings),
        (arrays, {**settings, "x": 2}),
    ]
    assert len({digest, *(content_sha256(*other) for other in others)}) == 6


def test_a_folder_is_written_and_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "deep" / "t", IDENTITY, ARRAYS, {"clips": 3})
    assert read_description(tmp_path / "deep" / "t") == (IDENTITY, {"clips": 3})
    assert torch.equal(base.read_arrays(tmp_path / "deep" / "t", {"a"})["a"], ARRAYS["a"])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["t"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_folder(tmp_path / "t", IDENTITY, ARRAYS, {})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_earlier_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "t", IDENTITY, ARRAYS, {})
    rename, errors = Path.rename, [OSError(5, "Input/output error")]

    def fails_in_the_end(self: Path, target: Path) -> Path:
        if target.name == "t" and errors:
            raise errors.pop()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_in_the_end)
    with pytest.raises(OSError, match="Input/output"):
        write_folder(tmp_path / "t", replace(IDENTITY, sha256="cd" * 32), ARRAYS, {})
    assert not errors
    assert read_description(tmp_path / "t")[0] == IDENTITY
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_the_same_tokenizer_is_left_and_another_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "t", IDENTITY, ARRAYS, {"run": 1})
    write_folder(tmp_path / "t", IDENTITY, ARRAYS, {"run": 2})
    assert read_description(tmp_path / "t")[1] == {"run": 1}
    other = replace(IDENTITY, sha256="cd" * 32)
    write_folder(tmp_path / "t", other, ARRAYS, {"run": 3})
    assert read_description(tmp_path / "t") == (other, {"run": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_other_peoples_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "thesis.tex").write_text("years of work")
    with pytest.raises(RequestError, match="name another folder"):
        write_folder(tmp_path / "t", IDENTITY, ARRAYS, {})
    with pytest.raises(RequestError, match="is a file"):
        write_folder(tmp_path / "t" / "thesis.tex", IDENTITY, ARRAYS, {})
    assert (tmp_path / "t" / "thesis.tex").read_text() == "years of work"


def test_a_race_for_the_same_folder_leaves_one_whole_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, raced = Path.rename, []

    def slower(self: Path, target: Path) -> Path:
        if not raced:
            raced.append(True)
            write_folder(tmp_path / "t", IDENTITY, ARRAYS, {"run": "other"})
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", slower)
    write_folder(tmp_path / "t", IDENTITY, ARRAYS, {"run": "ours"})
    assert raced
    # The other one was complete first and has the same identity: it stays.
    assert read_description(tmp_path / "t") == (IDENTITY, {"run": "other"})
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format_version": 1}',
        '{"format_version": 1, "identity": 3}',
        '{"format_version": 1, "identity": 3, "report": {}}',
        '{"format_version": 1, "identity": {}, "report": 3}',
    ],
)
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(RequestError, match=r"tokenizer\.json is damaged"):
        read_description(tmp_path)


def test_another_version_kind_or_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no tokenizer in"):
        read_description(tmp_path)
    write_folder(tmp_path / "t", IDENTITY, ARRAYS, {})
    with pytest.raises(RequestError, match="'offline-semantic', expected 'hubert'"):
        read_description(tmp_path / "t", "hubert")
    path = tmp_path / "t" / "tokenizer.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(RequestError, match="format version 3, this program reads 2"):
        read_description(tmp_path / "t")


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "t", IDENTITY, ARRAYS, {})
    with pytest.raises(RequestError, match=r"holds \['a'\], expected \['b'\]"):
        base.read_arrays(tmp_path / "t", {"b"})
    arrays = tmp_path / "t" / "arrays.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:20])
    with pytest.raises(RequestError, match="cannot be read"):
        base.read_arrays(tmp_path / "t", {"a"})
    arrays.unlink()
    with pytest.raises(RequestError, match="cannot be read"):
        base.read_arrays(tmp_path / "t", {"a"})
