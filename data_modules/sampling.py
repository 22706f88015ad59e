"""The order of clips, as a pure function: which clips, cropped where, make batch ``i`` of an epoch on one process.

``(seed, epoch, rank, world, index)`` decide a batch, whatever the number of loader workers and wherever a run resumes.

Choices:

* Random numbers are raw words of Philox, which no upgrade of numpy can change in the middle of a run.
* Training divides the global batch: step ``i`` has the same set of clips on any number of processes and accumulated
  batches, as long as their product with ``batch_size`` is the same. Every process makes the same number of steps.
* Evaluation distributes batches without padding or repetition. Pairs with a clip of another song are chosen over the
  whole split, so that neither batch size nor processes change a metric.
* The samplers yield batches, not clips: ``DataLoader(..., batch_size=None, sampler=order)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler, SequentialSampler

from hafm_lightning.errors import RequestError
from hafm_lightning.tokens import FRAME_GRID_S

ORDER_WORDS, CROP_WORDS = 0, 1
"""Purposes that draw from separate streams of random words."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class BatchRequest:
    """Which clips make a batch."""

    clips: Indices  # in the split, [B]
    starts: Indices  # of each crop, [B], in steps of FRAME_GRID_S (0.04 s: whole frames of every stream)
    other: BatchRequest | None = None  # for each clip one of another song

    def __len__(self) -> int:
        return len(self.clips)


def random_words(seed: int, epoch: int, purpose: int, count: int) -> NDArray[np.uint64]:
    """``count`` random 64-bit words that depend on the arguments alone."""
    counter = np.array([0, 0, purpose, epoch], dtype=np.uint64)
    generator = np.random.Philox(key=np.array([seed % 2**64, 0], dtype=np.uint64), counter=counter)
    words: NDArray[np.uint64] = generator.random_raw(count)
    return words


def shuffled(clips: int, seed: int, epoch: int) -> Indices:
    """A permutation of ``0 .. clips - 1``."""
    return np.argsort(random_words(seed, epoch, ORDER_WORDS, clips), kind="stable").astype(np.int64)


def crop_starts(clips: int, choices: int, seed: int, epoch: int) -> Indices:
    """Where each clip of the split is cropped in this epoch, in grid steps below ``choices``: int64 ``[clips]``."""
    return (random_words(seed, epoch, CROP_WORDS, clips) % np.uint64(choices)).astype(np.int64)


def crop_choices(clip_duration_s: float, crop_s: float | None) -> int:
    """Number of places at which a crop may start in a clip; RequestError if it is too long or off the grid."""
    if crop_s is None:
        return 1
    if not math.isfinite(crop_s):
        raise RequestError(f"data.crop_s is {crop_s}\nuse a positive multiple of {FRAME_GRID_S} s, for example 3.0")
    grid = Fraction(FRAME_GRID_S).limit_denominator(10**6)
    steps = Fraction(crop_s).limit_denominator(10**6) / grid
    whole = Fraction(clip_duration_s).limit_denominator(10**6) / grid
    if steps <= 0 or steps.denominator != 1:
        raise RequestError(
            f"data.crop_s is {crop_s} s, which is not a whole number of frames of every stream\n"
            f"use a positive multiple of {FRAME_GRID_S} s, for example 3.0"
        )
    if steps > whole:
        raise RequestError(
            f"data.crop_s is {crop_s} s, but the clips of these shards last {clip_duration_s} s\n"
            "use a shorter crop, or none to take whole clips"
        )
    return int(whole - steps) + 1


@dataclass(eq=False)
class ClipOrder(Sampler[BatchRequest]):
    """The batches of one process.

    Attributes:
        clips: Number of clips in the split.
        batch_size: Clips a batch on one process; in evaluation the most.
        seed: Of the order and the crops.
        rank: This process, ``0 .. world - 1``.
        world: Number of processes.
        choices: Number of crop starts (:func:`crop_choices`).
    """

    clips: int
    batch_size: int
    _: KW_ONLY
    seed: int = 0
    rank: int = 0
    world: int = 1
    choices: int = 1

    def __post_init__(self) -> None:
        if min(self.clips, self.batch_size, self.choices) < 1 or not 0 <= self.rank < self.world:
            raise ValueError(f"need clips, batch_size and choices of at least 1 and 0 <= rank < world, got {self}")


@dataclass(eq=False, kw_only=True)
class TrainingOrder(ClipOrder):
    """Training: a new order each epoch, equally many batches on every process.

    Attributes:
        shuffle: Whether to draw a new permutation each epoch; False keeps the order of the split.
        drop_last: Whether to leave out the clips that do not fill a last global batch. Otherwise they are divided
            evenly; fewer than one clip a process are left out, since every process must take the step.
        epoch: The epoch of the next iteration.
        repeated: Whether every epoch has the clips and crops of the first one.
        per_step: Batches of a process that make one step; with ``drop_last`` an epoch has whole steps alone.
    """

    shuffle: bool = True
    drop_last: bool = True
    epoch: int = 0
    repeated: bool = False
    per_step: int = 1
    _resume: tuple[int, int] | None = field(default=None, init=False)

    def __len__(self) -> int:
        """Batches in a whole epoch, also in the epoch that a resumed run enters in the middle."""
        full, rest = divmod(self.clips, self.batch_size * self.world)
        if self.drop_last:
            return full - full % self.per_step
        return full + int(rest >= self.world)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration (called by Lightning)."""
        self.epoch = epoch
        if self._resume is not None and self._resume[0] != epoch:
            self._resume = None

    def resume(self, epoch: int, batches: int) -> None:
        """Let iterations over ``epoch`` skip the first ``batches``, on which the stopped run has trained."""
        self.epoch = epoch
        self._resume = (epoch, batches) if batches else None

    def __iter__(self) -> Iterator[BatchRequest]:
        first = self._resume[1] if self._resume is not None and self._resume[0] == self.epoch else 0
        order, epoch = np.arange(self.clips, dtype=np.int64), 0 if self.repeated else self.epoch
        if self.shuffle:
            order = shuffled(self.clips, self.seed, epoch)
        starts = crop_starts(self.clips, self.choices, self.seed, epoch)
        size = self.batch_size * self.world
        for index in range(first, len(self)):
            whole = order[index * size : (index + 1) * size]
            chosen = np.array_split(whole, self.world)[self.rank]
            yield BatchRequest(chosen, starts[chosen])


@dataclass(eq=False, kw_only=True)
class EvaluationOrder(ClipOrder):
    """Validation and test: each clip of the split exactly once over all processes.

    The split is cut in ``N`` batches of nearly equal size, batch ``j`` being the clips ``j, j + N, j + 2 N, ...``;
    process ``r`` gets the batches ``r, r + world, ...``, at least one. Crops never change.

    Attributes:
        others: For each clip the index of one of another song.
    """

    others: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clips < self.world:
            raise RequestError(
                f"{self.clips} clips cannot be shared among {self.world} processes, each of which needs one\n"
                f"evaluate with --trainer.devices {self.clips} or fewer, or prepare more clips for this split"
            )

    @property
    def batches(self) -> int:
        """Batches over all processes."""
        return max(-(-self.clips // self.batch_size), self.world)

    def __len__(self) -> int:
        """Batches on this process."""
        return len(range(self.rank, self.batches, self.world))

    def __iter__(self) -> Iterator[BatchRequest]:
        starts = crop_starts(self.clips, self.choices, self.seed, epoch=0)
        for index in range(self.rank, self.batches, self.world):
            chosen = np.arange(index, self.clips, self.batches, dtype=np.int64)
            other = None
            if self.others is not None:
                paired = np.asarray(self.others, dtype=np.int64)[chosen]
                other = BatchRequest(paired, starts[paired])
            yield BatchRequest(chosen, starts[chosen], other)


class RepeatedOrder(SequentialSampler):
    """The batches of an order as a sampler that Lightning leaves in place under ``overfit_batches``.

    Lightning would put a sampler of its own in the place of every one that is not sequential.
    """

    def __init__(self, order: TrainingOrder | EvaluationOrder) -> None:
        super().__init__(range(len(order)))
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Let a resumed run skip batches in the right epoch."""
        if isinstance(self.order, TrainingOrder):
            self.order.set_epoch(epoch)
