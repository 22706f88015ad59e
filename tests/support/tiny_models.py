"""Small stage networks and token batches, with parameters loud enough that no mistake hides in rounding."""

import torch
from torch import Tensor

from hafm_lightning.kernels import for_training
from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.modeling.token_model import TokenModel, TokenModelConfig
from hafm_lightning.modeling.transformer import BackboneConfig, RMSNorm
from hafm_lightning.tokens import TokenBatch

TINY = BackboneConfig(layers=2, width=16, heads=2, feedforward=24)
KERNELS = "auto"
"""What :func:`tiny_model` gives its networks; tests of ``modeling`` run with ``none`` too (their conftest)."""
RICH_CONDITIONS = ("vocal_semantic", "instrumental_fine", "style")
"""One codebook at another rate, several codebooks at the target's rate, and one token for the whole clip."""


def tiny_config(pattern="flattened", conditioning="prefix", relative_position="time", **settings) -> TokenModelConfig:
    """A coarse target under rich conditions, unless ``settings`` say otherwise."""
    defaults = {"conditions": RICH_CONDITIONS, "target": "instrumental_coarse", "backbone": TINY}
    return TokenModelConfig(
        pattern=pattern, conditioning=conditioning, relative_position=relative_position, **defaults | settings
    )


def tiny_model(config: TokenModelConfig, *, kernels=None, seed=0) -> TokenModel:
    """The network in eval mode, with :data:`KERNELS` unless told otherwise; logits and bias tables of size about 1."""
    model = TokenModel(config)
    for_training(model, kernels or KERNELS)
    louden(model, seed)
    return model.eval()


@torch.no_grad()
def louden(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew, so that each moves the output by a visible amount."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, RMSNorm)}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in norms:
            parameter.copy_(1 + 0.2 * noise)
        elif name.endswith("head_weight") or (parameter.dim() == 2 and "project" in name):
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.copy_(0.5 * noise)


def tiny_streams(layout: SequenceLayout, frames: int, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Random ids ``[B, K, T]`` for the conditions and the target of ``layout``."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [*layout.condition_frames(frames), frames]
    return {
        stream.name: torch.randint(stream.vocabulary, (batch, stream.codebooks, length), generator=generator)
        for stream, length in zip((*layout.conditions, layout.target), lengths, strict=True)
    }


def tiny_batch(layout: SequenceLayout, frames: int, batch: int = 2, seed: int = 0, songs: int | None = None):
    """A TokenBatch of such streams, from ``songs`` songs in turn (default: one a clip)."""
    names = [f"song {index % (songs or batch)}@{index}.00" for index in range(batch)]
    return TokenBatch(tiny_streams(layout, frames, batch, seed), names)
