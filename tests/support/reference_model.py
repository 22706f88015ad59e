"""The network a second time, slowly: float64, one clip, one step and one pair of steps after the other.

Shares no code with the package except the token streams and special ids. It reads a TokenModel's weights by name and
computes what the paper (and docs of the patterns) say they mean; the package is tested against it.
"""

import math
from fractions import Fraction
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.tokens import EMPTY, NULL, stream_named


@cache
def exact_bucket(distance: int, bidirectional: bool, max_distance: int, buckets: int = 32) -> int:
    """T5's bucket of query - key, in whole numbers only: bucket m begins where (d / exact)^n >= (max / exact)^m."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if distance < 0 else 0
    distance = abs(distance) if bidirectional else max(0, distance)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    wide = buckets - exact
    reached = [m for m in range(wide) if distance**wide * exact**m >= max_distance**m * exact**wide]
    return first + exact + max(reached)


class Steps:
    """Segment, time in seconds (None for the whole clip) and input of each step of one clip's sequence."""

    def __init__(self) -> None:
        self.segment: list[int] = []
        self.seconds: list[Fraction | None] = []
        self.inputs: list[Tensor] = []

    def add(self, segment: int, seconds: Fraction | None, vector: Tensor) -> None:
        self.segment.append(segment)
        self.seconds.append(seconds)
        self.inputs.append(vector)


class ReferenceModel:
    """Logits of a TokenModel for teacher-forced clips."""

    def __init__(self, model: torch.nn.Module) -> None:
        config = model.config
        self.config = config
        self.weights = {name: value.detach().double() for name, value in model.state_dict().items()}
        self.conditions = [stream_named(name) for name in config.conditions]
        self.target = stream_named(config.target)
        self.prefix = config.conditioning == "prefix"

    def logits(self, streams: dict[str, Tensor]) -> Tensor:
        """Ids ``[B, K, T]`` a stream -> logits ``[B, K, T, V]``."""
        clips = len(streams[self.target.name])
        return torch.stack([self._clip({name: ids[clip] for name, ids in streams.items()}) for clip in range(clips)])

    def _clip(self, streams: dict[str, Tensor]) -> Tensor:
        codes = streams[self.target.name]
        books, frames = codes.shape
        clock = None if self.prefix else self._clock(streams, frames)
        result = torch.empty(books, frames, self.target.vocabulary, dtype=torch.float64)
        if self.config.pattern == "nonautoregressive":
            for book in range(books):
                steps = self._begin(streams)
                for frame in range(frames):
                    seen = [self._target_vector(k, codes[k, frame]) for k in range(book)]
                    vector = sum(seen, self.weights["begin"]) + self._place(len(self.conditions), book)
                    steps.add(len(self.conditions), self._seconds(self.target, frame), self._hear(vector, clock, frame))
                hidden = self._backbone(steps)[-frames:]
                result[book] = self._head(hidden, book)
            return result
        steps = self._begin(streams)
        where = {}  # step of the target -> the (codebook, frame) pairs that it predicts
        for book in range(books):
            for frame in range(frames):
                step = {"flattened": frame * books + book, "delay": frame + book, "parallel": frame}
                where.setdefault(step[self.config.pattern], []).append((book, frame))
        for step in sorted(where):
            if step == 0:
                vector = self.weights["begin"]
            elif self.config.pattern == "flattened":
                ((book, frame),) = where[step - 1]
                vector = self._target_vector(book, codes[book, frame])
            else:
                written = dict(where[step - 1])
                vector = sum(
                    self._target_vector(k, codes[k, written[k]]) if k in written else self.weights["target.special"]
                    for k in range(books)
                )
            book = where[step][0][0] if self.config.pattern == "flattened" else 0
            frame = min(step, frames - 1) if self.config.pattern == "delay" else where[step][0][1]
            vector = vector + self._place(len(self.conditions), book)
            steps.add(len(self.conditions), self._seconds(self.target, frame), self._hear(vector, clock, frame))
        hidden = self._backbone(steps)[-len(where) :]
        for step, pairs in where.items():
            for book, frame in pairs:
                result[book, frame] = self._head(hidden[step], book)
        return result

    # --- inputs -----------------------------------------------------------------------------------------------

    def _begin(self, streams: dict[str, Tensor]) -> Steps:
        steps = Steps()
        if not self.prefix:
            return steps
        for segment, stream in enumerate(self.conditions):
            for frame in range(streams[stream.name].shape[1]):
                if self.config.pattern == "flattened":
                    for book in range(stream.codebooks):
                        vector = self._condition_vector(stream, streams, book, frame) + self._place(segment, book)
                        steps.add(segment, self._seconds(stream, frame), vector)
                else:
                    steps.add(segment, self._seconds(stream, frame), self._frame_vector(segment, streams, frame))
        return steps

    def _clock(self, streams: dict[str, Tensor], frames: int) -> list[Tensor]:
        """Aligned conditions of each target frame."""
        if not self.conditions:
            return [torch.zeros(self.config.backbone.width, dtype=torch.float64)] * frames
        ahead = math.floor(Fraction(str(self.config.look_ahead_s)) * self.target.rate_hz)
        behind = math.floor(Fraction(str(self.config.look_behind_s)) * self.target.rate_hz)
        weight, bias = self.weights["aligned.mix.weight"], self.weights["aligned.mix.bias"]
        heard = []
        for frame in range(frames):
            middle = Fraction(2 * frame + 1, 2 * self.target.rate_hz)  # seconds
            vector = torch.zeros(self.config.backbone.width, dtype=torch.float64)
            for segment, stream in enumerate(self.conditions):
                if stream.rate_hz:
                    vector = vector + self._frame_vector(segment, streams, math.floor(middle * stream.rate_hz))
            heard.append(vector)
        timed = any(stream.rate_hz for stream in self.conditions)
        clock = []
        for frame in range(frames):
            vector = heard[frame]
            if timed:
                vector = vector + bias
                for offset in range(-behind, ahead + 1):
                    if 0 <= frame + offset < frames:
                        vector = vector + weight[:, 0, offset + behind] * heard[frame + offset]
            for segment, stream in enumerate(self.conditions):
                if not stream.rate_hz:
                    vector = vector + self._frame_vector(segment, streams, 0)
            clock.append(vector)
        return clock

    def _hear(self, vector: Tensor, clock: list[Tensor] | None, frame: int) -> Tensor:
        return vector if clock is None or not self.conditions else vector + clock[frame]

    def _frame_vector(self, segment: int, streams: dict[str, Tensor], frame: int) -> Tensor:
        stream = self.conditions[segment]
        vectors = [self._condition_vector(stream, streams, book, frame) for book in range(stream.codebooks)]
        return sum(vectors, self._place(segment, 0))

    def _condition_vector(self, stream, streams: dict[str, Tensor], book: int, frame: int) -> Tensor:
        token = int(streams[stream.name][book, frame])
        if token == NULL:
            return self.weights[f"conditions.{stream.name}.special"]
        return self.weights[f"conditions.{stream.name}.weight"][book, token]

    def _target_vector(self, book: int, token: Tensor) -> Tensor:
        return self.weights["target.special"] if token == EMPTY else self.weights["target.weight"][book, int(token)]

    def _place(self, segment: int, book: int) -> Tensor:
        row = sum(stream.codebooks for stream in self.conditions[:segment]) + book
        return self.weights["place.weight"][row]

    @staticmethod
    def _seconds(stream, frame: int) -> Fraction | None:
        return Fraction(frame, stream.rate_hz) if stream.rate_hz else None

    # --- backbone ---------------------------------------------------------------------------------------------

    def bias(self, steps: Steps) -> Tensor:
        """Mask and relative bias ``[H, S, S]``."""
        count, causal = len(steps.segment), self.config.pattern != "nonautoregressive"
        last = len(self.conditions)
        within = self.weights["relative_position.within"]
        by_time = self.config.relative_position == "time" and len(set(steps.segment)) > 1
        bias = torch.full((count, count, within.shape[1]), -math.inf, dtype=torch.float64)
        for query in range(count):
            for key in range(count):
                both_conditions = steps.segment[query] < last and steps.segment[key] < last
                seen = key <= query or (both_conditions and self.config.prefix_mask == "bidirectional")
                if causal and not seen:
                    continue
                now, then = steps.seconds[query], steps.seconds[key]
                if by_time and steps.segment[query] != steps.segment[key] and now is not None and then is not None:
                    ticks = (now - then) * 150
                    assert ticks.denominator == 1
                    # the last bucket begins at 128 semantic frames of 20 ms, 384 ticks
                    table = self.weights["relative_position.across"]
                    bias[query, key] = table[exact_bucket(int(ticks), True, 384)]
                else:
                    bias[query, key] = within[exact_bucket(query - key, not causal, 128)]
        return bias.permute(2, 0, 1)

    def _backbone(self, steps: Steps) -> Tensor:
        x = torch.stack(steps.inputs)
        bias, heads = self.bias(steps), self.config.backbone.heads
        for number in range(self.config.backbone.layers):
            layer = f"backbone.layers.{number}"
            inner = self._norm(x, f"{layer}.attention_norm")
            projected = self._linear(inner, f"{layer}.attention.project_in")
            queries, keys, values = (part.reshape(len(x), heads, -1).transpose(0, 1) for part in projected.chunk(3, -1))
            queries = self._norm(queries, f"{layer}.attention.query_norm")
            keys = self._norm(keys, f"{layer}.attention.key_norm")
            scores = queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[-1]) + bias
            mixed = (scores.softmax(-1) @ values).transpose(0, 1).reshape(len(x), -1)
            x = x + self._linear(mixed, f"{layer}.attention.project_out")
            inner = self._norm(x, f"{layer}.feedforward_norm")
            value, gate = self._linear(inner, f"{layer}.feedforward.expand").chunk(2, -1)
            gelu = gate * (1 + torch.erf(gate / math.sqrt(2))) / 2
            x = x + self._linear(value * gelu, f"{layer}.feedforward.contract")
        return self._norm(x, "backbone.final_norm")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weights[f"{name}.weight"]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _head(self, hidden: Tensor, book: int) -> Tensor:
        return hidden @ self.weights["head_weight"][book].T + self.weights["head_bias"][book]
