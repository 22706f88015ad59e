"""One training step by different paths, each in a process of its own: what :mod:`training` compares.

``ours``            the stage as ``fit`` trains it: attention in compiled tiles on the CPU, Triton kernels over classed
                    tiles and compiled layers on CUDA
``floor``           another function, as a bound: ours with causal attention without a bias
``plain``           the same with ``kernels: none``
``sdpa``            the same network, attention by ``scaled_dot_product_attention`` with mask and bias in one tensor
``materialised``    the same network, attention as written in a textbook: ``softmax(Q K^T + bias) V`` left to autograd
``x-transformers``  embeddings, heads and loss of the same stage around a ``Decoder`` of that library, set to the same
                    network: T5 bias, QK-norm with learned scales, GEGLU of the same inner width, RMSNorm
"""

from __future__ import annotations

import gc
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from _facts import forget_peak_memory, kernels_started, peak_memory_bytes
from torch import Tensor, nn

from hafm_lightning.kernels.cuda import triton_attention
from hafm_lightning.modeling.attention import Mixer, WholeSequence
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions
from hafm_lightning.modeling.transformer import BackboneConfig, Transformer
from hafm_lightning.stages import STAGES, Stage
from hafm_lightning.tokens import TokenBatch

PATHS = ("ours", "floor", "plain", "sdpa", "materialised", "x-transformers")
AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
"""Precision of ``trainer.precision`` -> what autocast computes in; 32-true is not in it."""


@dataclass(frozen=True)
class Run:
    """What a process trains.

    Attributes:
        stage: Name of the stage's class.
        path: One of :data:`PATHS`.
        device: ``cpu`` or ``cuda``.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        threads: CPU threads.
        memory_bytes: The most that a process may take on the CPU.
        conditioning: ``prefix`` or ``aligned``.
        backbone: Size of the Transformer; the default is the paper's.
    """

    stage: str
    path: str
    device: str
    precision: str
    threads: int
    memory_bytes: int
    conditioning: str = "prefix"
    backbone: BackboneConfig = BackboneConfig()


@dataclass(frozen=True)
class Turn:
    """What a process is asked for.

    Attributes:
        clips: Batch size.
        clip_s: Length of a clip in seconds.
        steps: Optimizer steps, one after another.
    """

    clips: int
    clip_s: float
    steps: int


@dataclass(frozen=True)
class Answer:
    """What came of it.

    Attributes:
        seconds: For one step.
        loss: Of the last step.
        peak_bytes: The most memory held so far: of the process on the CPU, of PyTorch's tensors on CUDA.
        failure: Why there are no figures, or an empty string.
        kernels: Kernels that a step starts on a GPU; None elsewhere, and where they were not counted.
        attention: Which kernels attend, as far as is known.
    """

    seconds: float = math.nan
    loss: float = math.nan
    peak_bytes: int = 0
    failure: str = ""
    kernels: int | None = None
    attention: str = ""


@dataclass(frozen=True)
class DenseBias:
    """Mask and bias of all pairs in one tensor.

    Attributes:
        rows: Row of the bias table for each pair, int64 ``[S, S]``.
        written_out: Whether scores and probabilities are left to autograd instead of to ``sdpa``.
    """

    rows: Tensor
    written_out: bool

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """As :meth:`SequenceBias.attend <hafm_lightning.modeling.attention.SequenceBias.attend>`."""
        bias = table.t().index_select(1, self.rows.flatten()).view(1, -1, *self.rows.shape)
        if not self.written_out:
            return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias.to(queries.dtype))
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1]) + bias
        return scores.softmax(-1).to(values.dtype) @ values


class DenseRelativePosition(RelativePosition):
    """A relative position whose sequences attend by ``sdpa``."""

    written_out = False

    def sequence_bias(self, positions: StepPositions) -> DenseBias:
        """As :meth:`RelativePosition.sequence_bias`."""
        steps = torch.arange(positions.steps, device=positions.segment.device)
        return DenseBias(self.rows(positions, steps, steps), self.written_out)


class WrittenOutRelativePosition(DenseRelativePosition):
    """A relative position whose sequences attend as written in a textbook."""

    written_out = True


class Floor:
    """Causal attention without a bias, by the fastest kernel that PyTorch has."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """As :meth:`SequenceBias.attend <hafm_lightning.modeling.attention.SequenceBias.attend>`, but for the table."""
        # nothing of the table is used; its gradient exists, as the optimizer expects
        unused = table[:-1].sum().to(queries.dtype) * 0
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True) + unused


class FloorRelativePosition(RelativePosition):
    """A relative position without influence."""

    def sequence_bias(self, positions: StepPositions) -> Floor:
        """As :meth:`RelativePosition.sequence_bias`."""
        return Floor()


class NoRelativePosition(RelativePosition):
    """For a backbone with a bias of its own."""

    def sequence_bias(self, positions: StepPositions) -> DenseBias:
        """Nothing is computed."""
        return DenseBias(positions.ticks, written_out=False)


class XTransformersBackbone(nn.Module):
    """The library's decoder in the place of our Transformer."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        from x_transformers import Decoder

        self.decoder = Decoder(
            dim=config.width,
            depth=config.layers,
            heads=config.heads,
            attn_dim_head=config.head_width,
            rel_pos_bias=True,
            attn_qk_norm=True,
            attn_qk_norm_dim_scale=True,
            use_rmsnorm=True,
            ff_glu=True,
            ff_mult=config.inner_width / config.width,
            verbose=False,
        )

    def forward(self, x: Tensor, mixer: Mixer, first: int = 0) -> Tensor:
        """Inputs ``[B, S, D]`` -> hidden states from step ``first`` on; the bias is the library's own."""
        del mixer
        return self.decoder(x)[:, first:]  # type: ignore[no-any-return]


@torch.no_grad()
def x_transformers_difference(steps: int = 200) -> float:
    """How far the library's decoder is from ours with the same weights: the largest difference over the largest value.

    Raises:
        ModuleNotFoundError: x-transformers is not installed.
    """
    torch.manual_seed(0)
    config = BackboneConfig(layers=2, width=64, heads=4, feedforward=192)
    theirs, ours, bias = XTransformersBackbone(config), Transformer(config), RelativePosition(config.heads, "index")
    for parameter in (*ours.parameters(), *bias.parameters()):
        parameter.add_(0.3 * torch.randn_like(parameter))
    state: dict[str, Tensor] = {
        "decoder.rel_pos.relative_attention_bias.weight": bias.within / math.sqrt(config.head_width),
        "decoder.final_norm.g": ours.final_norm.weight - 1,  # it keeps the offset from 1
    }
    for number, layer in enumerate(ours.layers):
        attention, feedforward = f"decoder.layers.{2 * number}", f"decoder.layers.{2 * number + 1}"
        state[f"{attention}.0.0.g"] = layer.attention_norm.weight - 1
        for name, weight in zip("qkv", layer.attention.project_in.weight.chunk(3), strict=True):
            state[f"{attention}.1.to_{name}.weight"] = weight
        state[f"{attention}.1.to_out.weight"] = layer.attention.project_out.weight
        for name, norm in (("q", layer.attention.query_norm), ("k", layer.attention.key_norm)):
            scale = norm.weight * math.sqrt(config.head_width)  # it divides by the length, we by the root mean square
            state[f"{attention}.1.qk_norm_{name}_scale"] = scale.expand(config.heads, 1, -1)
        layer.attention.project_in.bias.zero_()  # it has none
        layer.attention.project_out.bias.zero_()
        state[f"{feedforward}.0.0.g"] = layer.feedforward_norm.weight - 1
        for part, linear in (("0.proj", layer.feedforward.expand), ("2", layer.feedforward.contract)):
            state[f"{feedforward}.1.ff.{part}.weight"] = linear.weight
            state[f"{feedforward}.1.ff.{part}.bias"] = linear.bias
    theirs.load_state_dict(state)
    positions = StepPositions(torch.zeros(steps, dtype=torch.int64), torch.arange(steps), 0)
    mixer, x = WholeSequence(bias.sequence_bias(positions), bias.table()), torch.randn(2, steps, config.width)
    expected = ours(x, mixer)
    return float((theirs(x, mixer) - expected).abs().max() / expected.abs().max())


def stage_of(name: str, path: str, backbone: BackboneConfig = BackboneConfig(), **settings: Any) -> Stage:
    """A stage of the paper whose network goes by ``path``."""
    stage = STAGES[name](backbone=backbone, kernels="none" if path == "plain" else "auto", **settings)
    if path == "x-transformers":
        stage.model.backbone = XTransformersBackbone(backbone)
    if path in ("floor", "sdpa", "materialised", "x-transformers"):
        kinds = {
            "floor": FloorRelativePosition, "sdpa": DenseRelativePosition, "materialised": WrittenOutRelativePosition,
        }  # fmt: skip
        stage.model.relative_position.__class__ = kinds.get(path, NoRelativePosition)
    return stage


def batch_of(stage: Stage, clips: int, clip_s: float) -> TokenBatch:
    """Random tokens for ``stage``."""
    layout = stage.model.layout
    streams = {
        stream.name: torch.randint(stream.vocabulary, (clips, stream.codebooks, stream.frames(clip_s)))
        for stream in (*layout.conditions, layout.target)
    }
    return TokenBatch(streams, [f"clip {i}@0.00" for i in range(clips)])


class Training:
    """Steps of one stage by one path, as ``fit`` takes them: loss, gradients, AdamW."""

    def __init__(self, run: Run) -> None:
        torch.manual_seed(0)
        self.run = run
        self.stage = stage_of(run.stage, run.path, run.backbone, conditioning=run.conditioning).to(run.device).train()
        self.kernels: int | None = None
        self.optimizer = self.stage.configure_optimizers()
        scaled = run.device == "cuda" and run.precision == "16-mixed"
        self.scaler = torch.amp.GradScaler(run.device, enabled=scaled)

    def take(self, turn: Turn) -> Answer:
        """Some steps; the time of one."""
        batch = batch_of(self.stage, turn.clips, turn.clip_s).to(self.run.device)
        self._wait()
        began = time.perf_counter()
        for _ in range(turn.steps):
            loss = self._step(batch)
        self._wait()
        seconds = (time.perf_counter() - began) / turn.steps
        if self.kernels is None and self.run.device == "cuda":
            self.kernels = kernels_started(lambda: self._step(batch))
        return Answer(seconds, float(loss), self._peak(), kernels=self.kernels, attention=self._attention())

    def _attention(self) -> str:
        """Which kernels attend: those of the bias that the last step used."""
        if self.run.path == "x-transformers":
            return "x-transformers"
        kinds = {type(bias).__name__ for bias in self.stage.model._biases.values()}
        found = triton_attention.settings.found.items() if "TritonBias" in kinds else ()
        tiles = [str(setting.tiles) if setting else "fallen back" for _, setting in found]
        return ", ".join([*sorted(kinds), *tiles])

    def _step(self, batch: TokenBatch) -> Tensor:
        dtype = AUTOCAST.get(self.run.precision)
        if self.run.device == "cpu" and dtype is not None:
            dtype = torch.bfloat16  # as Lightning does
        with torch.autocast(self.run.device, dtype=dtype, enabled=dtype is not None):
            loss = self.stage.training_loss(batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def forget(self, peak_too: bool) -> None:
        """Give back memory that the next turn may need; after a step that did not fit, forget its peak too."""
        self.optimizer.zero_grad()
        gc.collect()
        if self.run.device == "cuda":
            torch.cuda.empty_cache()
            if peak_too:
                torch.cuda.reset_peak_memory_stats()
        elif peak_too:
            forget_peak_memory()

    def _wait(self) -> None:
        if self.run.device == "cuda":
            torch.cuda.synchronize()

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.run.device == "cuda" else peak_memory_bytes()


def serve(run: Run, connection: Connection) -> None:
    """Take the turns that come through ``connection`` until it closes."""
    torch.set_num_threads(run.threads)
    if run.device == "cpu" and hasattr(resource, "RLIMIT_DATA"):
        resource.setrlimit(resource.RLIMIT_DATA, (run.memory_bytes, run.memory_bytes))
    training: Training | None = None
    while True:
        try:
            turn = connection.recv()
        except EOFError:
            return
        try:
            training = training or Training(run)
            answer = training.take(turn)
        except ModuleNotFoundError as error:
            answer = Answer(failure=f"not run: {error.name} is not installed (pip install '.[bench]')")
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            answer = Answer(failure="does not fit")
        if training is not None:
            training.forget(peak_too=bool(answer.failure))
        connection.send(answer)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "allocate memory" in str(error) or "out of memory" in str(error)


def matmul_flops(device: str, precision: str) -> float:
    """FLOP/s of a large matrix product at the precision of the run: the best of a few."""
    dtype = AUTOCAST.get(precision, torch.float32)
    if device == "cpu" and dtype == torch.float16:
        dtype = torch.bfloat16
    size, repeats = (8192, 20) if device == "cuda" else (2048, 1)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = 0.0
    for _ in range(5):
        wait()
        began = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b)
        wait()
        best = max(best, 2 * size**3 * repeats / (time.perf_counter() - began))
    return best
