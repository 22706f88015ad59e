"""FlexAttention without kernels from earlier tests: with a fake compiler, or with Dynamo counting."""

import pytest
import torch
from torch._dynamo.utils import counters

from hafm_lightning.kernels.cuda import flex_attention


@pytest.fixture
def use(monkeypatch):
    """Puts a fake chip in the compiler's place, with no decision taken so far."""

    def put(chip):
        monkeypatch.setattr(flex_attention, "compile_flex", chip.compile_flex)
        return chip

    monkeypatch.setattr(flex_attention, "_kernels", flex_attention._Kernels())
    return put


@pytest.fixture
def counted(monkeypatch):
    """How many graphs Dynamo made since; nothing is compiled yet."""
    monkeypatch.setattr(flex_attention, "_kernels", flex_attention._Kernels())
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    return lambda: counters["stats"]["unique_graphs"] - before
