"""One stage's network: conditions and target tokens in, logits for every target token out.

``TokenModel`` joins a :class:`~hafm_lightning.modeling.layout.SequenceLayout` with the backbone. The three stages of
the paper differ in their layout alone. Teacher forcing (:meth:`TokenModel.forward`) and cached decoding
(:mod:`hafm_lightning.modeling.decoding`) share every method below, so that one can be tested against the other.

Sequence, for ``prefix`` conditioning (section 3.3 of the paper)::

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

from hafm_lightning.modeling.attention import AttentionBackend, Geometry, prepare
from hafm_lightning.modeling.conditioning import EMBEDDING_STD, AlignedConditions, StreamEmbedding
from hafm_lightning.modeling.layout import Conditioning, Pattern, SequenceLayout, interleave, prediction_steps
from hafm_lightning.modeling.relative_position import (
    PrefixMask,
    RelativePosition,
    RelativePositionKind,
    StepPositions,
)
from hafm_lightning.modeling.rowwise import heads, rowwise
from hafm_lightning.modeling.transformer import (
    BackboneConfig,
    CachedSteps,
    KeyValueCache,
    StepFunction,
    Transformer,
)
from hafm_lightning.tokens import EMPTY, NULL

KEPT_GEOMETRIES = 4
"""Sequence lengths whose geometry a model keeps: training and validation crops, full clips."""


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
        look_ahead_s: For ``aligned``: how far ahead a frame hears, in seconds.
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

    @property
    def layout(self) -> SequenceLayout:
        """The sequence layout that the names describe."""
        return SequenceLayout.of(list(self.conditions), self.target, self.pattern, self.conditioning)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict; inverse: :meth:`from_dict`."""
        return asdict(self) | {"conditions": list(self.conditions)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenModelConfig:
        """From :meth:`as_dict`; ValueError names keys that are missing or unknown."""
        known = set(cls.__dataclass_fields__)
        unknown = set(values) - known
        if unknown:
            raise ValueError(f"unknown model settings {', '.join(sorted(unknown))}; written by a newer version?")
        missing = {"conditions", "target", "backbone"} - set(values)
        if missing:
            raise ValueError(f"missing model settings {', '.join(sorted(missing))}")
        backbone = BackboneConfig(**values["backbone"])
        return cls(**dict(values) | {"conditions": tuple(values["conditions"]), "backbone": backbone})


class TokenModel(nn.Module):
    """The network of one stage.

    Args:
        config: Layout and sizes.
        attention: Backend; ``auto`` chooses by device.
    """

    def __init__(self, config: TokenModelConfig, attention: AttentionBackend = "auto") -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout
        self.attention_backend = attention
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
        self.packed_heads: nn.Module | None = None  # the same for inference, where a device reads it faster
        self.compiled_step: StepFunction | None = None  # a decoding step, where a device has one for it
        self._geometries: dict[tuple[int, int, str], Geometry] = {}

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

    @torch.inference_mode(False)  # what is kept must serve training too, wherever it was first made
    def positions(self, frames: int) -> tuple[StepPositions, Geometry]:
        """Positions and attention geometry for a target of ``frames`` frames, kept for the next call."""
        positions = StepPositions.of(self.layout.plan(frames), self.device)
        return positions, self._geometry(frames, positions)

    @torch.inference_mode(False)
    def prefix_geometry(self, frames: int, steps: int) -> Geometry:
        """Attention geometry of the first ``steps`` steps of that sequence."""
        whole = StepPositions.of(self.layout.plan(frames), self.device)
        return self._geometry(
            frames, StepPositions(whole.segment[:steps], whole.ticks[:steps], min(whole.condition_steps, steps))
        )

    def _geometry(self, frames: int, positions: StepPositions) -> Geometry:
        key = (frames, positions.steps, str(self.device))
        if key not in self._geometries:
            while len(self._geometries) >= KEPT_GEOMETRIES:
                self._geometries.pop(next(iter(self._geometries)))
            self._geometries[key] = prepare(self.relative_position, positions, self.attention_backend)
        return self._geometries[key]

    # --- outputs ----------------------------------------------------------------------------------------------

    def head(self, hidden: Tensor, codebook: int) -> Tensor:
        """Hidden states ``[..., D]`` -> logits ``[..., V]`` of one codebook."""
        if self.packed_heads is not None:
            return self.packed_heads(hidden, codebook)  # type: ignore[no-any-return]
        return torch.nn.functional.linear(hidden, self.head_weight[codebook], self.head_bias[codebook])

    def every_head(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[..., D]`` -> logits ``[..., K, V]`` of all codebooks."""
        if self.packed_heads is not None:
            return self.packed_heads(hidden)  # type: ignore[no-any-return]
        return torch.stack([self.head(hidden, k) for k in range(len(self.head_bias))], dim=-2)

    def step_logits(self, x: Tensor, at: CachedSteps, codebook: int | None) -> Tensor:
        """One decoding step: input ``[R, 1, D]`` -> logits ``[R, W, V]`` of one codebook (W = 1), or of all."""
        if self.compiled_step is not None and self.compiled_step.takes(x, at):
            return self.compiled_step(x, at, codebook)
        hidden = self.backbone.cached(x, at)[:, 0]
        if codebook is None:
            return self.every_head(hidden)
        return self.head(hidden, codebook)[:, None]

    def cache(self, rows: int, steps: int) -> KeyValueCache:
        """An empty cache for :meth:`step_logits` with ``rows`` rows and up to ``steps`` steps."""
        dtype = self.head_weight.dtype if self.compiled_step is None else self.compiled_step.cache_dtype(rows)
        return KeyValueCache(self.config.backbone, rows, steps, self.device, dtype)

    def forward(self, streams: Mapping[str, Tensor], codebook: int | None = None) -> Tensor:
        """Teacher forcing: logits ``[B, K, T, V]`` for the target in ``streams``.

        Args:
            streams: Name -> ids ``[B, K, T]``: the conditions and the target.
            codebook: ``nonautoregressive`` only: predict this codebook alone, giving ``[B, 1, T, V]``. Without it all
                codebooks are predicted, in one pass each.

        Raises:
            ValueError: A stream is missing or of the wrong shape.
        """
        name, stream = self.layout.target.name, self.layout.target
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
        before = self.begin.expand(len(codes), 1, -1)
        x = torch.cat((before, self.written(codes)[:, :-1]), dim=1)
        places, frame = self.step_places(frames)
        x = x + places
        if clocked is not None:
            x = x + clocked[:, frame]
        hidden = self._run(x, prefix, frames)
        steps = [prediction_steps(self.layout.pattern, stream.codebooks, frames, k) for k in range(stream.codebooks)]
        if rowwise(hidden):
            return heads(hidden, self.head_weight, self.head_bias, steps)
        return torch.stack([self.head(hidden[:, here], k) for k, here in enumerate(steps)], dim=1)

    def codebook_logits(
        self, codes: Tensor, prefix: Tensor | None, clocked: Tensor | None, codebook: int, first: int = 0
    ) -> Tensor:
        """``nonautoregressive``: logits ``[B, T - first, V]`` of one codebook's frames from ``first`` on.

        Args:
            codes: Target ids ``[B, K, T]``, of which the codebooks below this one count.
            prefix: What :meth:`prefix` gives.
            clocked: What :meth:`frame_conditions` gives.
            codebook: The codebook.
            first: First frame asked for.
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
        before = 0 if prefix is None else prefix.shape[1]
        if prefix is not None:
            x = torch.cat((prefix, x), dim=1)
        _, geometry = self.positions(frames)
        return self.backbone(x, self.relative_position.table(), geometry, before + first)  # type: ignore[no-any-return]
