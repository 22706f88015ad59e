"""A decoding step on CUDA as a chain of about 70 Triton kernels, from the last step's token to this one's.

:mod:`.step_kernels` holds the kernels, this module their arguments: weights, cache, and scratch memory that is
allocated once, so that a recorded step allocates nothing. Choices:

* the residual stream is float32; all other vectors have the type of the weights;
* attention runs in as many parts as fill the device, joined by a second kernel; where a few hundred steps are visible,
  or rows and heads alone fill the device, one part writes the result;
* nothing depends on the other rows of a batch but the shapes of the products.

A step is used only after a trial beside PyTorch's operations (:mod:`.step_trial`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.kernels.cuda.triton_blocks import padded
from hafm_lightning.kernels.cuda.triton_passes import LOG2_E, precision_of
from hafm_lightning.modeling.decoding import UNKNOWN, Decoder
from hafm_lightning.modeling.sampling import LARGEST_UNIFORM
from hafm_lightning.modeling.transformer import Layer
from hafm_lightning.tokens import EMPTY

SHORT = 256
"""Up to so many visible steps, one part of the cache is as fast as several and their joint."""
MOST_PARTS = 32
PROGRAMS_A_PROCESSOR = 4
"""Programs of attention that a processor works on at once."""
NUMBERS_AT_ONCE = 4096
"""Numbers of keys, and as many of values, that a program of attention reads at once."""
MOST_DRAWN_FROM = 4096
"""Larger vocabularies are drawn from by PyTorch's operations."""
ALIGNMENT = 32
"""The inner width of the feed-forward is padded to a multiple of this, so that rows of weights begin at 64 bytes."""
INPUT_BLOCK = 256


@dataclass(frozen=True)
class ProductTiles:
    """Sizes of a program of a matrix product: rows and columns of its result, and what is multiplied at once."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @classmethod
    def of(cls, rows: int, dtype: torch.dtype) -> ProductTiles:
        """For a step of ``rows`` rows with weights of a type."""
        if dtype == torch.float32:
            return cls(16, 32, 32, 4, 2)
        return cls(16, 16, 128, 2, 4) if rows <= 16 else cls(64 if rows > 32 else 32, 32, 64, 4, 4)


@dataclass(frozen=True)
class LayerTensors:
    """Weights, biases and norms of a layer, and its part of the cache."""

    norms: tuple[Tensor, Tensor]
    epsilons: tuple[float, float]
    head_norms: tuple[Tensor, Tensor]
    head_epsilons: tuple[float, float]
    project_in: tuple[Tensor, Tensor]
    project_out: tuple[Tensor, Tensor]
    expand: tuple[Tensor, Tensor]
    contract: tuple[Tensor, Tensor]
    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, layer: Layer, keys: Tensor, values: Tensor) -> LayerTensors:
        """The tensors themselves, but for a padded copy of one weight."""
        attention, feedforward = layer.attention, layer.feedforward
        project_in, project_out, expand, contract = (
            (linear.weight.detach(), linear.bias.detach())
            for linear in (attention.project_in, attention.project_out, feedforward.expand, feedforward.contract)
        )
        return cls(
            (layer.attention_norm.weight.detach(), layer.feedforward_norm.weight.detach()),
            (layer.attention_norm.epsilon, layer.feedforward_norm.epsilon),
            (attention.query_norm.weight.detach(), attention.key_norm.weight.detach()),
            (attention.query_norm.epsilon, attention.key_norm.epsilon),
            project_in, project_out, expand,
            (F.pad(contract[0], (0, -contract[0].shape[1] % ALIGNMENT)), contract[1]),
            keys, values,
        )  # fmt: skip


class FusedStep:
    """The step of one decoder whose conditions are given and whose cache is filled up to the step.

    Args:
        decoder: The decoder. Its tensors are read and written in place.
        index: The current step, int64 ``[1]``.
    """

    def __init__(self, decoder: Decoder, index: Tensor) -> None:
        assert decoder.cache is not None
        model, cache, config = decoder.model, decoder.cache, decoder.model.config.backbone
        self._index, self._grid, self._uniform = index, decoder.grid, decoder.uniform.contiguous()
        self._places, self._frames, self._clocked = decoder.places, decoder.frame_of_step, decoder.clocked
        self._rows_of_step = decoder.rows_of_step
        self._table = decoder.table * LOG2_E
        self._before, self._capacity = decoder.plan.condition_steps, cache.capacity
        self._clips, self._rows, self._options = decoder.batch, decoder.rows * decoder.batch, decoder.options
        self._books, self._vocabulary, self._width = model.head_weight.shape
        self._tokens = model.layout.tokens_per_step
        self._greedy = self._options.temperature == 0 or self._options.top_k == 1
        self._kept = min(self._options.top_k or self._vocabulary, self._vocabulary)
        self._vectors, self._special = model.target.weight.detach(), model.target.special.detach()
        self._begin, self._head = model.begin.detach(), (model.head_weight.detach(), model.head_bias.detach())
        self._final_norm = model.backbone.final_norm
        self._heads, self._head_width, self._inner = config.heads, config.head_width, config.inner_width
        self._layers = [
            LayerTensors.of(cast(Layer, layer), keys, values)
            for layer, keys, values in zip(model.backbone.layers, cache.keys, cache.values, strict=True)
        ]
        device, dtype = model.device, model.head_weight.dtype
        self._tiles, self._precision = ProductTiles.of(self._rows, dtype), precision_of(dtype)
        self._interpreted = device.type != "cuda"  # where products of bfloat16 do not exist
        self._keys_at_once = max(16, min(128, NUMBERS_AT_ONCE // padded(self._head_width)))
        wanted = PROGRAMS_A_PROCESSOR * processors(device) / (self._rows * self._heads)
        parts = min(MOST_PARTS, max(1, round(wanted)))
        self._span = -(-math.ceil(self._capacity / parts) // self._keys_at_once) * self._keys_at_once
        self._parts = -(-self._capacity // self._span)

        def room(*shape: int, of: torch.dtype = dtype) -> Tensor:
            return torch.zeros(*shape, device=device, dtype=of)

        self._x = room(self._rows, self._width, of=torch.float32)
        self._projected = room(self._rows, 3 * self._width)
        self._mixed = room(self._rows, self._width)
        self._gated = room(self._rows, self._layers[0].contract[0].shape[1])  # what is padding stays zero
        self._sums = room(self._rows * self._heads, self._parts, padded(self._head_width) + 2, of=torch.float32)
        self.last_logits = room(self._rows, self._tokens, self._vocabulary, of=torch.float32)

    @property
    def draws(self) -> bool:
        """Whether :meth:`draw` can be used."""
        top_p = self._options.top_p
        return (top_p is None or top_p >= 1) and self._vocabulary <= MOST_DRAWN_FROM

    @property
    def kind(self) -> tuple[object, ...]:
        """What the kernels are built for, and which of their programs come once and which several times."""
        built = (self._tiles, self._precision, self._keys_at_once, self._rows > self._clips)
        drawn = (self.draws, self._greedy, self._kept < self._vocabulary)
        several = (self._clips > 1, self._rows > self._tiles.rows, self.parts(self._capacity) > 1)
        return (*built, *drawn, *several)

    def parts(self, visible: int) -> int:
        """How many parts attention has where ``visible`` steps are visible; steps of as many parts are alike."""
        return 1 if visible <= SHORT else self._parts

    def logits(self, parts: int) -> Tensor:
        """Logits ``[R, W, V]`` of the current step, float32; its keys and values go into the cache."""
        from hafm_lightning.kernels.cuda.decoding.step_kernels import input_kernel

        width = self._width
        clocked = self._places if self._clocked is None else self._clocked
        input_kernel[(self._rows, -(-width // INPUT_BLOCK))](
            self._grid, self._vectors, self._special, self._begin, self._places, clocked, self._frames,
            self._x, self._index, self._clips, self._grid.shape[2], clocked.shape[-2],
            WIDTH=width, TOKENS=self._tokens, BOOKS=self._books, VOCABULARY=self._vocabulary, EMPTY=EMPTY,
            CLOCKED=self._clocked is not None, BLOCK=INPUT_BLOCK,
        )  # fmt: skip
        for layer in self._layers:
            norm, epsilon = layer.norms[0], layer.epsilons[0]
            self._product(self._x, layer.project_in, 3 * width, self._projected, norm=norm, epsilon=epsilon)
            self._attend(layer, parts)
            self._product(self._mixed, layer.project_out, width, self._x, residual=True)
            norm, epsilon = layer.norms[1], layer.epsilons[1]
            self._product(self._x, layer.expand, self._inner, self._gated, norm=norm, epsilon=epsilon, gated=True)
            self._product(self._gated, layer.contract, width, self._x, residual=True)
        one_book = self._tokens == 1
        outputs = self._vocabulary if one_book else self._tokens * self._vocabulary
        self._product(
            self._x, self._head, outputs, self.last_logits.flatten(1),
            norm=self._final_norm.weight.detach(), epsilon=self._final_norm.epsilon,
            books=self._books if one_book else 0,
        )  # fmt: skip
        return self.last_logits

    def draw(self) -> None:
        """Draw the step's tokens from the logits into the grid, where they are unknown."""
        from hafm_lightning.kernels.cuda.decoding.step_kernels import draw_kernel

        options = self._options
        draw_kernel[(self._clips, self._tokens)](
            self.last_logits, self._uniform, self._grid, self._index, self._clips, self._grid.shape[2],
            self._kept, float(options.guidance), float(options.temperature), LARGEST_UNIFORM,
            TOKENS=self._tokens, VOCABULARY=self._vocabulary, PADDED=padded(self._vocabulary),
            GUIDED=self._rows > self._clips, GREEDY=self._greedy,
            LIMITED=self._kept < self._vocabulary, UNKNOWN=UNKNOWN,
        )  # fmt: skip

    def _product(
        self,
        x: Tensor,
        weights: tuple[Tensor, Tensor],
        outputs: int,
        output: Tensor,
        *,
        norm: Tensor | None = None,
        epsilon: float = 0.0,
        gated: bool = False,
        residual: bool = False,
        books: int = 0,
    ) -> None:
        from hafm_lightning.kernels.cuda.decoding.step_kernels import linear_kernel

        tiles, (weight, bias) = self._tiles, weights
        linear_kernel[(-(-outputs // tiles.columns), -(-self._rows // tiles.rows))](
            x, weight, bias, bias if norm is None else norm, output, self._index,
            self._rows, output.shape[1], epsilon,
            INPUTS=x.shape[1], OUTPUTS=outputs, BOOKS=books,
            NORM=norm is not None, GATED=gated, RESIDUAL=residual, WIDE=self._interpreted,
            ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, PRECISION=self._precision,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip

    def _attend(self, layer: LayerTensors, parts: int) -> None:
        from hafm_lightning.kernels.cuda.decoding.step_kernels import attention_kernel, join_kernel

        pairs, width = self._rows * self._heads, padded(self._head_width)
        attention_kernel[(pairs, parts)](
            self._projected, *layer.head_norms, layer.keys, layer.values, self._rows_of_step, self._table,
            self._mixed, self._sums, self._index,
            self._before, self._rows_of_step.shape[1], self._capacity, self._capacity if parts == 1 else self._span,
            *layer.head_epsilons, LOG2_E / math.sqrt(self._head_width),
            HEADS=self._heads, HEAD=self._head_width, WIDTH=width, TABLE_ROWS=self._table.shape[1],
            KEYS=self._keys_at_once, WHOLE=parts == 1,
        )  # fmt: skip
        if parts > 1:
            join_kernel[(pairs,)](self._sums, self._mixed, parts, HEAD=self._head_width, WIDTH=width, PARTS=MOST_PARTS)


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
