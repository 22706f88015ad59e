"""CPUs: compiled attention, norms and feed-forwards in training; packed weights and compiled steps in decoding.

Training: :mod:`.tiled_attention` and :mod:`.rowwise`, with :mod:`.codegen`. Inference: :mod:`.packed`,
:mod:`.compiled_step` with :mod:`.step_kernel` and :mod:`.step_tiles`, :mod:`.processor` (the operations of this CPU).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hafm_lightning.kernels.base import Backend, WeightPrecision, swap
from hafm_lightning.kernels.cpu import codegen, processor
from hafm_lightning.kernels.cpu.packed import pack, steps_can_be_compiled
from hafm_lightning.kernels.cpu.rowwise import RowwiseGEGLU, RowwiseRMSNorm
from hafm_lightning.kernels.cpu.tiled_attention import TiledRelativePosition
from hafm_lightning.modeling.relative_position import RelativePosition
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.transformer import GEGLU, RMSNorm

__all__ = ["CpuBackend"]


class CpuBackend(Backend):
    """CPUs of any kind."""

    def for_training(self, model: TokenModel) -> None:
        """As :meth:`Backend.for_training`."""
        twins: dict[type[nn.Module], type[nn.Module]] = {GEGLU: RowwiseGEGLU}
        if codegen.available():
            twins |= {RelativePosition: TiledRelativePosition, RMSNorm: RowwiseRMSNorm}
        swap(model, twins)

    def for_inference(self, model: TokenModel, precision: WeightPrecision) -> TokenModel:
        """As :meth:`Backend.for_inference`."""
        return pack(model, precision)

    def best_precision(self, models: Sequence[TokenModel]) -> WeightPrecision:
        """By processor and sizes, never by a stopwatch, so that a seed gives the same take every time.

        The compiled steps of large networks widen weights by themselves: 8 bits a weight move the distribution of a
        draw by less than 0.001 nats (`benchmarks/generation_quality.py`), the most that an automatic choice may lose.
        Else halving the weights shortens a step where the processor has bf16 products.
        """
        if models and all(steps_can_be_compiled(model, "int8") for model in models):
            return "int8"
        return "bf16" if processor.multiplies_bf16() else "fp32"

    def precision_note(self, precision: WeightPrecision, models: Sequence[TokenModel]) -> str | None:
        """As :meth:`Backend.precision_note`."""
        if precision == "fp32" or processor.multiplies_bf16():
            return None
        fast = all(steps_can_be_compiled(model, precision) for model in models)
        if fast or (precision == "int8" and processor.has("int8 rows fp32")):
            return (
                f"precision {precision}: decoding steps read {precision} weights; whole sequences are multiplied in "
                "float32, with weights rounded to bf16, because this processor has no bf16 products"
            )
        return (
            f"precision {precision}: this processor has no {precision} products for these stages; weights rounded to "
            "bf16 are multiplied in float32 instead, as slowly as fp32"
        )
