"""Cached, guided decoding: conditions in, tokens out.

A :class:`Decoder` writes the target step by step. Choices:

* With guidance, conditioned and null rows ride in one batch of ``2 B``.
* The cache is preallocated for the whole sequence and written in place.
* Attention reads only the steps written so far. A device may bring a decoder of its own (:func:`decoder_for`).
* Known tokens (the start of a window of a long take) are forced, and prefilled in one pass.
* Special ids can never come out: the heads have no row for them.
* ``aligned`` conditions may arrive while decoding: :meth:`Decoder.condition` may be called again with more of them.

:func:`generate` writes every pattern; :mod:`~hafm_lightning.modeling.filling` the non-autoregressive one, which has no
steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.modeling.cache import CachedSteps, KeyValueCache, Prefill
from hafm_lightning.modeling.filling import fill
from hafm_lightning.modeling.layout import deinterleave, interleave
from hafm_lightning.modeling.sampling import (
    SamplingOptions,
    check_prefix,
    choose,
    guidance_rows,
    guided,
    uniform_numbers,
)
from hafm_lightning.modeling.token_model import TokenModel

UNKNOWN = -4
"""A place of the grid that is still to be written. Never an input of the model."""


def target_frames(model: TokenModel, conditions: Mapping[str, Tensor]) -> int:
    """Target frames beside the given conditions; ValueError where none of them has a frame rate."""
    target = model.layout.target
    for stream in model.layout.conditions:
        if stream.rate_hz and stream.name in conditions:
            given = conditions[stream.name].shape[-1]
            if given * target.rate_hz % stream.rate_hz:
                raise ValueError(f"{given} frames of {stream.name!r} are not whole frames of {target.name!r}")
            return given * target.rate_hz // stream.rate_hz
    raise ValueError("no condition with a frame rate is given: say how many frames to write")


class Decoder:
    """Decoding of one window of the target, ``frames`` long; other arguments are those of :func:`generate`.

    Raises:
        ValueError: The network is ``nonautoregressive``, or the prefix does not fit.
    """

    def __init__(
        self,
        model: TokenModel,
        frames: int,
        options: SamplingOptions,
        seeds: Sequence[int],
        *,
        prefix: Tensor | None = None,
    ) -> None:
        layout = model.layout
        if layout.pattern == "nonautoregressive":
            raise ValueError("the non-autoregressive pattern has no steps to decode; use fill()")
        self.model, self.frames, self.options = model, frames, options
        self.batch, self.device = len(seeds), model.device
        self.plan = layout.plan(frames)
        steps, width = self.plan.target_steps, layout.tokens_per_step
        self.steps_per_frame = layout.target.codebooks // width  # more than 1 where each step writes one codebook
        known = torch.full((self.batch, layout.target.codebooks, frames), UNKNOWN)
        if prefix is not None:
            check_prefix(prefix, (self.batch, layout.target.codebooks, frames), layout.target.vocabulary)
            known[:, :, : prefix.shape[-1]] = prefix.cpu()
        grid = interleave(known, layout.pattern)
        unwritten = (grid == UNKNOWN).any(0).any(0)  # [S_t]
        self.step = int(unwritten.int().argmax()) if unwritten.any() else steps
        self.grid = grid.to(self.device)
        self.uniform = uniform_numbers(seeds, (width, steps)).to(self.device)
        self.places, self.frame_of_step = model.step_places(frames)
        target_steps = torch.arange(self.plan.condition_steps, self.plan.steps, device=self.device)
        self.rows_of_step = model.relative_position.rows(
            model.positions(frames), target_steps, torch.arange(self.plan.steps, device=self.device)
        ).int()
        self.table = model.relative_position.table().t().contiguous()  # [H, R]
        self.rows = 0
        self.streams: dict[str, Tensor] = {}
        self.clocked: Tensor | None = None
        self.given_frames = 0  # target frames of the aligned conditions
        self.cache: KeyValueCache | None = None

    @torch.inference_mode()
    def condition(self, conditions: Mapping[str, Tensor]) -> None:
        """Give the conditions; ``aligned`` ones may end before the window does, and be followed by longer ones.

        Raises:
            ValueError: Conditions are missing, of the wrong length, or in a prefix and decoding has begun.
        """
        if self.cache is not None and self.model.aligned is None:
            raise ValueError("conditions in a prefix cannot change once decoding began")
        self.streams, self.rows = guidance_rows(self.model, conditions, self.options, self.batch)
        if self.model.aligned is not None:
            self._lay_on_clock(self.model.aligned.behind)

    def _lay_on_clock(self, behind: int) -> None:
        """Conditions on the target's clock, as far as they reach, from the frame of the next step on."""
        target, streams = self.model.layout.target, [s for s in self.model.layout.conditions if s.rate_hz]
        lengths = [self.streams[s.name].shape[-1] * target.rate_hz // s.rate_hz for s in streams]
        self.given_frames = min(lengths, default=self.frames)
        if self.given_frames > self.frames:
            raise ValueError(f"the conditions reach to frame {self.given_frames} of a window of {self.frames} frames")
        if self.clocked is None:
            self.clocked = self.places.new_zeros(self.rows * self.batch, self.frames, self.places.shape[-1])
        first = 0 if self.cache is None else int(self.frame_of_step[min(self.step, self.plan.target_steps - 1)])
        if first >= self.given_frames:
            return
        whole = math.lcm(*(target.rate_hz // math.gcd(target.rate_hz, s.rate_hz) for s in streams))
        start = max(0, first - behind) // whole * whole  # frames of all streams begin there
        cut = dict(self.streams)
        for stream in streams:
            cut[stream.name] = cut[stream.name][:, :, start * stream.rate_hz // target.rate_hz :]
        clocked = self.model.frame_conditions(cut, self.given_frames - start)
        assert clocked is not None
        self.clocked[:, first : self.given_frames] = clocked[
            :, first - start :
        ]  # in place: recorded steps read this tensor

    @torch.inference_mode()
    def advance(self, frame: int, on_frame: Callable[[int], None] | None = None) -> Tensor:
        """Write on until frames ``0 .. frame - 1`` are complete; returns them all, ``[B, K, frame]``."""
        layout = self.model.layout
        if not 0 < frame <= self.frames:
            raise ValueError(f"the window has {self.frames} frames, frame {frame} was requested")
        if not self.rows:
            raise ValueError("call condition() before advance()")
        until = layout.target_steps(frame)
        if self.model.aligned is not None and int(self.frame_of_step[until - 1]) >= self.given_frames:
            raise ValueError(f"the conditions reach to frame {self.given_frames}, which is too early for frame {frame}")
        if self.cache is None and self.step < until:
            self._prefill()
        while self.step < until:
            self._advance_one()
            if on_frame is not None and self.step % self.steps_per_frame == 0:
                on_frame(min(self.step // self.steps_per_frame, frame))
        return deinterleave(self.grid[:, :, :until], layout.pattern, layout.target.codebooks)

    # --- one step ---------------------------------------------------------------------------------------------

    def _prefill(self) -> None:
        """Fill the cache with the conditions and the steps before the first unknown one, in one pass."""
        model = self.model
        total = self.rows * self.batch
        self.cache = model.cache(total, self.plan.steps)
        prefix = model.prefix(self.streams, self.frames)
        parts = [] if prefix is None else [prefix]
        if self.step:
            written = self._embed_steps(self.grid[:, :, : self.step - 1]).repeat(self.rows, 1, 1)
            x = torch.cat((model.begin.expand(total, 1, -1), written), dim=1) + self.places[: self.step]
            if self.clocked is not None:
                x = x + self.clocked[:, self.frame_of_step[: self.step]]
            parts.append(x)
        if parts:
            inputs = torch.cat(parts, dim=1)
            model.backbone(inputs, Prefill(self.cache, model.attention(self.frames, inputs.shape[1])))

    def _embed_steps(self, grid: Tensor) -> Tensor:
        """Tokens ``[B, W, n]`` of the first n steps -> vectors ``[B, n, D]``."""
        layout, steps = self.model.layout, grid.shape[-1]
        if layout.pattern != "flattened":
            return self.model.target(grid).sum(1)  # type: ignore[no-any-return]
        whole_frames = F.pad(grid, (0, -steps % self.steps_per_frame))
        return self.model.written(deinterleave(whole_frames, layout.pattern, layout.target.codebooks))[:, :steps]

    def _advance_one(self) -> None:
        self._compute(self.step % self.steps_per_frame)
        self.step += 1

    def _compute(self, codebook: int) -> None:
        """Run the network on the input of the current step and draw that step's tokens into the grid."""
        x = self._input(codebook)  # [R, 1, D]
        if self.clocked is not None:
            frame = self._of_step(self.frame_of_step, 0)
            x = x + self.clocked.index_select(1, frame.view(1))
        book = codebook if self.steps_per_frame > 1 else None
        logits = self.model.step_logits(x, self._attending(x.dtype), book)  # [R, W, V]
        self._draw(logits)

    def _draw(self, logits: Tensor) -> None:
        """Draw the current step's tokens from logits ``[R, W, V]`` into the grid, where they are unknown."""
        drawn = choose(guided(logits, self.rows, self.options), self._of_step(self.uniform, 2), self.options)
        forced = self._of_step(self.grid, 2)  # [B, W]
        self._store(torch.where(forced == UNKNOWN, drawn, forced))

    def _attending(self, dtype: torch.dtype) -> CachedSteps:
        """How the current step sees itself and the steps before it."""
        assert self.cache is not None
        step = self.plan.condition_steps + self.step
        rows = self._of_step(self.rows_of_step, 0)[: step + 1]
        return CachedSteps(self.cache, step, self.table.index_select(1, rows)[:, None].to(dtype))

    def _of_step(self, x: Tensor, dim: int, back: int = 0) -> Tensor:
        """What ``x`` holds for the current step, or for one ``back`` steps before it, without that dimension."""
        return x.select(dim, self.step - back)

    def _store(self, tokens: Tensor) -> None:
        """Write the tokens ``[B, W]`` of the current step into the grid."""
        self.grid[:, :, self.step] = tokens

    def _input(self, codebook: int) -> Tensor:
        """Place and what the step before wrote, as vectors ``[R, 1, D]``; the begin vector at the first step."""
        model, place = self.model, self._of_step(self.places, 0)  # [D]
        if self.step == 0:
            return model.begin.expand(self.rows * self.batch, 1, -1) + place
        before, books = self._of_step(self.grid, 2, back=1), slice(None)  # [B, W]
        if self.steps_per_frame > 1:
            previous = (codebook - 1) % self.steps_per_frame
            books = slice(previous, previous + 1)
        x: Tensor = model.target(before, books).sum(1, keepdim=True) + place
        return x if self.rows == 1 else x.repeat(self.rows, 1, 1)


@singledispatch
def decoder_for(model: TokenModel) -> type[Decoder]:
    """The decoder for a network, by the class of the network: a device may register one for its own."""
    return Decoder


@torch.inference_mode()
def generate(
    model: TokenModel,
    conditions: Mapping[str, Tensor],
    options: SamplingOptions,
    seeds: Sequence[int],
    *,
    frames: int | None = None,
    prefix: Tensor | None = None,
    on_frame: Callable[[int], None] | None = None,
) -> Tensor:
    """Write the target for a batch of clips.

    Args:
        model: The stage's network, in eval mode.
        conditions: Name -> ids ``[B, K, T]`` of every condition stream.
        options: Guidance and sampling.
        seeds: One seed for each clip.
        frames: Target frames ``T``; default: as long as the conditions.
        prefix: Known first frames of the target, ``[B, K, T0]``; they come back unchanged.
        on_frame: Called with the number of frames done, for progress; it may raise to cancel.

    Returns:
        Target ids ``[B, K, T]``.

    Raises:
        ValueError: Conditions missing, of unequal durations or not one clip a seed, or a prefix that does not fit.
    """
    length = target_frames(model, conditions) if frames is None else frames
    if model.layout.pattern == "nonautoregressive":
        return fill(model, conditions, options, seeds, length, prefix, on_frame)
    decoder = decoder_for(model)(model, length, options, seeds, prefix=prefix)
    decoder.condition(conditions)
    return decoder.advance(length, on_frame)
