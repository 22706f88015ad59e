"""Bands of other stages, precisions and styles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_band import TinyBand, make_band, sing
from tiny_models import tiny_config, tiny_model

from hafm_lightning import Accompanist
from hafm_lightning.accompanist import stage_network as networks
from hafm_lightning.errors import RequestError
from hafm_lightning.kernels.cpu import processor
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.token_model import TokenModel, TokenModelConfig
from hafm_lightning.tokenizers import Tokenizers


def test_two_stages_only_when_asked_decode_four_codebooks(live_band: TinyBand) -> None:
    band = Accompanist.from_checkpoints(**live_band.files(fine=None), stages=2, precision="fp32")
    take = band.accompany(sing(0.4, 24000), seed=1)
    assert "instrumental_fine" not in take.tokens
    assert take.record["settings"]["stages"] == 2
    coarse = torch.from_numpy(take.tokens["instrumental_coarse"])[None]
    decoded = band.tokenizers.acoustic.decode(coarse)[0].numpy()
    assert np.corrcoef(decoded, take.instrumental.samples[0])[0, 1] > 0.999


@pytest.mark.cpu
def test_auto_follows_processor_and_size(monkeypatch: pytest.MonkeyPatch, live_band: TinyBand) -> None:
    cpu = torch.device("cpu")
    with torch.device("meta"):
        large = SimpleNamespace(model=TokenModel(TokenModelConfig(("vocal_semantic",), "instrumental_semantic")))
    small = SimpleNamespace(model=tiny_model(tiny_config()))
    packed = ("packed fp32", "int8 rows fp32")
    everything, avx2, arm = processor.OPERATIONS, (*packed, "step fp32", "step bf16", "step int8"), ("step int8",)
    for instructions, operations, expected in (
        (True, everything, ["int8", "bf16", "bf16"]),
        (True, packed, ["fp32", "fp32", "fp32"]),  # instructions alone do not help
        (False, avx2, ["int8", "fp32", "fp32"]),
        (False, arm, ["int8", "fp32", "fp32"]),
        (False, ("packed fp32",), ["fp32", "fp32", "fp32"]),
        (False, (), ["fp32", "fp32", "fp32"]),
    ):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=instructions: has, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        monkeypatch.setattr(processor, "has", lambda operation, operations=operations: operation in operations)
        several = ([large, large], [large, small], [])
        assert [networks.pick_precision("auto", cpu, some) for some in several] == [(best, None) for best in expected]
        assert networks.pick_precision("fp32", cpu, [large]) == ("fp32", None)
        for precision in ("bf16", "int8"):
            chosen, note = networks.pick_precision(precision, cpu, [large])
            assert chosen == precision
            assert (note is None) == (operations is everything)
            if note is not None:
                assert note.startswith(f"precision {precision}: ")
                fast = f"step {precision}" in operations or (precision == "int8" and "int8 rows fp32" in operations)
                assert ("steps read" in note) == fast
                assert "\n" not in note
    with pytest.raises(RequestError, match="int8 is for CPUs"):
        networks.pick_precision("int8", torch.device("cuda"), [large])


@pytest.mark.cpu
@pytest.mark.parametrize("had", [processor.OPERATIONS, ("packed fp32",), ()], ids=["as found", "fp32 alone", "nothing"])
def test_every_precision_sings(live_band: TinyBand, had: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    found = processor.has
    monkeypatch.setattr(processor, "has", lambda operation: operation in had and found(operation))
    for precision in ("fp32", "bf16", "int8"):
        band = Accompanist.from_checkpoints(**live_band.files(), device="cpu", precision=precision)
        take = band.accompany(sing(0.2, 24000))
        assert take.record["machine"]["precision"] == precision
        if precision != "fp32" and not had:
            assert band.precision_note is not None
            assert "as slowly as fp32" in band.precision_note
        assert np.isfinite(take.mix.samples).all()


def test_a_style_is_a_condition_by_name(
    live_band: TinyBand, tiny_pair: tuple[Path, Tokenizers], tmp_path: Path
) -> None:
    styled = make_band(tmp_path, *tiny_pair, "live", conditions=["vocal_semantic", "instrumental_semantic", "style"])
    checkpoint = torch.load(styled.coarse, weights_only=True)
    checkpoint["hafm_lightning"]["styles"] = ["rock", "jazz"]
    torch.save(checkpoint, styled.coarse)
    band = Accompanist.from_checkpoints(**styled.files(), precision="fp32")
    vocal = sing(0.4, 24000)
    options = replace(SamplingOptions(), temperature=0.0, guidance=1.0)
    coarse = {
        style: band.accompany_batch([vocal], seeds=[0], options=options, style=style)[0].tokens["instrumental_coarse"]
        for style in (None, "rock", "jazz")
    }
    assert (coarse["rock"] != coarse["jazz"]).any()
    assert (coarse["rock"] != coarse[None]).any()
    with pytest.raises(RequestError, match=r"'polka'.*rock, jazz"):
        band.accompany(vocal, style="polka")


def test_a_style_of_the_shards_changes_what_is_played(styled_checkpoints: dict[str, Path]) -> None:
    band = Accompanist.from_checkpoints(**styled_checkpoints, device="cpu", precision="fp32")
    assert band.styles == ("unknown", "Jazz", "Rock")
    vocal = sing(0.4, 24_000)
    takes = {style: band.accompany(vocal, style=style, guidance=50.0, top_k=None) for style in (None, "Rock", "Jazz")}
    tokens = {style: take.tokens["instrumental_coarse"] for style, take in takes.items()}
    assert (tokens["Rock"] != tokens["Jazz"]).any()
    assert (tokens["Rock"] != tokens[None]).any()
    assert takes["Rock"].record["settings"]["style"] == "Rock"
    np.testing.assert_array_equal(  # asked for again, it is the same
        band.accompany(vocal, style="Rock", guidance=50.0, top_k=None).tokens["instrumental_coarse"], tokens["Rock"]
    )
    with pytest.raises(RequestError, match=r"unknown style 'Polka'.*unknown, Jazz, Rock"):
        band.accompany(vocal, style="Polka")


def test_stages_that_number_styles_differently_are_refused(styled_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    changed = torch.load(styled_checkpoints["coarse"], weights_only=True)
    changed["hafm_lightning"]["styles"] = ["unknown", "Rock", "Jazz"]
    torch.save(changed, tmp_path / "coarse.ckpt")
    with pytest.raises(
        RequestError, match=r"the coarse stage .* was trained with different styles than the semantic stage"
    ):
        Accompanist.from_checkpoints(**styled_checkpoints | {"coarse": tmp_path / "coarse.ckpt"})
