"""Means of scores against sums in Python floats."""

import math

import pytest
import torch

from hafm_lightning.training.token_means import TokenMeans


def add(means, clips, **values):
    means.update({name: torch.tensor(value) for name, value in values.items()}, clips)


def test_batches_weigh_by_their_clips_and_may_lack_scores():
    means = TokenMeans(["loss", "loss_q0", "loss_q1"])
    add(means, 3, loss=1.5, loss_q1=0.25)
    add(means, 1, loss=2.5)
    found = means.compute()
    assert {name: float(value) for name, value in found.items()} == {"loss": (3 * 1.5 + 2.5) / 4, "loss_q1": 0.25}
    assert float(means.on_this_process("loss")) == 1.75
    means.reset()
    add(means, 2, loss=4.0)
    assert {name: float(value) for name, value in means.compute().items()} == {"loss": 4.0}, "only what came since"


def test_a_nan_is_not_averaged_away():
    means = TokenMeans(["loss"])
    add(means, 3, loss=1.0)
    add(means, 3, loss=math.nan)
    assert math.isnan(means.compute()["loss"])


def test_long_sums_keep_their_digits():
    """A float32 sum of a million clips would be off in the third digit."""
    means = TokenMeans(["loss"])
    add(means, 2**24, loss=1.0)
    for _ in range(100):
        add(means, 1, loss=3.0)
    assert float(means.compute()["loss"]) == pytest.approx((2**24 + 300) / (2**24 + 100), rel=1e-12)


def test_the_sums_of_processes_are_added():
    """The states of two processes, gathered as torchmetrics does it, give the mean over all clips."""
    parts = [TokenMeans(["loss", "gap"]) for _ in range(2)]
    add(parts[0], 3, loss=1.0, gap=0.5)
    add(parts[1], 1, loss=5.0)  # this one has no gap, and takes part all the same
    whole = TokenMeans(["loss", "gap"])
    gathered = iter([[part.sums for part in parts], [part.clips for part in parts]])
    whole.update({}, 0)
    whole.sync(dist_sync_fn=lambda value, group: next(gathered), distributed_available=lambda: True)
    found = TokenMeans.compute(whole)
    assert {name: float(value) for name, value in found.items()} == {"loss": 2.0, "gap": 0.5}
