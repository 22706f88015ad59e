"""Compiled layers give the numbers of plain ones, and leave FlexAttention's kernels compiled."""

import pytest
import torch
from fake_chip import TWINS, FakeChip, network, out_of_shared_memory
from tiny_models import tiny_config, tiny_model, tiny_streams

from hafm_lightning.kernels.base import swap
from hafm_lightning.kernels.cuda import compiled_layers, flex_attention
from hafm_lightning.kernels.cuda.compiled_layers import CompiledLayer
from hafm_lightning.modeling.decoding import generate
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.transformer import BackboneConfig, Layer


def trained(model, streams):
    """Logits of a forward pass as in training, and the gradients of their mean square, by name."""
    model.zero_grad()
    logits = model(streams)
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def layers_of(monkeypatch):
    """Makes a network with compiled layers, through Dynamo and a backend that runs what Dynamo found."""
    monkeypatch.setattr(compiled_layers, "_uncompiled", [])
    function = torch.compile(compiled_layers._run_layer, dynamic=False, backend="eager")
    monkeypatch.setattr(compiled_layers, "_compiled", lambda: function)

    def make(config, attention="plain"):
        model = tiny_model(config, kernels="none").train()
        swap(model, {Layer: CompiledLayer, **TWINS[attention]})
        return model

    return make


DEEP = BackboneConfig(layers=12, width=16, heads=2, feedforward=24)


def test_compiled_layers_give_the_numbers_of_plain_ones(layers_of, use, counted):
    """One length, twelve layers: each graph serves them all, so the number of graphs does not grow with them."""
    use(FakeChip())
    config = tiny_config("delay", "prefix")
    streams = tiny_streams(config.layout, 6)
    expected, gradients_expected = trained(network(config, "plain").train(), streams)
    found, gradients_found = trained(layers_of(config, "flex"), streams)
    shallow = counted()
    assert shallow > 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients_expected.items():
        torch.testing.assert_close(gradients_found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    torch._dynamo.reset()
    deep, before = tiny_config("delay", "prefix", backbone=DEEP), counted()
    model = layers_of(deep, "flex")
    for _ in range(2):
        trained(model, streams)
    assert counted() - before <= shallow + 2


@pytest.mark.filterwarnings("error")  # Dynamo warns of what it cannot trace, as functions with lru_cache
def test_compiled_layers_leave_the_kernels_compiled_beyond_their_own_limit(layers_of, counted):
    config = tiny_config("flattened")
    model = layers_of(config, "flex").requires_grad_(False)  # FlexAttention has no backward on the CPU
    plain = network(config, "plain")
    with torch._dynamo.config.patch(recompile_limit=2):
        for frames in range(3, 21, 3):
            streams = tiny_streams(config.layout, frames)
            torch.testing.assert_close(model(streams), plain(streams), atol=1e-4, rtol=1e-4)
    kernels = flex_attention._kernels._found.values()
    assert len(kernels) == 6
    assert all(kernel is not None for kernel in kernels)
    assert counted() > 6


def test_decoding_steps_and_validation_are_not_compiled(layers_of, counted):
    config = tiny_config("delay", "aligned")
    model, streams = layers_of(config), tiny_streams(config.layout, 6)
    with torch.inference_mode():
        generate(model, streams, SamplingOptions(), [0, 1])
        model(streams)
    model.eval()(streams)
    assert counted() == 0


def test_where_layers_cannot_be_compiled_one_warning_says_so(layers_of, monkeypatch):
    config = tiny_config("delay", "aligned")
    model, streams = layers_of(config), tiny_streams(config.layout, 6)

    def fails(*_):
        raise out_of_shared_memory()

    monkeypatch.setattr(compiled_layers, "_compiled", lambda: fails)
    with pytest.warns(UserWarning, match="layers cannot be compiled here.*out of resource") as warned:
        found, _ = trained(model, streams)
    assert len(warned) == 1
    torch.testing.assert_close(found, trained(network(config, "plain").train(), streams)[0])
