"""An MDX-Net of the published shape with random weights, written as ONNX: what separation costs, without its weights.

The network of Kim et al., "KUIELab-MDX-Net" (2021): a U-Net over [frames, frequencies] whose blocks are a stack of
3 x 3 convolutions (TFC) and a bottleneck over frequency (TDF). Batch normalisation is folded into the convolutions,
as onnxruntime does when it loads such a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class MdxSize:
    """Size of the network; the defaults are those of the published vocal models.

    Attributes:
        dim_f: Frequencies.
        dim_t: Frames.
        channels: Of the first level; each level below has as many more.
        levels: How often the picture is halved.
        convolutions: In each TFC.
        bottleneck: By how much the TDF narrows the frequencies.
    """

    dim_f: int = 2048
    dim_t: int = 256
    channels: int = 32
    levels: int = 5
    convolutions: int = 3
    bottleneck: int = 8


TINY = MdxSize(dim_f=256, dim_t=64, channels=4, levels=2, convolutions=1)


@dataclass
class _Graph:
    """Nodes and weights as they are added, and the multiplications they stand for."""

    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    multiplications: float = 0.0
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        from onnx import numpy_helper

        values = self.generator.normal(0, (2 / fan_in) ** 0.5 * 0.5, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def convolution(self, x: str, into: int, out: int, size: int, stride: int, pixels: int) -> str:
        """Convolution and ReLU; ``pixels`` of the result."""
        kernel = self.weight(out, into, size, size, fan_in=into * size * size)
        self.multiplications += pixels * into * out * size * size
        padding = [(size - stride) // 2] * 4
        x = self.add("Conv", [x, kernel], kernel_shape=[size, size], strides=[stride, stride], pads=padding)
        return self.add("Relu", [x])

    def upsampling(self, x: str, into: int, out: int, pixels: int) -> str:
        kernel = self.weight(into, out, 2, 2, fan_in=into)
        self.multiplications += pixels * into * out
        x = self.add("ConvTranspose", [x, kernel], kernel_shape=[2, 2], strides=[2, 2])
        return self.add("Relu", [x])

    def block(self, x: str, size: MdxSize, channels: int, frames: int, bins: int) -> str:
        """TFC, then TDF beside it."""
        for _ in range(size.convolutions):
            x = self.convolution(x, channels, channels, 3, 1, frames * bins)
        narrow = max(1, bins // size.bottleneck)
        self.multiplications += 2 * channels * frames * bins * narrow
        y = self.add("Relu", [self.add("MatMul", [x, self.weight(bins, narrow, fan_in=bins)])])
        y = self.add("Relu", [self.add("MatMul", [y, self.weight(narrow, bins, fan_in=narrow)])])
        return self.add("Add", [x, y])


def write_mdx_network(path: Path, size: MdxSize) -> float:
    """Write the network to ``path``; returns its multiply-adds a chunk."""
    from onnx import helper

    graph = _Graph()
    channels, frames, bins = size.channels, size.dim_t, size.dim_f
    x = graph.add("Transpose", ["input"], perm=[0, 1, 3, 2])
    x = graph.convolution(x, 4, channels, 1, 1, frames * bins)
    skipped: list[str] = []
    for _ in range(size.levels):
        x = graph.block(x, size, channels, frames, bins)
        skipped.append(x)
        frames, bins = frames // 2, bins // 2
        x = graph.convolution(x, channels, channels + size.channels, 2, 2, frames * bins)
        channels += size.channels
    x = graph.block(x, size, channels, frames, bins)
    for skip in reversed(skipped):
        frames, bins = frames * 2, bins * 2
        x = graph.upsampling(x, channels, channels - size.channels, frames * bins)
        channels -= size.channels
        x = graph.block(graph.add("Mul", [x, skip]), size, channels, frames, bins)
    graph.multiplications += frames * bins * channels * 4
    x = graph.add("Conv", [x, graph.weight(4, channels, 1, 1, fan_in=channels)], kernel_shape=[1, 1])
    graph.nodes.append(helper.make_node("Transpose", [x], ["output"], perm=[0, 1, 3, 2]))
    _save(path, graph, size)
    return graph.multiplications


def write_identity(path: Path, size: MdxSize) -> None:
    """A network that does nothing: what is left is the transform and the cross-fade around it."""
    from onnx import helper

    graph = _Graph()
    graph.nodes.append(helper.make_node("Identity", ["input"], ["output"]))
    _save(path, graph, size)


def _save(path: Path, graph: _Graph, size: MdxSize) -> None:
    import onnx
    from onnx import TensorProto, helper

    shape = ["batch", 4, size.dim_f, size.dim_t]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output")]
    body = helper.make_graph(graph.nodes, "mdx", ends[:1], ends[1:], graph.weights)
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
