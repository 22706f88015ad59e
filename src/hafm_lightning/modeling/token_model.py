"""One stage's network: conditions and target tokens in, logits for every target token out.

``TokenModel`` joins a :class:`~hafm_lightning.modeling.layout.SequenceLayout`, in which alone the paper's three stages
differ, with the backbone. Teacher forcing (:meth:`TokenModel.forward`) and cached decoding share the methods below.

Sequence, for ``prefix`` conditioning (section 3.4 of the paper)::

    inputs   c0 c1 .. cN | BEGIN y0 y1 .. y(n-1)      + place embedding of (segment, codebook)
    outputs              | y0    y1 y2 .. yn          one head for each codebook

for ``aligned`` the bar's left side is empty and each target step carries its frame's conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.attention import Mixer, SequenceBias, WholeSequence
from hafm_lightning.modeling.cache import CachedSteps, KeyValueCache
from hafm_lightning.modeling.conditioning import EMBEDDING_STD, AlignedConditions, StreamEmbedding
from hafm_lightning.modeling.layout import Conditioning, Pattern, SequenceLayout, interleave, prediction_steps
from hafm_lightning.modeling.relative_position import (
    PrefixMask,
    RelativePosition,
    RelativePositionKind,
    StepPositions,
)
from hafm_lightning.modeling.transformer import BackboneConfig, Transformer
from hafm_lightning.tokens import EMPTY, NULL
from hafm_lightning.untrusted import checked

MOST_LOOK_S = 30.0
"""Most seconds of conditions around a frame: a convolution over more would hold billions of weights."""
CACHED_LENGTHS = 4
"""Sequence lengths whose mask and bias a model keeps: training and validation crops, full clips."""


@dataclass(frozen=True)
class TokenModelConfig:
    """Everything that shapes a stage's network; plain values, so that it travels in checkpoints as a dict.

    Attributes:
        conditions: Names of the condition streams, in order.
        target: Name of the target stream.
        pattern: ``flattened``, ``delay``, ``parallel`` or ``nonautoregressive``.
        conditioning: ``prefix`` or ``aligned``.
        relative_position: ``time`` or ``index``.
        prefix_mask: ``causal`` (the paper) or ``bidirectional`` among the conditions.
        look_ahead_s: For ``aligned``: how far ahead a frame reads its conditions, in seconds.
        look_behind_s: For ``aligned``: how far back the conditions' convolution reaches, in seconds.
        backbone: Size of the Transformer.
    """

    conditions: tuple[str, ...]
    target: str
    pattern: Pattern = "flattened"
    conditioning: Conditioning = "prefix"
    relative_position: RelativePositionKind = "time"
    prefix_mask: PrefixMask = "causal"
    look_ahead_s: float = 0.3
    look_behind_s: float = 0.3
    backbone: BackboneConfig = field(default_factory=BackboneConfig)

    def __post_init__(self) -> None:
        for name, seconds in (("look_ahead_s", self.look_ahead_s), ("look_behind_s", self.look_behind_s)):
            if not 0 <= seconds <= MOST_LOOK_S:
                raise ValueError(
                    f"look-ahead and look-behind must be 0 or more, {MOST_LOOK_S} s at most: {name} {seconds}"
                )

    @property
    def layout(self) -> SequenceLayout:
        """The sequence layout that the names describe."""
        return SequenceLayout.of(list(self.conditions), self.target, self.pattern, self.conditioning)

    def visible_pairs(self, frames: int) -> int:
        """Pairs of (query, key) that attention looks at in one sequence with ``frames`` target frames."""
        plan = self.layout.plan(frames)
        steps, before = plan.steps, plan.condition_steps
        if not self.layout.causal:
            return steps * steps
        pairs = steps * (steps + 1) // 2
        return pairs + before * (before - 1) // 2 if self.prefix_mask == "bidirectional" else pairs

    def forward_flops(self, clips: int, frames: int) -> float:
        """FLOPs of a forward pass over ``clips`` clips as in training (``nonautoregressive``: of one codebook).

        Matrix products, and attention for the pairs of steps that see each other; a training step takes three times as
        many.
        """
        layout, backbone, plan = self.layout, self.backbone, self.layout.plan(frames)
        width = backbone.width
        for_attention, after = 3 * width * width, width * width + 3 * width * backbone.inner_width
        products = backbone.layers * plan.steps * (for_attention + after)
        products -= plan.condition_steps * after  # the last layer's, whose results nothing uses
        codebooks = 1 if layout.pattern == "nonautoregressive" else layout.target.codebooks
        heads = frames * codebooks * width * layout.target.vocabulary
        return 2.0 * clips * (products + heads) + self.attention_flops(clips, frames)

    def attention_flops(self, clips: int, frames: int) -> float:
        """The part of :meth:`forward_flops` that attention takes: two products for the pairs that see each other."""
        return 4.0 * clips * self.backbone.layers * self.backbone.width * self.visible_pairs(frames)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict; inverse: :meth:`from_dict`."""
        return asdict(self) | {"conditions": list(self.conditions)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenModelConfig:
        """From :meth:`as_dict`; RequestError names keys that are missing, unknown or of a wrong type."""
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise RequestError(f"unknown model settings {', '.join(sorted(unknown))}; written by a newer version?")
        missing = {"conditions", "target", "backbone"} - set(values)
        if missing:
            raise RequestError(f"missing model settings {', '.join(sorted(missing))}")
        return checked(dict(values), cls, "the description of a network", "train or export it again")


class TokenModel(nn.Module):
    """The network of one stage."""

    def __init__(self, config: TokenModelConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout
        width, layout = config.backbone.width, self.layout
        self.conditions = nn.ModuleDict({s.name: StreamEmbedding(s, width, NULL) for s in layout.conditions})
        self.target = StreamEmbedding(layout.target, width, EMPTY)
        self.begin = nn.Parameter(torch.randn(width) * EMBEDDING_STD)
        self.place = nn.Embedding(layout.places, width)
        nn.init.normal_(self.place.weight, std=EMBEDDING_STD)
        self.aligned = None
        if layout.conditioning == "aligned" and layout.conditions:
            self.aligned = AlignedConditions(layout, width, config.look_ahead_s, config.look_behind_s)
        segments = 1 + (len(layout.conditions) if layout.conditioning == "prefix" else 0)
        self.relative_position = RelativePosition(
            config.backbone.heads, config.relative_position, layout.causal, segments, config.prefix_mask
        )
        self.backbone = Transformer(config.backbone)
        codebooks, vocabulary = layout.target.codebooks, layout.target.vocabulary
        self.head_weight = nn.Parameter(torch.randn(codebooks, vocabulary, width) * EMBEDDING_STD)
        self.head_bias = nn.Parameter(torch.zeros(codebooks, vocabulary))
        self._biases: dict[tuple[object, ...], SequenceBias] = {}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.head_bias.device

    # --- inputs -----------------------------------------------------------------------------------------------

    def condition_vectors(self, streams: Mapping[str, Tensor], target_frames: int) -> list[Tensor]:
        """Each condition as ``[B, steps, D]``: flattened codebooks for a flattened prefix, else summed over codebooks.

        Raises:
            ValueError: A stream is missing, or its length does not fit ``target_frames``.
        """
        flattened = self.layout.conditioning == "prefix" and self.layout.pattern == "flattened"
        expected = self.layout.condition_frames(target_frames)
        vectors = []
        for segment, (stream, frames) in enumerate(zip(self.layout.conditions, expected, strict=True)):
            if stream.name not in streams:
                raise ValueError(f"condition {stream.name!r} is missing; given: {', '.join(sorted(streams))}")
            ids = streams[stream.name]
            if ids.shape[1:] != (stream.codebooks, frames):
                raise ValueError(
                    f"condition {stream.name!r} must be [B, {stream.codebooks}, {frames}] beside {target_frames} "
                    f"target frames, got {tuple(ids.shape)}"
                )
            embedded = self.conditions[stream.name](ids)  # [B, K, T, D]
            first = self.layout.first_place(segment)
            if flattened:
                places = self.place.weight[first : first + stream.codebooks, None]  # [K, 1, D]
                vectors.append((embedded + places).transpose(1, 2).flatten(1, 2))
            else:
                vectors.append(embedded.sum(1) + self.place.weight[first])
        return vectors

    def prefix(self, streams: Mapping[str, Tensor], target_frames: int) -> Tensor | None:
        """Inputs before the target, ``[B, S_c, D]``; None with aligned conditioning or without conditions."""
        if self.layout.conditioning == "aligned" or not self.layout.conditions:
            return None
        return torch.cat(self.condition_vectors(streams, target_frames), dim=1)

    def frame_conditions(self, streams: Mapping[str, Tensor], target_frames: int) -> Tensor | None:
        """Conditions on the target's clock, ``[B, T, D]``; None with a prefix."""
        if self.aligned is None:
            return None
        return self.aligned(self.condition_vectors(streams, target_frames), target_frames)  # type: ignore[no-any-return]

    def written(self, codes: Tensor) -> Tensor:
        """What each target step writes, as a vector: codes ``[B, K, T]`` -> ``[B, S_t, D]``."""
        if self.layout.pattern == "flattened":
            return self.target(codes).transpose(1, 2).flatten(1, 2)  # type: ignore[no-any-return]
        return self.target(interleave(codes, self.layout.pattern)).sum(1)  # type: ignore[no-any-return]

    def step_places(self, frames: int) -> tuple[Tensor, Tensor]:
        """Place vectors ``[S_t, D]`` and the frame ``[S_t]`` of each target step."""
        plan = self.layout.plan(frames)
        here = slice(plan.condition_steps, None)
        return self.place(plan.place[here].to(self.device)), plan.frame[here].to(self.device)

    def positions(self, frames: int, steps: int | None = None) -> StepPositions:
        """Positions of the first ``steps`` steps (default: all) of a target of ``frames`` frames."""
        return StepPositions.of(self.layout.plan(frames), self.device, steps)

    @torch.inference_mode(False)  # biases are cached, and must serve training too, wherever they were first made
    def attention(self, frames: int, steps: int | None = None) -> Mixer:
        """How those steps attend to each other."""
        relative_position = self.relative_position
        key = (frames, steps, self.device, type(relative_position))
        if key not in self._biases:
            while len(self._biases) >= CACHED_LENGTHS:
                self._biases.pop(next(iter(self._biases)))
            self._biases[key] = relative_position.sequence_bias(self.positions(frames, steps))
        return WholeSequence(self._biases[key], relative_position.table())

    # --- outputs ----------------------------------------------------------------------------------------------

    def head(self, hidden: Tensor, codebook: int) -> Tensor:
        """Hidden states ``[..., D]`` -> logits ``[..., V]`` of one codebook."""
        return torch.nn.functional.linear(hidden, self.head_weight[codebook], self.head_bias[codebook])

    def cache(self, rows: int, steps: int) -> KeyValueCache:
        """An empty cache for :meth:`step_logits` with ``rows`` rows and up to ``steps`` steps."""
        return KeyValueCache(self.config.backbone, rows, steps, self.device, self.head_weight.dtype)

    def step_logits(self, x: Tensor, at: CachedSteps, codebook: int | None) -> Tensor:
        """One decoding step: input ``[R, 1, D]`` -> logits ``[R, W, V]`` of one codebook (W = 1), or of all."""
        hidden = self.backbone(x, at)[:, 0]
        codebooks = range(len(self.head_bias)) if codebook is None else [codebook]
        return torch.stack([self.head(hidden, k) for k in codebooks], dim=-2)

    def forward(self, streams: Mapping[str, Tensor], codebook: int | None = None) -> Tensor:
        """Teacher forcing: logits ``[B, K, T, V]`` for the target in ``streams``.

        Args:
            streams: Name -> ids ``[B, K, T]``: the conditions and the target.
            codebook: ``nonautoregressive`` only: predict this codebook alone, ``[B, 1, T, V]``; else one pass for each.

        Raises:
            ValueError: A stream is missing or of the wrong shape.
        """
        stream = self.layout.target
        name = stream.name
        if name not in streams:
            raise ValueError(f"target {name!r} is missing; given: {', '.join(sorted(streams))}")
        codes = streams[name]
        if codes.dim() != 3 or codes.shape[1] != stream.codebooks:
            raise ValueError(f"target {name!r} must be [B, {stream.codebooks}, T], got {tuple(codes.shape)}")
        frames = codes.shape[-1]
        prefix, clocked = self.prefix(streams, frames), self.frame_conditions(streams, frames)
        if self.layout.pattern == "nonautoregressive":
            wanted = range(stream.codebooks) if codebook is None else [codebook]
            return torch.stack([self.codebook_logits(codes, prefix, clocked, k) for k in wanted], dim=1)
        if codebook is not None:
            raise ValueError(f"pattern {self.layout.pattern!r} predicts all codebooks in one pass")
        places, frame = self.step_places(frames)
        x = torch.cat((self.begin.expand(len(codes), 1, -1), self.written(codes)[:, :-1]), dim=1) + places
        if clocked is not None:
            x = x + clocked[:, frame]
        hidden = self._run(x, prefix, frames)
        steps = [prediction_steps(self.layout.pattern, stream.codebooks, frames, k) for k in range(stream.codebooks)]
        return torch.stack([self.head(hidden[:, here], k) for k, here in enumerate(steps)], dim=1)

    def codebook_logits(
        self, codes: Tensor, prefix: Tensor | None, clocked: Tensor | None, codebook: int, first: int = 0
    ) -> Tensor:
        """``nonautoregressive``: logits ``[B, T - first, V]`` of one codebook's frames from ``first`` on.

        Args:
            codes: Target ids ``[B, K, T]``, of which the codebooks below this one count.
            prefix: From :meth:`prefix`.
            clocked: From :meth:`frame_conditions`.
            codebook: The codebook.
            first: First frame of the result.
        """
        x = self.filling(codes, clocked, codebook)
        return self.head(self._run(x, prefix, codes.shape[-1], first), codebook)

    def filling(self, codes: Tensor, clocked: Tensor | None, codebook: int) -> Tensor:
        """``nonautoregressive``: inputs ``[B, T, D]`` for one codebook, from codes ``[B, K, T]``."""
        # an empty sum for the lowest codebook: every parameter still gets a gradient, as DDP needs
        below: Tensor = self.target(codes[:, :codebook], slice(0, codebook)).sum(1)
        x = self.begin.expand(len(codes), codes.shape[-1], -1) + below
        x = x + self.place.weight[self.layout.first_place(len(self.layout.conditions)) + codebook]
        return x if clocked is None else x + clocked

    def _run(self, x: Tensor, prefix: Tensor | None, frames: int, first: int = 0) -> Tensor:
        """Backbone over prefix and target inputs; hidden states of the target's steps from ``first`` on."""
        if prefix is not None:
            x, first = torch.cat((prefix, x), dim=1), prefix.shape[1] + first
        return self.backbone(x, self.attention(frames), first)  # type: ignore[no-any-return]
