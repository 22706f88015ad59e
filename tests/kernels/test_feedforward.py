"""The feed-forward that is filled up computes what the plain one does, in values and gradients."""

import copy

import pytest
import torch

from hafm_lightning.kernels.base import swap
from hafm_lightning.kernels.cuda.compiled_layers import FilledGEGLU
from hafm_lightning.modeling.transformer import GEGLU


@pytest.mark.parametrize("inner", [1, 13, 16, 21])
def test_values_and_gradients_equal_the_plain_ones_and_parameters_keep_their_shapes(inner):
    torch.manual_seed(0)
    plain = GEGLU(6, inner).double()
    filled = copy.deepcopy(plain)
    swap(filled, {GEGLU: FilledGEGLU})
    assert type(filled) is FilledGEGLU
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    found = []
    for module in (plain, filled):
        given = x.clone().requires_grad_()
        output = module(given)
        output.square().sum().backward()
        found.append([output.detach(), given.grad, *(p.grad for p in module.parameters())])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(other, one, atol=1e-12, rtol=1e-12)
    assert filled.state_dict().keys() == plain.state_dict().keys()
