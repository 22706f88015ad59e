"""RMS norms for inference on CUDA: one kernel in the type of their input, which adds up in float32 by itself.

The plain norm casts input and weight to float32 and the result back, which a compiler joins in training; a recorded
decoding step would start four kernels for each of its 49 norms.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.kernels.base import Twin
from hafm_lightning.modeling.transformer import RMSNorm


class DirectRMSNorm(Twin, RMSNorm):
    """A norm without casts; in float32 it computes what the plain one does."""

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`RMSNorm.forward`."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.epsilon)
