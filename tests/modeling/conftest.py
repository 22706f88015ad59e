"""Tests of networks run with PyTorch's operations, and with the kernels of this machine."""

import pytest
import tiny_models


@pytest.fixture(params=["none", "auto"], ids=lambda kernels: f"kernels-{kernels}")
def kernels(request, monkeypatch):
    """``kernels: none`` and ``auto`` in turn, for every network that :func:`tiny_models.tiny_model` makes."""
    monkeypatch.setattr(tiny_models, "KERNELS", request.param)
    return request.param
