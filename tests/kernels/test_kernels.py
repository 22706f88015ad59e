"""The registry of backends: twins compute the same, keep names of parameters, and follow a network to its device."""

import copy
import subprocess
import sys

import pytest
import torch
from tiny_models import tiny_config, tiny_model, tiny_streams
from tiny_stages import clips, tiny_stage
from torch import nn

from hafm_lightning.kernels import BACKENDS, backend_for, for_inference
from hafm_lightning.kernels.base import Backend, Twin, swap
from hafm_lightning.kernels.cpu import codegen
from hafm_lightning.kernels.cuda import CudaBackend
from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.modeling.relative_position import RelativePosition
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.transformer import GEGLU, RMSNorm

TARGET = "instrumental_coarse"


def twins_in(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules() if isinstance(module, Twin)}


@pytest.mark.cpu
@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", ["flattened", "delay", "parallel", "nonautoregressive"])
def test_kernels_of_the_cpu_give_the_numbers_and_gradients_of_the_plain_network(pattern, conditioning):
    config = tiny_config(pattern, conditioning)
    plain, fast = tiny_model(config, kernels="none").train(), tiny_model(config, kernels="auto").train()
    assert not twins_in(plain)
    assert twins_in(fast)
    streams = tiny_streams(config.layout, 6)
    for model in (plain, fast):
        model.logits_found = model(streams)
        model.logits_found.square().mean().backward()
    torch.testing.assert_close(fast.logits_found, plain.logits_found, atol=1e-5, rtol=1e-5)
    for (name, mine), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_twins_keep_the_names_of_parameters_and_can_be_given_back():
    model = TokenModel(tiny_config())
    names, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    for backend in (backend_for(torch.device("cpu")), backend_for(torch.device("cuda")), Backend()):
        backend.for_training(model)
        assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == classes


def test_backends_are_chosen_by_device():
    assert backend_for(torch.device("cpu")) is BACKENDS["cpu"]
    assert isinstance(backend_for(torch.device("cuda", 1)), CudaBackend)
    assert type(backend_for(torch.device("mps"))) is Backend
    assert type(backend_for(torch.device("cuda"), "none")) is Backend


def test_on_a_cpu_nothing_waits_for_the_compiler_of_gpus():
    """torch.compile takes seconds to import; a process that generates on a CPU needs none of it."""
    program = (
        "import sys, torch, hafm_lightning.accompanist; from hafm_lightning.kernels import backend_for; "
        "backend_for(torch.device('cpu')); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_every_device_has_kernels_for_the_parts_that_it_names():
    """A twin stands in for one class; a network that holds several of them gets as many."""
    model = TokenModel(tiny_config())
    count = {kind: sum(type(m) is kind for m in model.modules()) for kind in (RMSNorm, GEGLU, RelativePosition)}
    BACKENDS["cpu"].for_training(model)
    fast = {kind: sum(isinstance(m, kind) and isinstance(m, Twin) for m in model.modules()) for kind in count}
    expected = count if codegen.available() else {**dict.fromkeys(count, 0), GEGLU: count[GEGLU]}
    assert fast == expected


def test_without_a_compiler_the_cpu_trains_with_plain_attention(monkeypatch):
    monkeypatch.setattr(codegen, "available", lambda: False)
    model = tiny_model(tiny_config(), kernels="auto")
    assert type(model.relative_position) is RelativePosition
    plain = tiny_model(tiny_config(), kernels="none")
    streams = tiny_streams(model.layout, 6)
    torch.testing.assert_close(model(streams), plain(streams), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernels", ["auto", "none"])
def test_a_stage_gives_its_network_kernels_again_where_it_moves(kernels):
    stage = tiny_stage(kernels=kernels)
    assert bool(twins_in(stage.model)) is (kernels == "auto")
    swap(stage.model, {})
    stage.to("cpu")
    assert bool(twins_in(stage.model)) is (kernels == "auto")


def test_kernels_auto_and_none_train_to_the_same_loss():
    losses = []
    for kernels in ("auto", "none"):
        stage = tiny_stage(kernels=kernels, guidance_dropout=0.0)
        losses.append(stage.training_loss(clips(stage)))
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


@pytest.mark.cpu
def test_a_network_for_inference_has_the_same_methods_and_numbers():
    plain = tiny_model(tiny_config("delay", "aligned"), kernels="none")
    fast = for_inference(copy.deepcopy(plain), torch.device("cpu"), "fp32")
    assert isinstance(fast, TokenModel)
    assert fast.layout == plain.layout
    assert isinstance(fast.layout, SequenceLayout)
    streams = tiny_streams(plain.layout, 6)
    with torch.inference_mode():
        torch.testing.assert_close(fast(streams), plain(streams), atol=1e-5, rtol=1e-5)


def test_a_plain_network_for_inference_stores_its_weights_as_asked_for():
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = Backend().for_inference(tiny_model(tiny_config()), precision)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert not twins_in(model)
    assert Backend().best_precision([]) == "fp32"
    assert Backend().precision_note("bf16", []) is None
