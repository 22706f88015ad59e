"""CUDA: Triton attention over classed tiles, compiled layers in training, decoding steps as CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hafm_lightning.kernels.base import Backend, WeightPrecision, swap
from hafm_lightning.kernels.cuda.compiled_layers import CompiledLayer, FilledGEGLU
from hafm_lightning.kernels.cuda.graphs import GraphTokenModel
from hafm_lightning.kernels.cuda.norms import DirectRMSNorm
from hafm_lightning.kernels.cuda.triton_attention import TritonRelativePosition
from hafm_lightning.modeling.relative_position import RelativePosition
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.transformer import GEGLU, Layer, RMSNorm

__all__ = ["CudaBackend"]


class CudaBackend(Backend):
    """NVIDIA GPUs."""

    def for_training(self, model: TokenModel) -> None:
        """As :meth:`Backend.for_training`."""
        twins = {RelativePosition: TritonRelativePosition, Layer: CompiledLayer, GEGLU: FilledGEGLU}
        swap(model, {**twins, TokenModel: GraphTokenModel})

    def for_inference(self, model: TokenModel, precision: WeightPrecision) -> TokenModel:
        """As :meth:`Backend.for_inference`."""
        model = super().for_inference(model, precision)
        # conditions, known starts of windows and non-autoregressive passes are whole sequences: no mask of all pairs
        swap(model, {RelativePosition: TritonRelativePosition, RMSNorm: DirectRMSNorm, TokenModel: GraphTokenModel})
        return model

    def best_precision(self, models: Sequence[TokenModel]) -> WeightPrecision:
        """A decoding step reads all weights once and does little else, so halving them shortens it."""
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
