"""Stages are read from their files and refused by name if they cannot make one model with these tokenizers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_band import TinyBand, make_band
from tiny_models import tiny_config, tiny_model

from hafm_lightning import Accompanist
from hafm_lightning.accompanist.stage_network import style_id, style_names
from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokens import NULL


def test_swapped_and_missing_stages_are_refused_by_name(live_band: TinyBand) -> None:
    with pytest.raises(RequestError, match=r"CoarseStage.*semantic stage must be a SemanticStage"):
        Accompanist.from_checkpoints(**live_band.files(semantic=live_band.coarse, coarse=live_band.semantic))
    with pytest.raises(RequestError, match=r"no such checkpoint"):
        Accompanist.from_checkpoints(**live_band.files(coarse="/nowhere/coarse.ckpt"))
    with pytest.raises(RequestError, match=r"--stages 2"):
        Accompanist.from_checkpoints(**live_band.files(fine=None))


def test_stages_of_other_tokenizers_are_refused_by_name(
    live_band: TinyBand, tiny_pair: tuple[Path, Tokenizers], tmp_path: Path
) -> None:
    checkpoint = torch.load(live_band.fine, weights_only=True)
    checkpoint["hafm_lightning"]["tokenizers"]["acoustic"]["sha256"] = "f" * 64
    torch.save(checkpoint, tmp_path / "fine.ckpt")
    with pytest.raises(
        RequestError, match=r"the fine stage .* different tokenizer than the semantic stage.*acoustic\.sha256"
    ):
        Accompanist.from_checkpoints(**live_band.files(fine=tmp_path / "fine.ckpt"))

    folder, pair = tiny_pair
    foreign = make_band(tmp_path / "foreign", folder, _with_other_hash(pair), "live")
    with pytest.raises(
        RequestError, match=r"semantic stage .* different tokenizer than the given tokenizers.*acoustic\.sha256"
    ):
        Accompanist.from_checkpoints(**foreign.files(), tokenizers=pair)


def _with_other_hash(pair: Tokenizers) -> Any:
    class Renamed:
        def identities(self) -> dict[str, Any]:
            identities = pair.identities()
            return {**identities, "acoustic": {**identities["acoustic"], "sha256": "0" * 64}}

    return Renamed()


def test_tokenizers_that_have_moved_are_asked_for(
    live_band: TinyBand, tiny_pair: tuple[Path, Tokenizers], tmp_path: Path
) -> None:
    _, pair = tiny_pair
    moved = make_band(tmp_path / "moved", tmp_path / "gone", pair, "live")
    with pytest.raises(RequestError, match="--tokenizers"):
        Accompanist.from_checkpoints(**moved.files())
    band = Accompanist.from_checkpoints(**moved.files(), tokenizers=live_band.tokenizers)
    assert band.tokenizers.identities() == pair.identities()


def test_a_device_that_is_not_there_is_refused(live_band: TinyBand) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(RequestError, match="cuda"):
        Accompanist.from_checkpoints(**live_band.files(), device="cuda")


def test_a_style_of_a_model_without_styles_is_refused() -> None:
    plain: Any = SimpleNamespace(
        model=tiny_model(tiny_config(conditions=("vocal_semantic",))), metadata={"styles": ["rock"]}
    )
    assert style_names([plain]) == []
    assert style_id([plain], [], None) == NULL
    with pytest.raises(RequestError, match="style 'rock' cannot be used: this model has no styles"):
        style_id([plain], style_names([plain]), "rock")
