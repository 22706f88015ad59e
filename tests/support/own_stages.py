"""Stages as a user writes them outside the package: another loss, and a part of their own."""

import torch
from torch import nn

from hafm_lightning.stages import CoarseStage, FineStage, SemanticStage


class Smoothed:
    """The loss with some label smoothing, and a weight beside the network."""

    def training_loss(self, batch):
        logits = self(batch)
        targets = batch[self.target]
        loss = nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten(), label_smoothing=0.1)
        return loss * (1 + self.extra.square().sum())


class SmoothedSemantic(Smoothed, SemanticStage):
    def __init__(self, backbone=None, conditioning="prefix", conditions=None, **settings):
        super().__init__(backbone=backbone, conditioning=conditioning, conditions=conditions, **settings)
        self.extra = nn.Parameter(torch.ones(3))


class SmoothedCoarse(Smoothed, CoarseStage):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.extra = nn.Parameter(torch.ones(3))


class SmoothedFine(Smoothed, FineStage):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.extra = nn.Parameter(torch.ones(3))
