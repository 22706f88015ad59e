"""How long a training step takes on a GPU whose name is known, from its FLOPs and what was measured.

The kernels of a step take ``matrix FLOPs / products + attention FLOPs / attention`` seconds; the host, which starts
them, takes a time for each layer whatever the batch. A step lasts as long as the slower one of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from hafm_lightning.modeling.token_model import TokenModelConfig
from hafm_lightning.training.gpus import PEAK_TFLOPS


@dataclass(frozen=True)
class Speed:
    """What a GPU reaches in training in half precision.

    Attributes:
        products: FLOP/s of the matrix products, over all that is not attention: norms, GEGLU, loss and optimizer too.
        attention: FLOP/s of attention, over the pairs of steps that see each other.
        host_s: Seconds in which the host starts the kernels of a layer, forward and backward.
    """

    products: float
    attention: float
    host_s: float


@dataclass(frozen=True)
class MeasuredStep:
    """A step that was measured: paper-size stage, 10 s clips, ``16-mixed``, one GPU."""

    chip: str
    stage: str
    conditioning: str
    clips: int
    milliseconds: float
    memory_gib: float


MEASURED = (
    MeasuredStep("h200", "CoarseStage", "aligned", 12, 68.2, 9.1),
    MeasuredStep("h200", "CoarseStage", "prefix", 12, 86.4, 11.7),
    MeasuredStep("h200", "FineStage", "aligned", 36, 156.3, 25.8),
    MeasuredStep("h200", "SemanticStage", "aligned", 36, 52.9, 4.9),
)
"""Wall-clock times, and the most that PyTorch's tensors held (docs/gpu.md)."""
REFERENCE, SPEED = "h200", Speed(products=265e12, attention=185e12, host_s=0.0044)
"""The constants, from the kernels of :data:`MEASURED`: those of attention took 62.3 of the fine stage's 154.0 ms, and
41.1 of 82.1 ms with a prefix. Of the semantic stage's 52.9 ms kernels took 24.4, the rest was waiting for the host: 12
layers in 52.9 ms give ``host_s``. Other chips are assumed to reach the same share of their peak, with a host as fast.
"""


def batch_seconds(config: TokenModelConfig, clips: int, frames: int, chip: str) -> float:
    """Seconds of a training step on one batch in half precision.

    Args:
        config: The network.
        clips: Clips of the batch on one GPU.
        frames: Frames of the target in a clip.
        chip: A key of :data:`~hafm_lightning.training.gpus.PEAK_TFLOPS`.
    """
    ratio = PEAK_TFLOPS[chip]["half"] / PEAK_TFLOPS[REFERENCE]["half"]
    passes = 4 if config.backbone.checkpoint_layers else 3  # forward, twice as much backward, and forward again
    attention = passes * config.attention_flops(clips, frames)
    products = passes * config.forward_flops(clips, frames) - attention
    kernels = (products / SPEED.products + attention / SPEED.attention) / ratio
    return max(kernels, SPEED.host_s * config.backbone.layers)
