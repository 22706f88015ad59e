"""The ways to attend over a whole sequence, by name."""

from hafm_lightning.kernels.cpu.tiled_attention import TiledBias
from hafm_lightning.kernels.cuda.flex_attention import FlexBias
from hafm_lightning.modeling.relative_position import RelativePosition

BIASES = {"plain": RelativePosition.sequence_bias, "tiled": TiledBias.of, "flex": FlexBias.of}


def attend(kind, module, positions, qkv):
    """Attention over a sequence of queries, keys and values."""
    return BIASES[kind](module, positions).attend(*qkv, module.table())
