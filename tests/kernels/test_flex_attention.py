"""FlexAttention against plain attention: in networks, for many lengths with Dynamo itself, and on a GPU."""

import warnings

import pytest
import torch
import yaml
from attention_cases import CASES, gradients, plain_attention, setting
from attention_kinds import attend
from fake_chip import TWINS, FakeChip, fails_first, network
from shipped import TRAINING, name_of
from tiny_models import TINY, louden, tiny_config, tiny_streams

from hafm_lightning import stages
from hafm_lightning.kernels.base import swap
from hafm_lightning.kernels.cuda import flex_attention
from hafm_lightning.kernels.cuda.flex_attention import FlexBias
from hafm_lightning.kernels.cuda.flex_tiles import FORWARD, Setting
from hafm_lightning.modeling.relative_position import StepPositions
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.tokens import TokenBatch


def test_checkpointed_layers_try_their_kernels_too(use):
    """The layer's hooks recompute what is saved in it, which may not happen while the kernels are tried."""
    chip = use(FakeChip(fails_first(1, "forward"), fails_first(1, "backward")))
    backbone = BackboneConfig(layers=2, width=16, heads=2, feedforward=24, checkpoint_layers=True)
    config = tiny_config("flattened", backbone=backbone)
    streams, found = tiny_streams(config.layout, 6), {}
    for kind in ("flex", "plain"):
        model = network(config, kind).train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(streams).square().mean().backward()
        found[kind] = [p.grad for p in model.parameters()]
    assert len(chip.tried) == 3
    for one, other in zip(found["flex"], found["plain"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_plain_bias_first_needed_in_inference_serves_training(use):
    use(FakeChip(forward=lambda options: False))
    config = tiny_config("flattened")
    model, streams = network(config, "flex"), tiny_streams(config.layout, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.inference_mode():
            expected = model(streams)
        output = model(streams)
        output.mean().backward()
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_every_shipped_stage_trains_without_a_kernel(path, use):
    """The loss and the gradients are those of ``kernels: none``."""
    chip = use(FakeChip(forward=lambda options: False))
    model = yaml.safe_load(path.read_text())["model"]
    kind, settings = getattr(stages, model["class_path"].rpartition(".")[2]), model["init_args"]
    settings = {name: value for name, value in settings.items() if name not in ("optimizer", "backbone")}
    found = {}
    for attention in ("flex", "plain"):
        stage = kind(**settings | {"backbone": TINY, "guidance_dropout": 0.0, "kernels": "none"})
        swap(stage, TWINS[attention])
        louden(stage)
        layout = stage.model.layout
        batch = TokenBatch(tiny_streams(layout, layout.target.frames(0.24)), ["a@0.00", "b@0.00"])
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss = stage.training_loss(batch)
        loss.backward()
        found[attention] = [loss.detach(), *(p.grad for p in stage.model.parameters() if p.grad is not None)]
        assert len(caught) == (1 if attention == "flex" else 0)
    assert len(chip.tried) == len(FORWARD)
    assert found["flex"][0] > 0
    for one, other in zip(found["flex"], found["plain"], strict=True):
        torch.testing.assert_close(one, other)


# --- what is compiled, with Dynamo itself ----------------------------------------------------------------


def attend_without_gradients(frames):
    module, positions, qkv = setting("causal-prefix-time", frames=frames, width=16, batch=1)
    qkv = qkv.detach()  # FlexAttention has no backward on the CPU
    with torch.no_grad():
        output = attend("flex", module, positions, qkv)
    torch.testing.assert_close(output.double(), plain_attention(qkv, module, positions), atol=2e-6, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_every_one_of_twenty_lengths_is_compiled_once(counted):
    """Dynamo's limit is 8 for a function; beyond it, one runs uncompiled."""
    lengths = range(3, 63, 3)
    assert len(lengths) == 20 > torch._dynamo.config.recompile_limit
    for frames in lengths:
        attend_without_gradients(frames)
    assert counted() == 20
    for frames in lengths:  # modules, geometries and tensors are new ones: what was compiled serves them
        attend_without_gradients(frames)
    assert counted() == 20


def test_one_function_for_all_lengths_would_meet_the_limit(counted, monkeypatch):
    """So the test above can fail."""
    shared = flex_attention.compile_flex("shared", torch.device("cpu"))
    monkeypatch.setattr(flex_attention, "compile_flex", lambda name, device: shared)
    for frames in range(3, 27, 3):
        attend_without_gradients(frames)
    with pytest.warns(UserWarning, match=r"blocks of queries.*fullgraph=True"):
        attend_without_gradients(27)
    assert counted() == 8


def test_kernels_are_kept_up_to_a_number(counted, monkeypatch):
    monkeypatch.setattr(flex_attention, "KEPT_KERNELS", 2)
    for frames in (3, 6, 9, 9, 6, 3):
        attend_without_gradients(frames)
    assert len(flex_attention._kernels._found) == 2
    assert counted() == 4


def test_with_the_compiler_switched_off_plain_attention_is_used_and_told(counted):
    with torch.compiler.set_stance("force_eager"), pytest.warns(UserWarning, match="torch.compile is switched off"):
        attend_without_gradients(6)
    assert counted() == 0


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # eager is what this machine can run
@pytest.mark.parametrize("case", CASES)
def test_flex_equals_plain_attention(case):
    """Forward alone: FlexAttention has no backward on the CPU."""
    module, positions, qkv = setting(case, width=16)
    with torch.no_grad():
        output = attend("flex", module, positions, qkv.detach())
        torch.testing.assert_close(output.double(), plain_attention(qkv, module, positions), atol=2e-6, rtol=1e-5)


# --- on a GPU -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("case", ["causal", "causal-prefix-time"])
def test_all_tiles_give_the_same_numbers_on_cuda(case, dtype, monkeypatch):
    module, positions, qkv = setting(case, frames=60, width=64)
    expected = plain_attention(qkv, module, positions)
    true = gradients(expected, qkv, module)
    module, moved = module.cuda(), qkv.detach().cuda().to(dtype).requires_grad_()
    positions = StepPositions(positions.segment.cuda(), positions.ticks.cuda(), positions.condition_steps)
    bias = FlexBias.of(module, positions)
    for first in range(1, len(FORWARD)):
        kernels = flex_attention._Kernels()
        monkeypatch.setattr(flex_attention, "_kernels", kernels)
        monkeypatch.setattr(flex_attention, "Setting", lambda *_, at=first: Setting(at, at))
        output = bias.attend(*moved, module.table())
        assert all(kernel is not None for kernel in kernels._found.values())
        torch.testing.assert_close(output.cpu().double(), expected, atol=1e-2, rtol=1e-2)
        for found, reference in zip(gradients(output, moved, module), true, strict=True):
            torch.testing.assert_close(found.cpu().to(reference), reference, atol=3e-2, rtol=3e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("case", CASES)
def test_flex_on_cuda_equals_plain_attention_in_values_and_gradients(case):
    module, positions, qkv = setting(case, frames=60, width=16)
    expected = plain_attention(qkv, module, positions)
    true = gradients(expected, qkv, module)
    module, moved = module.cuda(), qkv.detach().cuda().requires_grad_()
    positions = StepPositions(positions.segment.cuda(), positions.ticks.cuda(), positions.condition_steps)
    output = attend("flex", module, positions, moved)
    torch.testing.assert_close(output.cpu().double(), expected, atol=1e-2, rtol=1e-2)
    for found, reference in zip(gradients(output, moved, module), true, strict=True):
        torch.testing.assert_close(found.cpu(), reference, atol=3e-2, rtol=3e-2)
