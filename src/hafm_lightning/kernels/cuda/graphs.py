"""Decoding on CUDA: a step is recorded once for each codebook as a graph, and replayed.

A step starts some four hundred kernels of a few microseconds; a graph starts them all at once. It runs the same kernels
at the same addresses each time, so nothing in a step may depend on Python's numbers: :class:`StaticDecoder` keeps the
step number in a tensor, and attention looks at the whole cache, of which the bias masks what is not yet written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hafm_lightning.kernels.base import Twin
from hafm_lightning.modeling.cache import CachedSteps
from hafm_lightning.modeling.decoding import Decoder, decoder_for
from hafm_lightning.modeling.token_model import TokenModel


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
    """A decoder whose steps, but for the very first, are one function of tensors."""

    @cached_property
    def _index(self) -> Tensor:
        """The current step, int64 ``[1]``."""
        return torch.zeros(1, dtype=torch.int64, device=self.device)

    def _advance_one(self) -> None:
        self._index.fill_(self.step)
        super()._advance_one()

    def _attending(self, dtype: torch.dtype) -> CachedSteps:
        assert self.cache is not None
        first, rows = self.plan.condition_steps, self._of_step(self.rows_of_step, 0)
        bias = self.table.index_select(1, rows)[:, None].to(dtype)
        return StaticSteps(self.cache, first + self.step, bias, first + self._index)

    def _of_step(self, x: Tensor, dim: int, back: int = 0) -> Tensor:
        return x.index_select(dim, self._index - back).squeeze(dim)

    def _store(self, tokens: Tensor) -> None:
        self.grid.index_copy_(2, self._index, tokens[..., None])


class GraphDecoder(StaticDecoder):
    """A decoder that records its steps as CUDA graphs and replays them."""

    @cached_property
    def _graphs(self) -> dict[int, torch.cuda.CUDAGraph]:
        """The recorded step of each codebook."""
        return {}

    def _compute(self, codebook: int) -> None:
        if self.step == 0:  # its input is no token
            super()._compute(codebook)
            return
        if codebook not in self._graphs:
            self._graphs[codebook] = self._record(codebook)
        self._graphs[codebook].replay()

    def _record(self, codebook: int) -> torch.cuda.CUDAGraph:
        """The step as a graph, for all later steps of a codebook."""
        saved = self.grid.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up outside the graph, as recording demands
            super()._compute(codebook)
        torch.cuda.current_stream().wait_stream(side)
        self.grid.copy_(saved)  # the step's tokens are unknown again; its cache entry is simply rewritten
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            super()._compute(codebook)
        return graph


class GraphTokenModel(Twin, TokenModel):
    """A network on CUDA, which :class:`GraphDecoder` decodes."""


@decoder_for.register
def _graph_decoder(model: GraphTokenModel) -> type[Decoder]:
    return GraphDecoder
