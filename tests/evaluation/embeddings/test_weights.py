"""Weights are data: hashes are checked, and nothing in a file is run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from embedding_sounds import sha256

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings.vggish import VGGishEmbedding
from hafm_lightning.evaluation.embeddings.weights import download


class RunsWhenLoaded:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (self.marker,))


def test_pickles_with_code_are_refused_without_running(tmp_path: Path) -> None:
    torch.save({"weight": RunsWhenLoaded(str(tmp_path / "ran"))}, tmp_path / "hostile.pth")
    with pytest.raises(RequestError, match="without running it"):
        VGGishEmbedding(tmp_path / "hostile.pth", sha256(tmp_path / "hostile.pth"))
    assert not (tmp_path / "ran").exists()


def test_download_keeps_nothing_of_a_wrong_file(tmp_path: Path) -> None:
    (tmp_path / "source.bin").write_bytes(b"other content")
    with pytest.raises(RequestError, match="expected 00"):
        download((tmp_path / "source.bin").as_uri(), tmp_path / "kept" / "file.bin", "00")
    assert not (tmp_path / "kept").exists()
    with pytest.raises(RequestError, match="cannot download"):
        download((tmp_path / "absent.bin").as_uri(), tmp_path / "kept" / "file.bin", "00")
