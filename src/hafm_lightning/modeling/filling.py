"""Non-autoregressive writing: a target as a whole (:func:`fill`), or stretch after stretch (:class:`Filler`).

A non-autoregressive stage sees the whole target at once, which a live one does not have. :class:`Filler` writes the
frames that have become possible, in one pass for each codebook, and keeps the keys and values that these frames had in
that pass, for later frames to attend to. So a stretch costs what its own frames cost, and older frames do not see newer
ones: beyond the first layer their keys and values differ from those of the whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hafm_lightning.modeling.cache import CachedSteps, KeyValueCache
from hafm_lightning.modeling.sampling import (
    SamplingOptions,
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
    target = model.layout.target
    streams, rows, codes, uniform = _begin(model, conditions, options, seeds, frames)
    known = 0
    if prefix is not None:
        check_prefix(prefix, (len(seeds), target.codebooks, frames), target.vocabulary)
        known = prefix.shape[-1]
        codes[:, :, :known] = prefix.to(codes)
    before, clocked = model.prefix(streams, frames), model.frame_conditions(streams, frames)
    for k in range(target.codebooks if known < frames else 0):
        logits = model.codebook_logits(codes.repeat(rows, 1, 1), before, clocked, k, known)  # [R, T - known, V]
        codes[:, k, known:] = choose(guided(logits, rows, options), uniform[:, k, known:], options)
        if on_frame is not None:
            on_frame(frames * (k + 1) // target.codebooks)
    return codes


def _begin(
    model: TokenModel, conditions: Mapping[str, Tensor], options: SamplingOptions, seeds: Sequence[int], frames: int
) -> tuple[dict[str, Tensor], int, Tensor, Tensor]:
    """Conditions of all rows, rows for each clip, empty codes ``[B, K, frames]``, and random numbers for them."""
    streams, rows = guidance_rows(model, conditions, options, len(seeds))
    uniform = uniform_numbers(seeds, (model.layout.target.codebooks, frames)).to(model.device)
    return streams, rows, torch.zeros_like(uniform, dtype=torch.int64), uniform


class Filler:
    """Fills a target stretch after stretch; new frames see at most ``context`` earlier ones.

    Raises:
        ValueError: The network is not ``nonautoregressive`` with ``aligned`` conditions.
    """

    def __init__(self, model: TokenModel, options: SamplingOptions, context: int) -> None:
        if model.layout.pattern != "nonautoregressive" or model.aligned is None:
            raise ValueError("a target is filled by stretches if it is nonautoregressive and its conditions aligned")
        self.model, self.options, self.context = model, options, context
        self.known = 0  # frames whose keys and values are kept
        self._caches: list[KeyValueCache] = []

    @torch.inference_mode()
    def fill(self, conditions: Mapping[str, Tensor], seeds: Sequence[int], frames: int, new: int) -> Tensor:
        """Fill the next frames.

        Args:
            conditions: Name -> ids ``[B, K, T]`` of every condition stream; their last ``frames`` target frames are
                those to fill, the conditions' convolution reads the earlier ones.
            seeds: One seed for each clip.
            frames: Frames to compute; those beyond the new ones are context, neither returned nor kept.
            new: Frames of the result, ``[B, K, new]``.
        """
        model, target = self.model, self.model.layout.target
        streams, rows, codes, uniform = _begin(model, conditions, self.options, seeds, frames)
        given = max(
            streams[stream.name].shape[-1] * target.rate_hz // stream.rate_hz
            for stream in model.layout.conditions
            if stream.rate_hz
        )
        clocked = model.frame_conditions(streams, given)
        assert clocked is not None
        clocked = clocked[:, given - frames :].expand(rows * len(seeds), -1, -1)
        self._make_room(rows * len(seeds), frames)
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
        positions = self.model.positions(visible)
        queries, keys = (torch.arange(first, visible, device=self.model.device) for first in (self.known, 0))
        return self.model.relative_position.bias(positions, queries, keys).to(self.model.head_weight.dtype)

    def _make_room(self, rows: int, frames: int) -> None:
        """Forget frames beyond the context, and make space for ``frames`` more."""
        model, kept = self.model, min(self.known, self.context)
        before, first = self._caches, self.known - kept
        if not before or before[0].capacity < kept + frames:
            size = (rows, self.context + frames, model.device, model.head_weight.dtype)
            codebooks = model.layout.target.codebooks
            self._caches = [KeyValueCache(model.config.backbone, *size) for _ in range(codebooks)]
        if first or self._caches is not before:
            for old, cache in zip(before, self._caches, strict=False):
                cache.copy_steps(old, first, kept)
        self.known = kept
