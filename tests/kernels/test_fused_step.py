"""Whole decodes through the fused step in Triton's interpreter, beside PyTorch's operations on the same network.

The kernels by themselves: ``test_step_kernels.py``. Both run by ``make test-triton``, in a process of their own.
"""

import os
from dataclasses import replace

import pytest
import torch
from tiny_decoding import FRAMES, GUIDED, TARGET, setting

from hafm_lightning.kernels.cuda import graphs
from hafm_lightning.kernels.cuda.decoding import fused_step, step_trial
from hafm_lightning.kernels.cuda.decoding.fused_step import ProductTiles
from hafm_lightning.kernels.cuda.decoding.step_trial import StepSettings
from hafm_lightning.kernels.cuda.graphs import FusedDecoder
from hafm_lightning.modeling.decoding import Decoder
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.transformer import BackboneConfig

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not interpreted, reason="Triton's interpreter has a process of its own: make test-triton"
)
if interpreted:
    pytest.importorskip("triton", reason="the extra triton is not installed")

GREEDY = SamplingOptions(temperature=0)
ODD = BackboneConfig(layers=2, width=36, heads=3, feedforward=25)
"""No width is a power of two, and the inner one is odd."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several parts in short sequences; large tiles, since the interpreter's time is that of programs."""
    monkeypatch.setattr(step_trial, "settings", StepSettings())
    monkeypatch.setattr(fused_step, "SHORT", 16)
    monkeypatch.setattr(fused_step, "NUMBERS_AT_ONCE", 256)
    monkeypatch.setattr(fused_step, "processors", lambda device: 16)
    monkeypatch.setattr(graphs, "SHORTEST", 16)
    monkeypatch.setattr(ProductTiles, "of", classmethod(lambda cls, *_: cls(16, 128, 64, 4, 2)))


def decode(kind, model, conditions, options, seeds, prefix=None, twice=False):
    decoder = kind(model, FRAMES, options, seeds, prefix=prefix)
    decoder.condition(conditions)
    if twice:
        decoder.advance(FRAMES - 1)
        decoder.condition(conditions)
    codes = decoder.advance(FRAMES)
    assert kind is Decoder or decoder.fused is not None
    return codes


@pytest.mark.parametrize("options", [GREEDY, GUIDED], ids=["greedy", "drawn"])
@pytest.mark.parametrize(
    ("pattern", "conditioning", "bias", "known"),
    [
        ("flattened", "prefix", "time", 4),
        ("flattened", "aligned", "index", 3),
        ("delay", "prefix", "index", 1),
        ("delay", "aligned", "time", 0),
        ("parallel", "aligned", "index", 0),
    ],
)
def test_the_tokens_are_those_of_plain_steps(pattern, conditioning, bias, known, options):
    model, streams, conditions = setting(pattern, conditioning, bias, backbone=ODD)
    given = (conditions, options, [0, 1], streams[TARGET][:, :, :known] if known else None, conditioning == "aligned")
    assert torch.equal(decode(Decoder, model, *given), decode(FusedDecoder, model, *given))


def test_all_steps_of_a_long_cache_share_few_kinds_of_steps(monkeypatch):
    """What Python knew when a kind of step first ran is what it knows at all later ones, as in a graph."""
    model, streams, conditions = setting("flattened", "aligned")
    first, seen = {}, []
    logits = fused_step.FusedStep.logits

    def launched(self, parts):
        seen.append(parts)
        return logits(self, parts)

    class Replayed(FusedDecoder):
        def _run(self, fused, parts):
            now, self.step = self.step, first.setdefault(parts, self.step)
            super()._run(fused, parts)
            self.step = now

    monkeypatch.setattr(fused_step.FusedStep, "logits", launched)
    given = (conditions, GREEDY, [0, 1], streams[TARGET][:, :, :2])
    assert torch.equal(decode(Replayed, model, *given), decode(Decoder, model, *given))
    assert first == {1: 8, 2: 16}
    assert set(seen) == {1, 2}


@pytest.mark.parametrize("options", [GUIDED, replace(GUIDED, guidance=1.0), replace(GUIDED, top_p=0.8)], ids=str)
def test_a_clip_does_not_depend_on_its_batch(options):
    model, _, conditions = setting("delay", "aligned", batch=3)
    together = decode(FusedDecoder, model, conditions, options, [5, 6, 7])
    assert torch.equal(together, decode(Decoder, model, conditions, options, [5, 6, 7]))
    alone = {name: ids[1:2] for name, ids in conditions.items()}
    assert torch.equal(decode(FusedDecoder, model, alone, options, [6])[0], together[1])


def test_bfloat16_stays_beside_float32():
    """Logits of one step; rows of weights are rounded in both, sums in neither."""
    model, streams, conditions = setting("flattened", "aligned", backbone=ODD)
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        model = model.to(torch.bfloat16).to(dtype)
        decoder = FusedDecoder(model, FRAMES, GREEDY, [0, 1], prefix=streams[TARGET][:, :, :5])
        decoder.condition(conditions)
        decoder.advance(FRAMES)
        found.append(decoder.fused.last_logits.clone())
    assert float((found[0] - found[1]).abs().max()) < 0.05 * float(found[1].abs().max())
