"""Models come from a folder or the Hub: pinned where they are published, as data alone, without a second download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers.hub import (
    PINNED_REVISIONS,
    UnreachableWeightsError,
    fetch_file,
    fetch_folder,
    resolve_source,
)


def test_published_models_are_pinned() -> None:
    for name, revision in PINNED_REVISIONS.items():
        assert resolve_source(name, None) == (name, revision)
        assert resolve_source(name, "main") == (name, "main")
        assert len(revision) == 40
    assert resolve_source("someone/else", None) == ("someone/else", None)


def test_folders_have_no_revision_and_must_exist(tmp_path: Path) -> None:
    assert resolve_source(tmp_path, None) == (str(tmp_path), None)
    with pytest.raises(RequestError, match="leave it out"):
        resolve_source(tmp_path, "main")
    for missing in (tmp_path / "no", "./no/such", "~/no-such-folder", "no-owner", "a/b/c"):
        with pytest.raises(RequestError, match="the folder does not exist"):
            resolve_source(missing, None)


def test_a_folder_is_used_in_place_whatever_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("a download"))
    for source in (tmp_path, str(tmp_path)):
        assert fetch_folder(source, ["*.json"], revision="v1", what="model") == tmp_path


def test_a_hub_id_is_fetched_by_its_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def download(name: str, **options: Any) -> str:
        calls.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch_folder("someone/model", ("*.json",), revision=None, what="model") == tmp_path
    assert calls == [("someone/model", {"revision": None, "allow_patterns": ["*.json"]})]


def test_what_the_hub_cannot_provide_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("\nno connection\nand a long explanation")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UnreachableWeightsError, match=r"someone/model: no such folder.*\(no connection\)"):
        fetch_folder("someone/model", ["*"], revision=None, what="model")
    with pytest.raises(UnreachableWeightsError, match=r"cannot get hf://a/b/c\.bin \(no connection\)"):
        fetch_file("hf://a/b/c.bin")
    for missing in ("/nowhere", "./no/such", Path("someone/model")):
        with pytest.raises(UnreachableWeightsError, match=r"no model at .*the folder does not exist"):
            fetch_folder(missing, ["*"], revision=None, what="model")
    with pytest.raises(RequestError, match="OWNER/NAME/PATH"):
        fetch_file("hf://a/b")
