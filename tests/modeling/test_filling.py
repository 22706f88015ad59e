"""Filling stretch after stretch, against one pass in which each stretch may see itself and what came before."""

import copy

import pytest
import torch
from tiny_decoding import GUIDED, PLAIN
from tiny_models import tiny_config, tiny_model, tiny_streams

from hafm_lightning.kernels.cpu import processor
from hafm_lightning.kernels.cpu.packed import pack
from hafm_lightning.modeling import filling
from hafm_lightning.modeling.attention import PairBias, WholeSequence
from hafm_lightning.modeling.filling import Filler, fill
from hafm_lightning.modeling.relative_position import StepPositions
from hafm_lightning.modeling.sampling import SamplingOptions, choose
from hafm_lightning.modeling.transformer import BackboneConfig

CONDITION = "instrumental_fine"
STRETCHES = (6, 3, 6, 9)
FRAMES, CONTEXT = sum(STRETCHES), 5


@pytest.fixture
def model(kernels):
    backbone = BackboneConfig(width=32, layers=2, heads=2, feedforward=50)
    config = tiny_config("nonautoregressive", "aligned", conditions=(CONDITION,), backbone=backbone, look_behind_s=0.03)
    return tiny_model(config)


@pytest.fixture
def conditions(model):
    return {CONDITION: tiny_streams(model.layout, FRAMES)[CONDITION]}


@pytest.fixture
def recorded(monkeypatch):
    """Logits of every draw."""
    seen = []

    def record(logits, uniform, options):
        seen.append(logits.clone())
        return choose(logits, uniform, options)

    monkeypatch.setattr(filling, "choose", record)
    return seen


def filled(model, conditions, options=PLAIN, context=CONTEXT):
    """All stretches, without frames beyond the new ones; every condition frame up to there is heard."""
    filler, parts, first = Filler(model, options, context), [], 0
    for number, frames in enumerate(STRETCHES):
        first += frames
        heard = {name: ids[:, :, :first] for name, ids in conditions.items()}
        parts.append(filler.fill(heard, [number, number + 9], frames, frames))
        assert filler.known <= context + frames
    return torch.cat(parts, dim=2)


def seen_by_stretches(model):
    """The mixer of one pass in which a stretch sees itself and the ``CONTEXT`` frames before it."""
    steps = torch.arange(FRAMES)
    rows = model.relative_position.rows(StepPositions.of(model.layout.plan(FRAMES), "cpu"), steps, steps).clone()
    first = 0
    for frames in STRETCHES:
        here = slice(first, first + frames)
        rows[here, first + frames :] = model.relative_position.masked_row
        rows[here, : max(0, first - CONTEXT)] = model.relative_position.masked_row
        first += frames
    return WholeSequence(PairBias.of(rows, model.relative_position.masked_row), model.relative_position.table())


@torch.no_grad()
def test_stretches_equal_one_pass_in_which_each_sees_no_later_one(model, conditions, recorded):
    tokens = filled(model, conditions)
    first = 0
    ends = [sum(STRETCHES[: n + 1]) for n in range(len(STRETCHES))]
    for number, (frames, last) in enumerate(zip(STRETCHES, ends, strict=True)):
        # a frame's conditions are those that its own stretch heard
        clocked = torch.cat(
            [
                model.frame_conditions({CONDITION: conditions[CONDITION][:, :, :end]}, end)[:, end - size :]
                for size, end in zip(STRETCHES, ends, strict=True)
            ],
            dim=1,
        )
        for k in range(4):
            x = model.filling(tokens, clocked, k)
            expected = model.head(model.backbone(x, seen_by_stretches(model)), k)[:, first:last]
            torch.testing.assert_close(recorded[4 * number + k], expected, atol=1e-5, rtol=1e-5)
        first += frames


def test_one_stretch_equals_filling_the_whole(model, conditions):
    for options in (PLAIN, GUIDED, SamplingOptions(guidance=0.0)):
        whole = fill(model, conditions, options, [4, 5], FRAMES)
        assert torch.equal(Filler(model, options, CONTEXT).fill(conditions, [4, 5], FRAMES, FRAMES), whole)


def test_frames_beyond_the_new_ones_are_context_and_not_kept(model, conditions):
    whole = fill(model, conditions, GUIDED, [4, 5], FRAMES)
    filler = Filler(model, GUIDED, CONTEXT)
    assert torch.equal(filler.fill(conditions, [4, 5], FRAMES, 7), whole[:, :, :7])
    assert filler.known == 7
    filler.fill(conditions, [6, 7], FRAMES - 7, 3)
    assert filler.known == CONTEXT + 3


@pytest.mark.cpu
@pytest.mark.parametrize("plain", [False, True])
def test_a_packed_network_fills_the_same(model, conditions, recorded, plain, monkeypatch):
    if plain:
        monkeypatch.setattr(processor, "has", lambda operation: False)
    expected = filled(model, conditions, GUIDED)
    logits = recorded.copy()
    recorded.clear()
    packed = copy.deepcopy(model)
    pack(packed, "fp32", kernel=False)
    assert torch.equal(filled(packed, conditions, GUIDED), expected)
    for found, true in zip(recorded, logits, strict=True):
        torch.testing.assert_close(found, true, atol=3e-5, rtol=3e-5)


def test_networks_of_another_kind_are_refused():
    for pattern, conditioning in (("delay", "aligned"), ("nonautoregressive", "prefix")):
        with pytest.raises(ValueError, match="filled by stretches"):
            Filler(tiny_model(tiny_config(pattern, conditioning)), PLAIN, CONTEXT)
