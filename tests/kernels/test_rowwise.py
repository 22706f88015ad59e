"""Gradients written by hand against those that autograd finds for the same formulae, in float64."""

import pytest
import torch
import torch.nn.functional as F

from hafm_lightning.kernels.cpu import rowwise

pytestmark = pytest.mark.cpu


def leaves(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def compare(function, reference, inputs):
    """Values and gradients of ``function`` in float32 against ``reference`` in float64."""
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    found, expected = function(*inputs), reference(*doubles)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    ours = torch.autograd.grad((found * weight.float()).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), doubles)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)


@pytest.fixture(params=[3, 7, 256])
def rows_at_once(request, monkeypatch):
    monkeypatch.setattr(rowwise, "ROWS_AT_ONCE", request.param)


def test_gated_feedforward(rows_at_once):
    def reference(x, w_in, b_in, w_out, b_out):
        value, gate = F.linear(x, w_in, b_in).chunk(2, -1)
        return F.linear(value * F.gelu(gate), w_out, b_out)

    inputs = leaves((2, 9, 6), (10, 6), (10,), (6, 5), (6,))

    def function(x, *weights):
        return rowwise._GatedFeedForward.apply(x.flatten(0, -2), *weights).view(x.shape)

    compare(function, reference, inputs)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 4, 64), (2, 300, 128), (700, 64), (1, 2, 1, 2, 64)])
@pytest.mark.parametrize("transposed", [False, True])
def test_rms_norm(transposed, shape):

    def laid_out(x):
        return x.transpose(1, 2) if transposed and x.dim() > 3 else x

    def reference(x, weight):
        x = laid_out(x)
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    compare(
        lambda x, weight: rowwise._NormFunction.apply(laid_out(x), weight, 1e-6), reference, leaves(shape, shape[-1:])
    )


def test_gradients_of_a_norms_weight_do_not_depend_on_the_number_of_threads():
    x, weight = leaves((2, 1000, 64), (64,))
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(torch.autograd.grad(rowwise._NormFunction.apply(x, weight, 1e-6).square().sum(), [x, weight]))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_only_training_in_float32_on_the_cpu_goes_by_rows():
    x = torch.randn(3, requires_grad=True)
    assert rowwise.can_train_by_rows(x)
    assert not rowwise.can_train_by_rows(x.detach())
    assert not rowwise.can_train_by_rows(x.double())
    with torch.no_grad():
        assert not rowwise.can_train_by_rows(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not rowwise.can_train_by_rows(x)
