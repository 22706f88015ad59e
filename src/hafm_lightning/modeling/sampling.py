"""From logits to a token: guidance, temperature, top-k, top-p. Functions on ``[..., V]`` logits.

A draw is made from one uniform number by inverting the cumulative distribution. All numbers of a clip come from a
generator seeded for that clip alone, so that a clip's result does not depend on the batch it rides in.

Source: HAFM (arXiv 2604.09054), section 3.3: guidance 3.0, temperature 0.9, top-k 250.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hafm_lightning.modeling.conditioning import null_conditions
from hafm_lightning.modeling.token_model import TokenModel

MOST_GUIDANCE = 1000.0
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1000.0
"""Beyond these, logits leave the range of float32, or the result is that of 0 or of a uniform draw."""
LARGEST_UNIFORM = 1 - 2.0**-23
"""The largest number by which every float32 becomes smaller."""


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn; the defaults are the paper's.

    Attributes:
        guidance: Scale of classifier-free guidance: 1 uses the conditions as they are, 0 ignores them, above 1
            exaggerates them.
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Draw among this many likeliest tokens; None for all.
        top_p: Draw among the likeliest tokens that together reach this probability; None for all.

    >>> SamplingOptions(guidance=1.5, top_k=100)
    SamplingOptions(guidance=1.5, temperature=0.9, top_k=100, top_p=None)
    """

    guidance: float = 3.0
    temperature: float = 0.9
    top_k: int | None = 250
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.guidance) or not 0 <= self.guidance <= MOST_GUIDANCE:
            raise ValueError(f"guidance must be from 0 to {MOST_GUIDANCE:g}, got {self.guidance}")
        if not _is_number(self.temperature) or not (
            self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature <= MOST_TEMPERATURE
        ):
            limits = f"from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}"
            raise ValueError(f"temperature must be 0 (greedy), or {limits}, got {self.temperature}")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise ValueError(f"top_k must be a whole number of 1 or more, or None for no limit, got {self.top_k}")
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise ValueError(f"top_p must be above 0 and at most 1, or None for no limit, got {self.top_p}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def guide(conditioned: Tensor, unconditioned: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: ``unconditioned + scale * (conditioned - unconditioned)``."""
    return unconditioned + scale * (conditioned - unconditioned)


def keep_top_k(logits: Tensor, top_k: int | None) -> Tensor:
    """Logits with all but the ``top_k`` largest at ``-inf``; ties with the last kept one stay."""
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -math.inf)


def keep_top_p(logits: Tensor, top_p: float | None) -> Tensor:
    """Logits with all but the smallest set of likeliest tokens reaching probability ``top_p`` at ``-inf``."""
    if top_p is None or top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    # the likeliest token stays, also where top_p is 0 in float32
    ordered = ordered.masked_fill((before >= top_p) & (before > 0), -math.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def choose(logits: Tensor, uniform: Tensor, options: SamplingOptions) -> Tensor:
    """Draw one token: logits ``[..., V]``, numbers in [0, 1) ``[...]`` -> int64 ids ``[...]``.

    Guidance is not applied here. An id of probability zero is never drawn.
    """
    logits = logits.float()
    if options.temperature == 0 or options.top_k == 1:  # ties included: keep_top_k would keep them all
        return logits.argmax(-1)
    logits = keep_top_p(keep_top_k(logits / options.temperature, options.top_k), options.top_p)
    cumulative = logits.softmax(-1).cumsum(-1)
    # scaled by the sum that rounding left and kept below it, so that the draw always falls on a possible token
    threshold = uniform.to(cumulative).clamp(max=LARGEST_UNIFORM)[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)


def uniform_numbers(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Numbers in [0, 1), float32 ``[B, *shape]``; row ``i`` depends on ``seeds[i]`` alone."""
    numbers = torch.empty(len(seeds), *shape, dtype=torch.float32)  # of another default type they would be others
    for row, seed in zip(numbers, seeds, strict=True):
        row.uniform_(generator=torch.Generator().manual_seed(seed))
    return numbers


# --- guidance over a batch: conditioned and null rows run together, ``[rows B, ...]`` ---------------------------------


def guidance_rows(
    model: TokenModel, conditions: Mapping[str, Tensor], options: SamplingOptions, clips: int
) -> tuple[dict[str, Tensor], int]:
    """The conditions of every row that runs, and the number of rows for each clip (2 with guidance, else 1).

    Raises:
        ValueError: A condition, each ``[B, K, T]``, is missing or does not hold ``clips`` clips.
    """
    streams = {}
    for stream in model.layout.conditions:
        if stream.name not in conditions:
            raise ValueError(f"condition {stream.name!r} is missing; given: {', '.join(sorted(conditions))}")
        ids = streams[stream.name] = conditions[stream.name].to(model.device)
        if len(ids) != clips:
            raise ValueError(
                f"condition {stream.name!r} holds {len(ids)} clips for {clips} seeds; give one seed for each clip"
            )
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


def check_prefix(prefix: Tensor, shape: tuple[int, int, int], vocabulary: int) -> None:
    """Raise ValueError unless ``prefix [B, K, T0]`` holds ids and fits a target of ``shape`` (B, K, T)."""
    batch, codebooks, frames = shape
    if prefix.dim() != 3 or prefix.shape[:2] != (batch, codebooks) or prefix.shape[2] > frames:
        raise ValueError(f"prefix must be [{batch}, {codebooks}, at most {frames}], got {tuple(prefix.shape)}")
    wrong = prefix[(prefix < 0) | (prefix >= vocabulary)]
    if len(wrong):  # a kernel on a GPU could not say so
        raise ValueError(f"prefix must hold ids 0..{vocabulary - 1}, got {int(wrong[0])}")
