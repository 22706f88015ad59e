"""Embeddings by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings import EmbeddingSource, load_embedding


def test_requests_that_cannot_be_served_say_why(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"choose one of logmel, vggish"):
        load_embedding(EmbeddingSource("vgish"))
    with pytest.raises(RequestError, match="'logmel' does not take layer, weights"):
        load_embedding(EmbeddingSource("logmel", weights="x", layer=3))
    with pytest.raises(RequestError, match="the folder does not exist"):
        load_embedding(EmbeddingSource("clap", str(tmp_path / "absent")))
    with pytest.raises(RequestError, match=r"holds none of model\.safetensors"):
        load_embedding(EmbeddingSource("clap", str(tmp_path)))
