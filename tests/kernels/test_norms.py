"""Norms in the type of their input against float64."""

import pytest
import torch

from hafm_lightning.kernels.cuda import CudaBackend
from hafm_lightning.kernels.cuda.norms import DirectRMSNorm
from hafm_lightning.modeling.transformer import RMSNorm


def norm_and_input(dtype, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    norm = DirectRMSNorm(64).to(dtype)
    torch.nn.init.normal_(norm.weight, generator=generator)
    return norm, (scale * torch.randn(5, 64, generator=generator)).to(dtype)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 300.0], ids=["small", "usual", "squares beyond float16"])
@pytest.mark.parametrize(("dtype", "ulps"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)], ids=str)
def test_sums_are_float32_in_half_precision_too(dtype, ulps, scale):
    norm, x = norm_and_input(dtype, scale)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + norm.epsilon).sqrt() * norm.weight.double()
    found = norm(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=3 * ulps)


def test_in_float32_it_is_the_plain_norm():
    norm, x = norm_and_input(torch.float32)
    assert torch.equal(norm(x), RMSNorm.forward(norm, x))


def test_the_backend_gives_it_to_inference_alone():
    from tiny_models import tiny_config, tiny_model

    model = tiny_model(tiny_config("flattened"), kernels="none")
    CudaBackend().for_training(model)
    assert type(model.backbone.final_norm) is RMSNorm
    model = CudaBackend().for_inference(model, "bf16")
    assert type(model.backbone.final_norm) is DirectRMSNorm
    assert {type(layer.attention.query_norm) for layer in model.backbone.layers} == {DirectRMSNorm}
