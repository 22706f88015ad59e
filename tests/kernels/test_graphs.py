"""Decoding on CUDA: steps that are functions of tensors alone, recorded as graphs; and decoding without float64.

The step function runs here without graphs, in PyTorch's operations, which stand in where Triton's kernels cannot run.
The graphs themselves need a GPU.
"""

import warnings
from dataclasses import replace

import pytest
import torch
from tiny_decoding import EVERY, FRAMES, GUIDED, PATTERNS, TARGET, record_logits, setting
from tiny_models import tiny_config, tiny_model, tiny_streams
from torch.utils._python_dispatch import TorchDispatchMode

from hafm_lightning.kernels.base import swap
from hafm_lightning.kernels.cuda import graphs
from hafm_lightning.kernels.cuda.decoding import step_trial
from hafm_lightning.kernels.cuda.decoding.step_trial import PlainStep, StepSettings
from hafm_lightning.kernels.cuda.graphs import FusedDecoder, GraphDecoder, GraphTokenModel, StaticDecoder
from hafm_lightning.kernels.cuda.triton_blocks import Chip
from hafm_lightning.modeling import relative_position
from hafm_lightning.modeling.decoding import Decoder, decoder_for, generate
from hafm_lightning.modeling.token_model import TokenModel


@pytest.fixture
def recorded_rows(monkeypatch):
    """Logits of every row before guidance, in order, each ``[rows B, W, V]`` (``[rows B, T, V]``)."""
    return record_logits(monkeypatch, "guided")


class Replayed(StaticDecoder):
    """What Python knew when a kind of step was first computed is what it knows at all later ones, as in a graph."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.recorded = {}

    def _compute(self, codebook):
        if self.step == 0:
            super()._compute(codebook)
            return
        now, self.step = self.step, self.recorded.setdefault((codebook, self.visible), self.step)
        super()._compute(codebook)
        self.step = now


@pytest.mark.parametrize("known", [0, 1])
@pytest.mark.parametrize("kind", [StaticDecoder, Replayed])
@pytest.mark.parametrize(("pattern", "conditioning", "bias"), EVERY)
def test_steps_of_static_shape_depend_on_tensors_alone(
    pattern, conditioning, bias, kind, known, recorded_rows, monkeypatch
):
    """Step number, grid, conditions and cache are tensors; more aligned conditions go into the same one."""
    monkeypatch.setattr(graphs, "SHORTEST", 4)
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
        assert {codebook for codebook, _ in decoder.recorded} == ({0, 1, 2, 3} if pattern == "flattened" else {0})
        for (_, visible), step in decoder.recorded.items():  # each reads no more than twice what is written
            written = decoder.plan.condition_steps + step + 1
            assert written <= visible <= min(max(4, 2 * written), decoder.plan.steps)


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
    assert decoder.fused is not None
    assert set(decoder._graphs) == {1}  # all codebooks, in one part of attention


OLD_CHIP = Chip("an old chip", 49152, (7, 5))


@pytest.mark.parametrize(
    "reason",
    [
        "the package triton is not installed",
        "compute capability 7.5",
        "no kernel image is available",
        "PassManager::run failed",
    ],
)
def test_without_triton_pytorchs_operations_stand_in_with_one_warning(reason, monkeypatch):
    """Where the package is missing, on an old chip, and where a kernel cannot be built; each is tried once."""
    model, streams, conditions = setting("delay")
    tried = []

    class Unbuildable:
        draws, kind = True, ()

        def __init__(self, decoder, index):
            tried.append(type(decoder))

        def parts(self, visible):
            return 1

        def logits(self, parts):
            raise RuntimeError(f"Triton Error [CUDA]: {reason}")

    usable = None if "installed" not in reason else reason
    chip = OLD_CHIP if "7.5" in reason else replace(OLD_CHIP, capability=(9, 0))
    monkeypatch.setattr(step_trial, "unusable", lambda device: usable)
    monkeypatch.setattr(step_trial, "settings", StepSettings(chip_of=lambda device: chip))
    monkeypatch.setattr(step_trial, "FusedStep", Unbuildable)
    prefix, found = streams[TARGET][:, :, :1], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kind in (Decoder, FusedDecoder, FusedDecoder):
            decoder = kind(model, FRAMES, GUIDED, [0, 1], prefix=prefix)
            decoder.condition(conditions)
            found.append(decoder.advance(FRAMES))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    (line,) = [str(warning.message) for warning in caught]
    assert chip.name in line
    assert reason in line
    assert tried.count(PlainStep) == (usable is None and chip is not OLD_CHIP)


def test_a_mistake_in_a_kernel_is_raised_and_leaves_the_tokens_as_they_were(monkeypatch):
    model, _, conditions = setting("delay")

    class Broken:
        draws, kind = True, ()

        def __init__(self, decoder, index):
            self.grid = decoder.grid

        def parts(self, visible):
            return 1

        def logits(self, parts):
            self.grid.fill_(1)
            raise ZeroDivisionError("a mistake in the kernel")

    monkeypatch.setattr(step_trial, "unusable", lambda device: None)
    monkeypatch.setattr(step_trial, "settings", StepSettings())
    monkeypatch.setattr(step_trial, "FusedStep", Broken)
    decoder = FusedDecoder(model, FRAMES, GUIDED, [0, 1])
    decoder.condition(conditions)
    before = decoder.grid.clone()
    with pytest.raises(ZeroDivisionError):
        decoder.advance(1)
    assert torch.equal(decoder.grid, before)


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
