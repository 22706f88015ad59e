"""Means of token scores over clips, the same on one and on several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenMeans(Metric):
    """Means over clips of the scores ``names``, as float64 sums over all processes.

    Batches weigh by their clips, and may lack scores. A score that is NaN makes its mean NaN.
    """

    is_differentiable = False
    full_state_update = False
    sums: Tensor
    clips: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        for state in ("sums", "clips"):
            self.add_state(state, torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, Tensor], clips: int) -> None:
        """Add a batch of ``clips``: name -> mean over the batch, a scalar."""
        for name, value in values.items():
            row = self.names.index(name)
            self.sums[row] += value.detach().double() * clips
            self.clips[row] += clips

    def compute(self) -> dict[str, Tensor]:
        """The means over the clips of all processes, without the names that no clip has a score for."""
        means, clips = self.sums / self.clips, self.clips.tolist()
        return {name: mean for name, mean, count in zip(self.names, means, clips, strict=True) if count}

    def on_this_process(self, name: str) -> Tensor:
        """The mean over the clips of this process; waits neither for the device nor for other processes."""
        row = self.names.index(name)
        return self.sums[row] / self.clips[row]
