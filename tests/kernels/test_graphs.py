"""Decoding on CUDA: steps that are functions of tensors alone, recorded as graphs; and decoding without float64.

The step function runs here without graphs; the graphs themselves need a GPU.
"""

from dataclasses import replace

import pytest
import torch
from tiny_decoding import EVERY, FRAMES, GUIDED, PATTERNS, TARGET, record_logits, setting
from tiny_models import tiny_config, tiny_model, tiny_streams
from torch.utils._python_dispatch import TorchDispatchMode

from hafm_lightning.kernels.base import swap
from hafm_lightning.kernels.cuda.graphs import GraphDecoder, GraphTokenModel, StaticDecoder
from hafm_lightning.modeling import relative_position
from hafm_lightning.modeling.decoding import Decoder, decoder_for, generate
from hafm_lightning.modeling.token_model import TokenModel


@pytest.fixture
def recorded_rows(monkeypatch):
    """Logits of every row before guidance, in order, each ``[rows B, W, V]`` (``[rows B, T, V]``)."""
    return record_logits(monkeypatch, "guided")


class Replayed(StaticDecoder):
    """What Python knew when a codebook's step was first computed is what it knows at all later ones, as in a graph."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.recorded = {}

    def _compute(self, codebook):
        if self.step == 0:
            super()._compute(codebook)
            return
        now, self.step = self.step, self.recorded.setdefault(codebook, self.step)
        super()._compute(codebook)
        self.step = now


@pytest.mark.parametrize("known", [0, 1])
@pytest.mark.parametrize("kind", [StaticDecoder, Replayed])
@pytest.mark.parametrize(("pattern", "conditioning", "bias"), EVERY)
def test_steps_of_static_shape_depend_on_tensors_alone(pattern, conditioning, bias, kind, known, recorded_rows):
    """Step number, grid, conditions and cache are tensors; more aligned conditions go into the same one."""
    model, streams, conditions = setting(pattern, conditioning, bias)
    prefix = streams[TARGET][:, :, :known] if known else None
    runs = []
    for decoder in (
        Decoder(model, FRAMES, GUIDED, [0, 1], prefix=prefix),
        kind(model, FRAMES, GUIDED, [0, 1], prefix=prefix),
    ):
        recorded_rows.clear()
        decoder.condition(conditions)
        decoder.advance(2)
        if conditioning == "aligned":
            decoder.condition(conditions)
        runs.append((decoder.advance(FRAMES), torch.stack(recorded_rows)))
    assert torch.equal(runs[0][0], runs[1][0])
    torch.testing.assert_close(runs[0][1], runs[1][1], atol=1e-5, rtol=1e-5)
    if kind is Replayed:
        assert len(decoder.recorded) == (4 if pattern == "flattened" else 1)


def test_the_decoder_follows_the_class_of_the_network():
    model, _, _ = setting("delay")
    assert decoder_for(model) is Decoder
    swap(model, {TokenModel: GraphTokenModel})
    assert decoder_for(model) is GraphDecoder


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("known", [0, 1])
@pytest.mark.parametrize(("pattern", "conditioning", "bias"), EVERY)
def test_graphs_give_the_tokens_of_plain_steps_on_cuda(pattern, conditioning, bias, known):
    model, streams, conditions = setting(pattern, conditioning, bias)
    model, prefix = model.cuda(), streams[TARGET][:, :, :known] if known else None
    runs = []
    for kind in (Decoder, GraphDecoder):
        decoder = kind(model, FRAMES, GUIDED, [0, 1], prefix=prefix)
        decoder.condition(conditions)
        decoder.advance(2)
        if conditioning == "aligned":
            decoder.condition(conditions)
        runs.append(decoder.advance(FRAMES))
    assert torch.equal(*runs)
    assert len(decoder._graphs) == (4 if pattern == "flattened" else 1)


class WithoutFloat64(TorchDispatchMode):
    """A device that has no float64, as Apple's."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        assert getattr(result, "dtype", None) != torch.float64, function
        return result


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", [*PATTERNS, "nonautoregressive"])
def test_generation_needs_no_float64(pattern, conditioning):
    model = tiny_model(tiny_config(pattern, conditioning), kernels="none")
    streams = tiny_streams(model.layout, FRAMES)
    relative_position._bucket_edges(16, relative_position.MAX_DISTANCE_TICKS)  # made once, on the CPU
    for buckets in (16, 32):
        relative_position._bucket_edges(buckets, relative_position.MAX_DISTANCE_STEPS)
    with WithoutFloat64():
        generate(model, streams, replace(GUIDED, top_p=0.9), [0, 1], prefix=streams[TARGET][:, :, :2])
