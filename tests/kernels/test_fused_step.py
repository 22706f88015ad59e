"""Whole decodes through the fused step in Triton's interpreter, beside PyTorch's operations on the same network.

The kernels by themselves: ``test_step_kernels.py``. Both run by ``make test-triton``, in a process of their own.
"""

import os
import warnings
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
    from hafm_lightning.kernels.cuda.decoding import step_kernels

GREEDY = SamplingOptions(temperature=0)
SETTINGS = StepSettings()
"""Shared by these tests: a trial takes as long as two steps."""
ODD = BackboneConfig(layers=2, width=36, heads=3, feedforward=25)
"""No width is a power of two, and the inner one is odd."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several parts in short sequences; large tiles: the interpreter's time is that of programs."""
    monkeypatch.setattr(step_trial, "settings", SETTINGS)
    monkeypatch.setattr(fused_step, "SHORT", 16)
    monkeypatch.setattr(fused_step, "NUMBERS_AT_ONCE", 256)
    monkeypatch.setattr(fused_step, "processors", lambda device: 16)
    monkeypatch.setattr(graphs, "SHORTEST", 16)
    monkeypatch.setattr(ProductTiles, "of", classmethod(lambda cls, *_: cls(16, 1024, 64, 4, 2)))


def decode(kind, model, conditions, options, prefix, until=FRAMES, seeds=(0, 1)):
    decoder = kind(model, FRAMES, options, seeds[: len(prefix)], prefix=prefix)
    decoder.condition(conditions)
    codes = decoder.advance(until)
    assert kind is Decoder or decoder.fused is not None
    return codes


@pytest.mark.parametrize(
    ("pattern", "conditioning", "bias", "options", "known", "until"),
    [
        ("flattened", "prefix", "time", GREEDY, 3, 5),
        ("flattened", "aligned", "index", GUIDED, 3, 5),
        ("delay", "prefix", "index", GUIDED, 1, 4),
        ("delay", "aligned", "time", GREEDY, 0, 3),
        ("parallel", "aligned", "index", GUIDED, 0, 6),
    ],
)
def test_the_tokens_are_those_of_plain_steps(pattern, conditioning, bias, options, known, until):
    model, streams, conditions = setting(pattern, conditioning, bias, batch=1, backbone=ODD)
    given = (model, conditions, options, streams[TARGET][:, :, :known], until)
    assert torch.equal(decode(Decoder, *given), decode(FusedDecoder, *given))


def test_all_steps_of_a_long_cache_share_few_kinds_of_steps(monkeypatch):
    """What Python knew when a kind of step first ran is what it knows at all later ones, as in a graph."""
    model, streams, conditions = setting("flattened", "aligned", batch=1)
    first = {}

    class Replayed(FusedDecoder):
        def _run(self, fused, parts):
            now, self.step = self.step, first.setdefault(parts, self.step)
            super()._run(fused, parts)
            self.step = now

    given = (conditions, GREEDY, streams[TARGET][:, :, :3], 5)
    assert torch.equal(decode(Replayed, model, *given), decode(Decoder, model, *given))
    assert first == {1: 12, 2: 16}


@pytest.mark.parametrize("options", [GUIDED, replace(GUIDED, guidance=1.0, top_p=0.8)], ids=str)
def test_a_clip_does_not_depend_on_its_batch(options):
    model, streams, conditions = setting("delay", "aligned")
    prefix = streams[TARGET][:, :, :3]
    together = decode(FusedDecoder, model, conditions, options, prefix, 4, [5, 6])
    assert torch.equal(together, decode(Decoder, model, conditions, options, prefix, 4, [5, 6]))
    alone = {name: ids[1:] for name, ids in conditions.items()}
    assert torch.equal(decode(FusedDecoder, model, alone, options, prefix[1:], 4, [6])[0], together[1])


# --- the trial before the first use --------------------------------------------------------------------------


class Wrong:
    """A kernel that runs, and then spoils one of the tensors that it was given."""

    def __init__(self, kernel, spoil):
        self.kernel, self.spoil = kernel, spoil

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            self.kernel[grid](*arguments, **constants)
            self.spoil(arguments)

        return launch


def spoil_past_key(arguments):
    arguments[3][:, :, int(arguments[9]) - 2] = 0  # without a prefix, steps are places of the cache


def spoil_past_token(arguments):
    arguments[2][:, :, int(arguments[3]) - 1] += 1


def spoil_token(arguments):
    arguments[2][:, :, int(arguments[3])] += 1


@pytest.mark.parametrize(
    ("kernel", "spoil", "options", "reason"),
    [
        ("input_kernel", lambda arguments: arguments[7].neg_(), GREEDY, "its logits are"),
        ("linear_kernel", lambda arguments: arguments[4].mul_(1.001), GREEDY, "its logits are"),
        ("join_kernel", lambda arguments: arguments[1].neg_(), GREEDY, "its logits are"),
        ("attention_kernel", lambda arguments: arguments[4].add_(0.01), GREEDY, "its keys and values are"),
        ("attention_kernel", spoil_past_key, GREEDY, "it writes to other steps of the cache"),
        ("draw_kernel", spoil_token, GREEDY, "it draws"),
        ("draw_kernel", spoil_token, GUIDED, "it draws"),
        ("draw_kernel", spoil_past_token, GREEDY, "it writes tokens of other steps"),
    ],
)
def test_a_wrong_kernel_is_found_and_leaves_decoding_to_pytorch(kernel, spoil, options, reason, monkeypatch):
    model, streams, conditions = setting("flattened", "aligned", batch=1)
    monkeypatch.setattr(step_trial, "settings", StepSettings())
    monkeypatch.setattr(step_kernels, kernel, Wrong(getattr(step_kernels, kernel), spoil))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        codes = []
        for kind in (Decoder, FusedDecoder, FusedDecoder):
            decoder = kind(model, FRAMES, options, [0], prefix=streams[TARGET][:, :, :1])
            decoder.condition(conditions)
            codes.append(decoder.advance(FRAMES))
    assert decoder.fused is None
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2])
    (line,) = [str(warning.message) for warning in caught]
    assert reason in line


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_trial_leaves_decoder_and_random_numbers_as_they_were_and_is_kept(dtype, monkeypatch):
    monkeypatch.setattr(step_trial, "settings", StepSettings())
    model, streams, conditions = setting("parallel", "aligned", batch=1)
    decoder = FusedDecoder(model.to(dtype), FRAMES, GREEDY, [0], prefix=streams[TARGET][:, :, :2])
    decoder.condition(conditions)
    with torch.inference_mode():
        decoder._prefill()
    tensors = (decoder.grid, decoder.cache.entries, decoder.clocked)
    before, numbers = [tensor.clone() for tensor in tensors], torch.get_rng_state()
    assert decoder.fused is not None
    assert all(torch.equal(*pair) for pair in zip(before, tensors, strict=True))
    assert torch.equal(torch.get_rng_state(), numbers)
    monkeypatch.setattr(step_trial, "trial", None)
    assert step_trial.settings.step_of(decoder, decoder._index) is not None


def test_bfloat16_stays_beside_float32():
    """Logits of one step; rows of weights are rounded in both, sums in neither."""
    model, streams, conditions = setting("flattened", "aligned", batch=1, backbone=ODD)
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        model = model.to(torch.bfloat16).to(dtype)
        decoder = FusedDecoder(model, FRAMES, GREEDY, [0], prefix=streams[TARGET][:, :, :5])
        decoder.condition(conditions)
        decoder.advance(FRAMES)
        found.append(decoder.fused.last_logits.clone())
    assert float((found[0] - found[1]).abs().max()) < 0.05 * float(found[1].abs().max())
