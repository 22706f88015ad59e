"""Decoding on CUDA: steps recorded as graphs, and replayed.

A graph starts all kernels of a step at once. It runs the same kernels at the same addresses each time, so nothing in a
step may depend on Python's numbers: the step number is a tensor. There are two kinds of steps:

* the chain of Triton kernels of :mod:`.decoding.fused_step`: one graph serves all codebooks, two serve all lengths;
* where that cannot run or is not right, PyTorch's operations (:class:`StaticDecoder`): a graph for each codebook and
  each power of two of visible steps. Attention looks at that many steps of the cache; the bias masks what is not yet
  written.

Graphs are recorded when they are first needed, and share their memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hafm_lightning.kernels.base import Twin
from hafm_lightning.kernels.cuda.decoding import step_trial
from hafm_lightning.kernels.cuda.decoding.fused_step import FusedStep
from hafm_lightning.modeling.cache import CachedSteps
from hafm_lightning.modeling.decoding import Decoder, decoder_for
from hafm_lightning.modeling.token_model import TokenModel

SHORTEST = 256
"""Steps of the cache that attention looks at, at least."""


@dataclass(frozen=True)
class StaticSteps(CachedSteps):
    """One cached step whose number is a tensor; ``start`` is what it was when the step was recorded."""

    index: Tensor  # int64 [1]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As :class:`~hafm_lightning.modeling.cache.CachedSteps`."""
        for part, new in ((self.cache.keys, keys), (self.cache.values, values)):
            part[layer].index_copy_(2, self.index, new.to(part.dtype))
        return self.attend(layer, queries)


class StaticDecoder(Decoder):
    """A decoder whose steps, but for the very first, are functions of tensors, one for each :attr:`visible`."""

    @cached_property
    def _index(self) -> Tensor:
        """The current step, int64 ``[1]``."""
        return torch.zeros(1, dtype=torch.int64, device=self.device)

    @property
    def visible(self) -> int:
        """Steps that attention looks at: a power of two, or all."""
        written, visible = self.plan.condition_steps + self.step + 1, SHORTEST
        while visible < written:
            visible *= 2
        return min(visible, self.plan.steps)

    def _advance_one(self) -> None:
        self._index.fill_(self.step)
        super()._advance_one()

    def _attending(self, dtype: torch.dtype) -> CachedSteps:
        assert self.cache is not None
        first, rows = self.plan.condition_steps, self._of_step(self.rows_of_step, 0)[: self.visible]
        bias = self.table.index_select(1, rows)[:, None].to(dtype)
        return StaticSteps(self.cache, first + self.step, bias, first + self._index)

    def _of_step(self, x: Tensor, dim: int, back: int = 0) -> Tensor:
        return x.index_select(dim, self._index - back).squeeze(dim)

    def _store(self, tokens: Tensor) -> None:
        self.grid.index_copy_(2, self._index, tokens[..., None])


class FusedDecoder(StaticDecoder):
    """A decoder whose steps are chains of Triton kernels, where these are right."""

    @cached_property
    def fused(self) -> FusedStep | None:
        """The fused step; None where PyTorch's operations stand in."""
        return step_trial.settings.step_of(self, self._index)

    def _compute(self, codebook: int) -> None:
        if self.fused is None:
            super()._compute(codebook)
        else:
            self._run(self.fused, self.fused.parts(self.visible))

    def _run(self, fused: FusedStep, parts: int) -> None:
        logits = fused.logits(parts)
        if fused.draws:
            fused.draw()
        else:
            self._draw(logits)


class GraphDecoder(FusedDecoder):
    """A decoder that records its steps as CUDA graphs and replays them."""

    @cached_property
    def _graphs(self) -> dict[object, torch.cuda.CUDAGraph]:
        """The recorded steps: by parts of attention, or by codebook and visible steps."""
        return {}

    @cached_property
    def _pool(self) -> Any:  # its type differs between versions of PyTorch
        return torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call, unused-ignore]

    def _compute(self, codebook: int) -> None:
        fused = self.fused
        if fused is None and self.step == 0:  # its input is no token
            super()._compute(codebook)
            return
        if fused is None:
            key: object = (codebook, self.visible)
        else:
            key = fused.parts(self.visible)
        if key not in self._graphs:
            self._graphs[key] = self._record(lambda: super(GraphDecoder, self)._compute(codebook))
        self._graphs[key].replay()

    def _record(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The step as a graph, for all later steps of its kind."""
        saved = self.grid.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up outside the graph, as recording demands
            step()
        torch.cuda.current_stream().wait_stream(side)
        self.grid.copy_(saved)  # the step's tokens are unknown again; its cache entry is simply rewritten
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        return graph


class GraphTokenModel(Twin, TokenModel):
    """A network on CUDA, which :class:`GraphDecoder` decodes."""


@decoder_for.register
def _graph_decoder(model: GraphTokenModel) -> type[Decoder]:
    return GraphDecoder
