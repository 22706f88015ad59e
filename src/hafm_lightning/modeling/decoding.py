"""Cached, guided decoding: conditions in, tokens out.

A :class:`Decoder` writes the target step by step. Choices:

* With guidance, conditioned and null rows ride in one batch of ``2 B``.
* The cache is preallocated for the whole sequence and written in place.
* Every step is the same function of tensors (the step number is one of them), so that on CUDA it is captured once
  for each codebook as a graph and replayed; elsewhere attention reads only the steps written so far.
* Tokens already known (the start of a window in long form) are forced, and prefilled in one pass.
* Special ids can never come out: the heads have no row for them.
* ``aligned`` conditions may arrive while decoding: :meth:`Decoder.condition` may be called again with more of them,
  and :meth:`Decoder.advance` goes only as far as it is told.

The non-autoregressive pattern is filled in one pass a codebook by :func:`fill`. :func:`generate` serves both.
Stretches of a target that goes on are filled by :class:`~hafm_lightning.modeling.filling.Filler`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hafm_lightning.modeling.conditioning import null_conditions
from hafm_lightning.modeling.layout import deinterleave, interleave
from hafm_lightning.modeling.sampling import SamplingOptions, choose, guide, uniform_numbers
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.transformer import CachedSteps, KeyValueCache

UNKNOWN = -4
"""A place of the grid that is still to be written. Never an input of the model."""


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
    decoder = Decoder(model, length, options, seeds, prefix=prefix)
    decoder.condition(conditions)
    return decoder.advance(length, on_frame)


def target_frames(model: TokenModel, conditions: Mapping[str, Tensor]) -> int:
    """Target frames beside the given conditions; ValueError where none of them has a frame rate."""
    for stream in model.layout.conditions:
        if stream.rate_hz and stream.name in conditions:
            exact = conditions[stream.name].shape[-1] * model.layout.target.rate_hz
            if exact % stream.rate_hz:
                raise ValueError(
                    f"{conditions[stream.name].shape[-1]} frames of {stream.name!r} are not whole frames of "
                    f"{model.layout.target.name!r}"
                )
            return exact // stream.rate_hz
    raise ValueError("no condition with a frame rate is given: say how many frames to write")


def guidance_rows(
    model: TokenModel, conditions: Mapping[str, Tensor], options: SamplingOptions
) -> tuple[dict[str, Tensor], int]:
    """The conditions of every row that runs, and the number of rows for each clip (2 with guidance, else 1)."""
    streams = {s.name: conditions[s.name].to(model.device) for s in model.layout.conditions if s.name in conditions}
    missing = [s.name for s in model.layout.conditions if s.name not in streams]
    if missing:
        raise ValueError(f"condition {missing[0]!r} is missing; given: {', '.join(sorted(conditions))}")
    if not streams or options.guidance == 1:
        return streams, 1
    null = null_conditions(streams, model.layout.conditions)
    if options.guidance == 0:
        return null, 1
    return {name: torch.cat((ids, null[name])) for name, ids in streams.items()}, 2


def guided(logits: Tensor, rows: int, options: SamplingOptions) -> Tensor:
    """Logits of all rows ``[rows B, ...]`` -> guided float32 logits ``[B, ...]``."""
    logits = logits.float()
    if rows == 1:
        return logits
    conditioned, unconditioned = logits.chunk(2)
    return guide(conditioned, unconditioned, options.guidance)


class Decoder:
    """Decoding of one window of the target.

    Args:
        model: The stage's network; not ``nonautoregressive``.
        frames: Length ``T`` of the window, in target frames.
        options: Guidance and sampling.
        seeds: One seed for each clip.
        prefix: Known first frames ``[B, K, T0]``.
        capture: Replay CUDA graphs; default: on CUDA devices.
        static: Keep all shapes static, as capturing needs; default: as ``capture``.
    """

    def __init__(
        self,
        model: TokenModel,
        frames: int,
        options: SamplingOptions,
        seeds: Sequence[int],
        *,
        prefix: Tensor | None = None,
        capture: bool | None = None,
        static: bool | None = None,
    ) -> None:
        layout = model.layout
        if layout.pattern == "nonautoregressive":
            raise ValueError("the non-autoregressive pattern has no steps to decode; use fill()")
        self.model, self.frames, self.options = model, frames, options
        self.batch, self.device = len(seeds), model.device
        self.capture = self.device.type == "cuda" if capture is None else capture
        self.static = self.capture or bool(static)
        self.plan = layout.plan(frames)
        self.positions, _ = model.positions(frames)
        steps, width = self.plan.target_steps, layout.tokens_per_step
        known = torch.full((self.batch, layout.target.codebooks, frames), UNKNOWN)
        if prefix is not None:
            check_prefix(prefix, (self.batch, layout.target.codebooks, frames))
            known[:, :, : prefix.shape[-1]] = prefix.cpu()
        grid = interleave(known, layout.pattern)
        unwritten = (grid == UNKNOWN).any(0).any(0)  # [S_t]
        self.step = int(unwritten.int().argmax()) if unwritten.any() else steps
        self.grid = grid.to(self.device)
        self.uniform = uniform_numbers(seeds, (width, steps)).to(self.device)
        self.places, self.frame_of_step = model.step_places(frames)
        target_steps = torch.arange(self.plan.condition_steps, self.plan.steps, device=self.device)
        self.rows_of_step = model.relative_position.rows(
            self.positions, target_steps, torch.arange(self.plan.steps, device=self.device)
        ).int()
        self.table = model.relative_position.table().t().contiguous()  # [H, R]
        codebooks, late = layout.target.codebooks, layout.target.codebooks - 1 if layout.pattern == "delay" else 0
        self._wholly_drawn = self.step + late, steps if layout.pattern == "flattened" else frames
        first = torch.arange(codebooks, device=self.device) * layout.target.vocabulary
        self._first_rows = list(first.roll(1)[:, None]) if layout.pattern == "flattened" else [first]
        self.rows = 0
        self.streams: dict[str, Tensor] = {}
        self.clocked: Tensor | None = None
        self.heard = 0  # frames that aligned conditions reach
        self.cache: KeyValueCache | None = None
        self._index = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def condition(self, conditions: Mapping[str, Tensor]) -> None:
        """Give the conditions, or with ``aligned`` more of them (what was written already stays).

        ``aligned`` conditions may end before the window does; then :meth:`advance` goes no further than they reach.

        Raises:
            ValueError: Conditions missing or of the wrong length, or changed after decoding began with a prefix.
        """
        if self.cache is not None and self.model.aligned is None:
            raise ValueError("conditions in a prefix cannot change once decoding began")
        check_clips(self.model, conditions, self.batch)
        self.streams, self.rows = guidance_rows(self.model, conditions, self.options)
        if self.model.aligned is not None:
            self._lay_on_clock(self.model.aligned.behind)

    def _lay_on_clock(self, behind: int) -> None:
        """Conditions on the target's clock, as far as they reach, from the frame of the next step on."""
        target, streams = self.model.layout.target, [s for s in self.model.layout.conditions if s.rate_hz]
        lengths = [self.streams[s.name].shape[-1] * target.rate_hz // s.rate_hz for s in streams]
        self.heard = min(lengths, default=self.frames)
        if self.heard > self.frames:
            raise ValueError(f"the conditions reach to frame {self.heard} of a window of {self.frames} frames")
        if self.clocked is None:
            shape = (self.rows * self.batch, self.frames, self.places.shape[-1])
            self.clocked = self.places.new_zeros(shape)
        first = int(self.frame_of_step[min(self.step, self.plan.target_steps - 1)]) if self.cache is not None else 0
        if first >= self.heard:
            return
        whole = math.lcm(*(target.rate_hz // math.gcd(target.rate_hz, s.rate_hz) for s in streams))
        start = max(0, first - behind) // whole * whole  # frames of all streams begin there
        cut = dict(self.streams)
        for stream in streams:
            cut[stream.name] = cut[stream.name][:, :, start * stream.rate_hz // target.rate_hz :]
        clocked = self.model.frame_conditions(cut, self.heard - start)
        assert clocked is not None
        self.clocked[:, first : self.heard] = clocked[:, first - start :]  # in place: captured graphs read this buffer

    @torch.inference_mode()
    def advance(self, frame: int, on_frame: Callable[[int], None] | None = None) -> Tensor:
        """Write on until frames ``0 .. frame - 1`` are complete; returns them all, ``[B, K, frame]``."""
        layout, last = self.model.layout, self.plan.target_steps
        if not 0 < frame <= self.frames:
            raise ValueError(f"the window has {self.frames} frames, {frame} were asked for")
        if not self.rows:
            raise ValueError("call condition() before advance()")
        until = layout.target_steps(frame)
        if self.model.aligned is not None and int(self.frame_of_step[until - 1]) >= self.heard:
            raise ValueError(f"the conditions reach to frame {self.heard}, which is too early for frame {frame}")
        if self.cache is None and self.step < min(until, last):
            self._prefill()
        steps_per_frame = layout.target.codebooks if layout.pattern == "flattened" else 1
        while self.step < until:
            self._advance_one()
            if on_frame is not None and self.step % steps_per_frame == 0:
                on_frame(min(self.step // steps_per_frame, frame))
        codes = deinterleave(self.grid[:, :, : layout.target_steps(frame)], layout.pattern, layout.target.codebooks)
        return codes.cpu() if self.device.type == "cpu" else codes

    # --- one step ---------------------------------------------------------------------------------------------

    def _prefill(self) -> None:
        """Fill the cache with the conditions and the steps before the first unknown one, in one pass."""
        model = self.model
        total = self.rows * self.batch
        self.cache = model.cache(total, self.plan.steps)
        parts = []
        prefix = model.prefix(self.streams, self.frames)
        if prefix is not None:
            parts.append(prefix)
        if self.step:
            written = self._embed_steps(self.grid[:, :, : self.step - 1]).repeat(self.rows, 1, 1)
            x = torch.cat((model.begin.expand(total, 1, -1), written), dim=1) + self.places[: self.step]
            if self.clocked is not None:
                x = x + self.clocked[:, self.frame_of_step[: self.step]]
            parts.append(x)
        if parts:
            inputs = torch.cat(parts, dim=1)
            geometry = model.prefix_geometry(self.frames, inputs.shape[1])
            model.backbone.prefill(inputs, model.relative_position.table(), geometry, self.cache)

    def _embed_steps(self, grid: Tensor) -> Tensor:
        """Tokens ``[B, W, n]`` of the first n steps -> vectors ``[B, n, D]``."""
        target, codebooks = self.model.target, self.model.layout.target.codebooks
        if self.model.layout.pattern != "flattened":
            return target(grid).sum(1)  # type: ignore[no-any-return]
        steps = grid.shape[-1]
        padded = torch.cat((grid[:, 0], grid.new_zeros(grid.shape[0], -steps % codebooks)), dim=1)
        codes = padded.view(grid.shape[0], -1, codebooks).transpose(1, 2)
        return target(codes).transpose(1, 2).flatten(1, 2)[:, :steps]  # type: ignore[no-any-return]

    def _advance_one(self) -> None:
        codebook = self.step % self.model.layout.target.codebooks if self.model.layout.pattern == "flattened" else 0
        if self.static:
            self._index.fill_(self.step)
        if not self.capture or self.step == 0:  # the first step's input is no token: never captured
            self._compute(codebook)
        elif codebook in self._graphs:
            self._graphs[codebook].replay()
        else:
            self._capture(codebook)
        self.step += 1

    def _compute(self, codebook: int) -> None:
        """Run the backbone on the input of step ``_index`` and draw that step's tokens into the grid."""
        model, layout, index = self.model, self.model.layout, self._index
        assert self.cache is not None
        x = self._input(codebook)  # [R, 1, D]
        if self.clocked is not None:
            frame = self._of_step(self.frame_of_step, 0)
            x = x + self.clocked.index_select(1, frame.view(1))
        first = self.plan.condition_steps
        visible = self.plan.steps if self.static else first + self.step + 1
        rows = self._of_step(self.rows_of_step, 0)[:visible]
        bias = self.table.index_select(1, rows)[:, None].to(x.dtype)  # [H, 1, visible]
        start = first + index if self.static else first + self.step
        book = codebook if layout.pattern == "flattened" else None
        logits = model.step_logits(x, CachedSteps(self.cache, start, visible, bias), book)  # [R, W, V]
        drawn = choose(guided(logits, self.rows, self.options), self._of_step(self.uniform, 2), self.options)
        known = self._of_step(self.grid, 2)  # [B, W]
        tokens = drawn if self._free(self.step) else torch.where(known == UNKNOWN, drawn, known)
        if self.static:
            self.grid.index_copy_(2, index, tokens[..., None])
        else:
            known.copy_(tokens)

    def _of_step(self, x: Tensor, dim: int, back: int = 0) -> Tensor:
        """What ``x`` holds for this step, or one ``back``, without that dimension; a view where shapes may vary."""
        if self.static:
            return x.index_select(dim, self._index - back).squeeze(dim)
        return x.select(dim, self.step - back)

    def _free(self, step: int) -> bool:
        """Whether nothing of a step was known or EMPTY before; never said where one function must serve all steps."""
        first, last = self._wholly_drawn
        return not self.static and first <= step < last

    def _input(self, codebook: int) -> Tensor:
        """Place and what the step before wrote, as vectors ``[R, 1, D]``; the begin vector at the first step."""
        model, place = self.model, self._of_step(self.places, 0)  # [D]
        if self.step == 0:
            return model.begin.expand(self.rows * self.batch, 1, -1) + place
        before = self._of_step(self.grid, 2, back=1)  # [B, W]
        if self._free(self.step - 1):
            vectors = model.target.known(before, self._first_rows[codebook])
        else:
            books = slice(None)
            if model.layout.pattern == "flattened":
                previous = (codebook - 1) % model.layout.target.codebooks
                books = slice(previous, previous + 1)
            vectors = model.target(before, books)
        x = vectors.sum(1, keepdim=True) + place
        return x if self.rows == 1 else x.repeat(self.rows, 1, 1)

    def _capture(self, codebook: int) -> None:
        """Record this step as a graph for the steps to come, and run it."""
        saved = self.grid.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up outside the graph, as capturing demands
            self._compute(codebook)
        torch.cuda.current_stream().wait_stream(side)
        self.grid.copy_(saved)  # the step's tokens are unknown again; its cache entry is simply rewritten
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._compute(codebook)
        self._graphs[codebook] = graph
        graph.replay()


@torch.inference_mode()
def fill(
    model: TokenModel,
    conditions: Mapping[str, Tensor],
    options: SamplingOptions,
    seeds: Sequence[int],
    frames: int,
    prefix: Tensor | None = None,
    on_frame: Callable[[int], None] | None = None,
) -> Tensor:
    """Non-autoregressive writing: one pass for each codebook; arguments and result as :func:`generate`."""
    target, batch = model.layout.target, len(seeds)
    check_clips(model, conditions, batch)
    streams, rows = guidance_rows(model, conditions, options)
    uniform = uniform_numbers(seeds, (target.codebooks, frames)).to(model.device)
    codes = torch.zeros(batch, target.codebooks, frames, dtype=torch.int64, device=model.device)
    known = 0
    if prefix is not None:
        check_prefix(prefix, (batch, target.codebooks, frames))
        known = prefix.shape[-1]
        codes[:, :, :known] = prefix.to(codes)
    before, clocked = model.prefix(streams, frames), model.frame_conditions(streams, frames)
    for k in range(target.codebooks if known < frames else 0):
        logits = model.codebook_logits(codes.repeat(rows, 1, 1), before, clocked, k, known)  # [R, T - known, V]
        codes[:, k, known:] = choose(guided(logits, rows, options), uniform[:, k, known:], options)
        if on_frame is not None:
            on_frame(frames * (k + 1) // target.codebooks)
    return codes


def check_clips(model: TokenModel, conditions: Mapping[str, Tensor], seeds: int) -> None:
    """Raise ValueError unless the model's conditions, each ``[B, K, T]``, hold one clip for each seed."""
    for stream in model.layout.conditions:
        ids = conditions.get(stream.name)
        if ids is not None and len(ids) != seeds:
            raise ValueError(
                f"condition {stream.name!r} holds {len(ids)} clips for {seeds} seeds; give one seed for each clip"
            )


def check_prefix(prefix: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless ``prefix [B, K, T0]`` fits a target of ``shape`` (B, K, T)."""
    batch, codebooks, frames = shape
    if prefix.dim() != 3 or prefix.shape[:2] != (batch, codebooks) or prefix.shape[2] > frames:
        raise ValueError(f"prefix must be [{batch}, {codebooks}, at most {frames}], got {tuple(prefix.shape)}")
