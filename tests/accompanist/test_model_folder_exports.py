"""How an export puts its folder in place: several at once, and the modes of files."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_band import TinyBand

from hafm_lightning import files
from hafm_lightning.accompanist import model_folder
from hafm_lightning.errors import RequestError


def test_exports_into_one_folder_at_once_leave_the_whole_model_of_one(
    live_band: TinyBand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are written before the first takes its place; with --overwrite one replaces the other, else one wins."""
    place, count = files._replace_folder, 3
    for overwrite in (True, False):
        barrier, outcomes = threading.Barrier(count), []
        target = tmp_path / f"model-{overwrite}"

        def place_together(*arguments: Any, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(300)
            place(*arguments)

        def work(target: Path = target, overwrite: bool = overwrite, outcomes: list[str] = outcomes) -> None:
            try:
                export_band(live_band, target, overwrite)
                outcomes.append("written")
            except RequestError as error:
                outcomes.append(str(error))

        monkeypatch.setattr(files, "_replace_folder", place_together)
        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        refused = sorted(outcomes)[: 0 if overwrite else count - 1]
        assert all("already holds a model" in outcome for outcome in refused), outcomes
        assert sorted(outcomes)[len(refused) :] == ["written"] * (count - len(refused))
        assert len(model_folder.read_model_folder(target).networks) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-False", "model-True"]


def test_a_model_that_is_moved_away_meanwhile_is_no_strange_folder(
    live_band: TinyBand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another export moves the model away between two looks at it, which is the moment in which it replaces it."""
    target, is_file, listed = tmp_path / "model", Path.is_file, os.listdir
    export_band(live_band, target, overwrite=False)

    def away() -> None:
        if target.exists():
            target.rename(tmp_path / "moved")

    def look(path: Path) -> bool:
        if path.parent == target:
            away()
        return is_file(path)

    def names(path: Any) -> list[str]:
        found = listed(path)
        if Path(path) == target:
            away()
        return found

    monkeypatch.setattr(Path, "is_file", look)
    monkeypatch.setattr(files.os, "listdir", names)
    export_band(live_band, target, overwrite=True)
    assert "config.json" in listed(target)


def test_exported_files_have_the_mode_of_the_umask(live_band: TinyBand, tmp_path: Path) -> None:
    for umask in (0o022, 0o077):
        before = os.umask(umask)
        try:
            target = tmp_path / f"model-{umask}"
            export_band(live_band, target, overwrite=False)
        finally:
            os.umask(before)
        modes = {path.stat().st_mode & 0o777 for path in target.rglob("*") if path.is_file()}
        assert modes == {0o666 & ~umask}


def export_band(band: TinyBand, target: Path, overwrite: bool) -> None:
    from hafm_lightning.accompanist.stage_network import networks_from_checkpoints, tokenizers_folder
    from hafm_lightning.tokenizers import load_tokenizers

    files = band.files()
    networks = networks_from_checkpoints(files["semantic"], files["coarse"], files["fine"], 3)
    tokenizers = load_tokenizers(tokenizers_folder(networks, files.get("tokenizers")))
    model_folder.write_model_folder(target, networks, tokenizers, overwrite=overwrite)
