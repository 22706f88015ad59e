"""The gated feed-forward at an inner width that matrix products on CUDA like.

The paper's inner width, 1365, is odd: rows of float16 then begin at odd places, and the products fall to slow kernels
that load two numbers at a time. Zeros that fill it up to a multiple of 8 change no result: ``0 * gelu(0) = 0``, which
meets a column of zeros.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.kernels.base import Twin
from hafm_lightning.modeling.transformer import GEGLU

MULTIPLE = 8
"""Numbers of 16 bits that make up 16 bytes, the widest load."""


class FilledGEGLU(Twin, GEGLU):
    """A feed-forward whose matrices are filled up with zeros as they are used; parameters keep their shapes.

    Values and gates come from two products: one kernel then computes the gradients of both.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`GEGLU.forward`."""
        missing = -self.contract.in_features % MULTIPLE
        value, gate = (
            F.linear(x, F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing)))
            for weight, bias in zip(self.expand.weight.chunk(2), self.expand.bias.chunk(2), strict=True)
        )
        return F.linear(F.gelu(gate) * value, F.pad(self.contract.weight, (0, missing)), self.contract.bias)
