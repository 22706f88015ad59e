"""Non-autoregressive writing: a target as a whole (:func:`fill`), or stretch after stretch (:class:`Filler`).

A non-autoregressive stage sees the whole target at once, which a live one does not have. :class:`Filler` writes the
frames that have become possible, in one pass for each codebook, and keeps the keys and values that these frames had in
that pass. Later frames look at them as they looked at each other. Choices:

* Earlier frames are not computed again, so a stretch costs what its own frames cost, however much of the past it sees.
* What is kept was computed with the frames that followed it then, and nothing later: the first layer's keys and values
  are those of the whole sequence, further up they differ by what the newer frames would have told the older ones.
* Frames beyond the new ones may be computed as context; they are neither returned nor kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hafm_lightning.modeling.cache import CachedSteps, KeyValueCache
from hafm_lightning.modeling.relative_position import StepPositions
from hafm_lightning.modeling.sampling import (
    SamplingOptions,
    check_clips,
    check_prefix,
    choose,
    guidance_rows,
    guided,
    uniform_numbers,
)
from hafm_lightning.modeling.token_model import TokenModel


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
    """Write a whole target, one pass for each codebook.

    Arguments and result are those of :func:`~hafm_lightning.modeling.decoding.generate`.
    """
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


class Filler:
    """Fills a target stretch after stretch.

    Args:
        model: The stage's network: ``nonautoregressive``, its conditions ``aligned``.
        options: Guidance and sampling.
        context: Earlier frames that new ones see, at most.

    Raises:
        ValueError: The network is of another kind.
    """

    def __init__(self, model: TokenModel, options: SamplingOptions, context: int) -> None:
        if model.layout.pattern != "nonautoregressive" or model.aligned is None:
            raise ValueError("a target is filled by stretches if it is nonautoregressive and its conditions aligned")
        self.model, self.options, self.context = model, options, context
        self.known = 0
        """Frames whose keys and values are kept."""
        self._caches: list[KeyValueCache] = []

    @torch.inference_mode()
    def fill(self, conditions: Mapping[str, Tensor], seeds: Sequence[int], frames: int, new: int) -> Tensor:
        """Fill the next frames.

        Args:
            conditions: Name -> ids ``[B, K, T]`` of every condition stream; their last ``frames`` target frames are
                those to fill, what comes before is heard by the conditions' convolution.
            seeds: One seed for each clip.
            frames: Frames to compute.
            new: How many of them, from the first on, are written.

        Returns:
            Target ids ``[B, K, new]``.
        """
        model, target, batch = self.model, self.model.layout.target, len(seeds)
        check_clips(model, conditions, batch)
        streams, rows = guidance_rows(model, conditions, self.options)
        heard = max(
            streams[stream.name].shape[-1] * target.rate_hz // stream.rate_hz
            for stream in model.layout.conditions
            if stream.rate_hz
        )
        clocked = model.frame_conditions(streams, heard)
        assert clocked is not None
        clocked = clocked[:, heard - frames :].expand(rows * batch, -1, -1)
        uniform = uniform_numbers(seeds, (target.codebooks, frames)).to(model.device)
        codes = torch.zeros(batch, target.codebooks, frames, dtype=torch.int64, device=model.device)
        self._make_room(rows * batch, frames)
        bias = self._bias(frames)
        for k, cache in enumerate(self._caches):
            x = model.filling(codes.repeat(rows, 1, 1), clocked, k)
            hidden = model.backbone(x, CachedSteps(cache, self.known, bias))
            logits = guided(model.head(hidden, k), rows, self.options)
            codes[:, k] = choose(logits, uniform[:, k], self.options)
        self.known += new
        return codes[:, :, :new]

    def _bias(self, frames: int) -> Tensor:
        """Bias of the new frames against all that they see, ``[H, frames, visible]``."""
        visible = self.known + frames
        positions = StepPositions.of(self.model.layout.plan(visible), self.model.device)
        queries, keys = (torch.arange(first, visible, device=self.model.device) for first in (self.known, 0))
        return self.model.relative_position.bias(positions, queries, keys).to(self.model.head_weight.dtype)

    def _make_room(self, rows: int, frames: int) -> None:
        """Forget frames beyond the context, and see to it that ``frames`` more fit."""
        model, kept = self.model, min(self.known, self.context)
        first, capacity = self.known - kept, kept + frames
        if self._caches and self._caches[0].capacity >= capacity:
            if first:
                for cache in self._caches:
                    cache.copy_steps(cache, first, kept)
        else:
            before, size = self._caches, (rows, self.context + frames, model.device, model.head_weight.dtype)
            codebooks = model.layout.target.codebooks
            self._caches = [KeyValueCache(model.config.backbone, *size) for _ in range(codebooks)]
            for old, cache in zip(before, self._caches, strict=False):
                cache.copy_steps(old, first, kept)
        self.known = kept
