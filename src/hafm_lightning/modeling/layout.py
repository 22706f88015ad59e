"""Where each token stands: conditions + target + pattern -> steps with their time, segment and codebook.

A :class:`SequenceLayout` says which streams condition which target, in what pattern the target's codebooks are
written, and how the conditions reach the target. Its :class:`SequencePlan` lists every step of the sequence. Token
arithmetic is pure functions, each with its inverse.

Patterns, for a target of ``K`` codebooks and ``T`` frames (a cell ``c/f`` is codebook c of frame f)::

    flattened          0/0 1/0 2/0 0/1 1/1 2/1 ...      one token a step, S = K T (the paper, section 3.4)
    delay        step  0    1    2    3                 K tokens a step, codebook k one step later than k - 1,
                       0/0  0/1  0/2  ...               S = T + K - 1 (MusicGen, arXiv 2306.05284)
                       -    1/0  1/1  ...
    parallel           all codebooks of a frame at once, S = T
    nonautoregressive  one pass for each codebook over all frames, seeing codebooks below it, S = T
                       (VALL-E's upper levels, arXiv 2301.02111)

Conditioning: ``prefix`` puts the conditions before the target in one sequence (the paper); ``aligned`` lays them on
the target's frame clock, to be added to its steps, so that the sequence holds the target alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from hafm_lightning.tokens import EMPTY, FRAME_GRID_S, TokenStream, nearest_frames, stream_named

Pattern = Literal["flattened", "delay", "parallel", "nonautoregressive"]
Conditioning = Literal["prefix", "aligned"]

TIMELESS = -1
"""Tick of a step that describes the whole clip and so has no time of its own."""


def interleave(codes: Tensor, pattern: Pattern) -> Tensor:
    """Codes ``[B, K, T]`` -> the grid of tokens written at each step, ``[B, W, S]``.

    ``W`` is 1 for ``flattened`` and ``K`` otherwise. Places of the delay grid that belong to no frame hold
    :data:`~hafm_lightning.tokens.EMPTY`. Inverse: :func:`deinterleave`.

    >>> codes = torch.tensor([[[1, 2, 3], [4, 5, 6]]])  # two codebooks, three frames
    >>> interleave(codes, "flattened").tolist()
    [[[1, 4, 2, 5, 3, 6]]]
    >>> (interleave(codes, "delay") != EMPTY).int().tolist()
    [[[1, 1, 1, 0], [0, 1, 1, 1]]]
    """
    batch, codebooks, frames = codes.shape
    if pattern == "flattened":
        return codes.transpose(1, 2).reshape(batch, 1, frames * codebooks)
    if pattern == "delay":
        grid = codes.new_full((batch, codebooks, frames + codebooks - 1), EMPTY)
        for codebook in range(codebooks):
            grid[:, codebook, codebook : codebook + frames] = codes[:, codebook]
        return grid
    return codes


def deinterleave(grid: Tensor, pattern: Pattern, codebooks: int) -> Tensor:
    """The grid ``[B, W, S]`` -> codes ``[B, K, T]``. Inverse: :func:`interleave`.

    Raises:
        ValueError: The number of steps is not one that the pattern makes.

    >>> codes = torch.tensor([[[1, 2, 3], [4, 5, 6]]])
    >>> torch.equal(deinterleave(interleave(codes, "delay"), "delay", codebooks=2), codes)
    True
    """
    batch, _, steps = grid.shape
    if pattern == "flattened":
        if steps % codebooks:
            raise ValueError(f"{steps} flattened steps are not whole frames of {codebooks} codebooks")
        return grid.reshape(batch, steps // codebooks, codebooks).transpose(1, 2)
    if pattern == "delay":
        frames = steps - codebooks + 1
        if frames < 1:
            raise ValueError(f"{steps} delayed steps hold no frame of {codebooks} codebooks")
        return torch.stack([grid[:, k, k : k + frames] for k in range(codebooks)], dim=1)
    return grid


def prediction_steps(pattern: Pattern, codebooks: int, frames: int, codebook: int) -> slice:
    """The target steps at which ``codebook``'s frames 0..T-1 are predicted, as a slice of the target's steps."""
    if pattern == "flattened":
        return slice(codebook, frames * codebooks, codebooks)
    if pattern == "delay":
        return slice(codebook, codebook + frames)
    return slice(0, frames)


@dataclass(frozen=True)
class SequencePlan:
    """Every step of a sequence, for one length. All tensors are int64 ``[S]`` on the CPU.

    Attributes:
        segment: Which stream the step belongs to: conditions from 0 in order, the target last.
        codebook: Codebook that the step carries (conditions) or predicts (flattened target); 0 where a step holds
            all codebooks at once.
        frame: Frame of that stream.
        ticks: Start of that frame on the common clock; :data:`TIMELESS` for clip-level streams.
        place: Row of the place embedding, one for each (segment, codebook).
        condition_steps: Steps before the target's first.
        target_frames: ``T`` of the target.
    """

    segment: Tensor
    codebook: Tensor
    frame: Tensor
    ticks: Tensor
    place: Tensor
    condition_steps: int
    target_frames: int

    @property
    def steps(self) -> int:
        """All steps, ``S``."""
        return len(self.segment)

    @property
    def target_steps(self) -> int:
        """Steps of the target."""
        return self.steps - self.condition_steps


@dataclass(frozen=True)
class SequenceLayout:
    """Conditions + target + pattern.

    Attributes:
        conditions: Streams that the stage is given, in the paper's order.
        target: Stream that the stage writes.
        pattern: How the target's codebooks follow each other.
        conditioning: How the conditions reach the target.
    """

    conditions: tuple[TokenStream, ...]
    target: TokenStream
    pattern: Pattern = "flattened"
    conditioning: Conditioning = "prefix"

    def __post_init__(self) -> None:
        if self.pattern not in get_args(Pattern):
            raise ValueError(f"unknown pattern {self.pattern!r}; choose from {', '.join(get_args(Pattern))}")
        if self.conditioning not in get_args(Conditioning):
            raise ValueError(
                f"unknown conditioning {self.conditioning!r}; choose from {', '.join(get_args(Conditioning))}"
            )
        names = [stream.name for stream in (*self.conditions, self.target)]
        if len(set(names)) != len(names):
            raise ValueError(f"streams must differ, got {', '.join(names)}")
        if not self.target.rate_hz:
            raise ValueError(f"target {self.target.name!r} has no frame rate: it can only be a condition")

    @classmethod
    def of(
        cls, conditions: list[str], target: str, pattern: Pattern = "flattened", conditioning: Conditioning = "prefix"
    ) -> SequenceLayout:
        """A layout from the streams' names."""
        return cls(tuple(stream_named(name) for name in conditions), stream_named(target), pattern, conditioning)

    @property
    def causal(self) -> bool:
        """Whether a step sees only the steps before it."""
        return self.pattern != "nonautoregressive"

    @property
    def tokens_per_step(self) -> int:
        """``W``: tokens written at each target step."""
        return 1 if self.pattern == "flattened" else self.target.codebooks

    @property
    def places(self) -> int:
        """Number of (segment, codebook) pairs."""
        return sum(stream.codebooks for stream in (*self.conditions, self.target))

    def first_place(self, segment: int) -> int:
        """Row of the place embedding at which ``segment``'s codebooks begin."""
        return sum(stream.codebooks for stream in (*self.conditions, self.target)[:segment])

    def condition_frames(self, target_frames: int) -> list[int]:
        """Frames of each condition beside ``target_frames`` frames of the target.

        Raises:
            ValueError: The durations do not meet on whole frames.
        """
        frames = []
        for stream in self.conditions:
            exact = target_frames * stream.rate_hz
            if exact % self.target.rate_hz:
                raise ValueError(
                    f"{target_frames} frames of {self.target.name!r} ({self.target.rate_hz} Hz) are not whole frames "
                    f"of {stream.name!r} ({stream.rate_hz} Hz); use durations that are multiples of {FRAME_GRID_S} s"
                )
            frames.append(exact // self.target.rate_hz if stream.rate_hz else 1)
        return frames

    def target_steps(self, target_frames: int) -> int:
        """Steps that the pattern needs for ``target_frames`` frames."""
        if self.pattern == "flattened":
            return target_frames * self.target.codebooks
        if self.pattern == "delay":
            return target_frames + self.target.codebooks - 1
        return target_frames

    def alignment(self, target_frames: int) -> list[Tensor]:
        """For each condition, the frame that sounds at each target frame: int64 ``[T]`` each."""
        return [nearest_frames(stream, self.target, target_frames) for stream in self.conditions]

    def plan(self, target_frames: int) -> SequencePlan:
        """The steps for a target of ``target_frames`` frames (made once for each length)."""
        return _plan(self, target_frames)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept tensors must serve training too, wherever they were first made
def _plan(layout: SequenceLayout, target_frames: int) -> SequencePlan:
    if target_frames < 1:
        raise ValueError(f"a sequence needs at least 1 target frame, got {target_frames}")
    frames_of = layout.condition_frames(target_frames)
    parts: list[tuple[Tensor, Tensor, int, TokenStream]] = []  # frame, codebook, segment, stream
    if layout.conditioning == "prefix":
        for segment, (stream, frames) in enumerate(zip(layout.conditions, frames_of, strict=True)):
            width = stream.codebooks if layout.pattern == "flattened" else 1
            step = torch.arange(frames * width, device="cpu")
            parts.append((step // width, step % width, segment, stream))
    condition_steps = sum(len(frame) for frame, *_ in parts)
    step = torch.arange(layout.target_steps(target_frames), device="cpu")
    width = layout.target.codebooks if layout.pattern == "flattened" else 1
    parts.append(((step // width).clamp(max=target_frames - 1), step % width, len(layout.conditions), layout.target))
    return SequencePlan(
        segment=torch.cat([torch.full_like(frame, segment) for frame, _, segment, _ in parts]),
        codebook=torch.cat([codebook for _, codebook, _, _ in parts]),
        frame=torch.cat([frame for frame, *_ in parts]),
        ticks=torch.cat(
            [
                frame * stream.ticks_per_frame if stream.rate_hz else torch.full_like(frame, TIMELESS)
                for frame, _, _, stream in parts
            ]
        ),
        place=torch.cat([layout.first_place(segment) + codebook for _, codebook, segment, _ in parts]),
        condition_steps=condition_steps,
        target_frames=target_frames,
    )
