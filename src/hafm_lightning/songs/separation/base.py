"""The protocol of separators, and their settings.

Kinds: MDX-Net models in ONNX (``mdx``, as in the paper) and HTDemucs (``htdemucs``). Weights come from a local file, as
data only, and their sha256 is recorded with every shard.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from hafm_lightning.audio import Samples


class Stems(NamedTuple):
    """The two parts of a mixture: float32 ``[2, L]`` each, which add up to it."""

    vocals: Samples
    instrumental: Samples


@dataclass
class Runtime:
    """Where a separator runs, and how fast it was up to now."""

    provider: str  # of onnxruntime (`CUDAExecutionProvider`), or the device of torch
    note: str = ""  # why not on a GPU, in one line; empty if that was asked for
    audio_s: float = 0.0  # seconds of sound that were separated
    busy_s: float = 0.0  # seconds that this took

    @contextmanager
    def counting(self, audio_s: float) -> Iterator[None]:
        """Count the block as the separation of ``audio_s`` seconds of sound."""
        began = time.perf_counter()
        yield
        self.audio_s += audio_s
        self.busy_s += time.perf_counter() - began


class Separator(Protocol):
    """A model that separates vocals from a mixture."""

    identity: dict[str, Any]  # kind, sha256 of the weights, settings: all that determines the result, as JSON values
    runtime: Runtime
    rate_hz: int  # sample rate of mixture and stems
    margin_s: float  # context that the model needs on each side of a stretch: whole seconds

    def separate(self, mixture: Samples, first: int = 0) -> Stems:
        """Separate a stretch ``[2, L]`` of a song, which begins at the song's sample ``first``.

        Further than ``margin_s`` from the ends of the stretch, the result depends on the song alone.
        """


@dataclass(frozen=True)
class MdxParameters:
    """Shape of an MDX-Net model's input.

    ``null``: it comes from the JSON beside the model, from the table of the public models, or from the model's input.

    Attributes:
        n_fft: Length of the Fourier transform, in samples.
        hop: Samples between its frames.
        dim_f: Number of frequencies of the model's input, from the lowest on.
        dim_t: Number of frames of the model's input.
        compensation: Factor on the model's output.
        target: Output of the model: ``vocals`` or ``instrumental``. No default: a wrong one swaps the stems.
    """

    n_fft: int | None = None
    hop: int | None = None
    dim_f: int | None = None
    dim_t: int | None = None
    compensation: float | None = None
    target: str | None = None


@dataclass(frozen=True)
class SeparationSettings:
    """The model that separates songs without stems.

    Attributes:
        model: File of an MDX-Net model (``.onnx``; the public models of UVR are known, others need a JSON of the same
            name or ``parameters``) or of an HTDemucs (``.safetensors``, or demucs' own ``.th``), a folder with one of
            them, or ``htdemucs``, ``htdemucs_ft``: where demucs stored it. Empty: no separation.
        sha256: Required sha256 of the file; empty accepts any and records it.
        parameters: Shape of an MDX-Net model's input.
        overlap: Share of each chunk that is computed twice and cross-faded.
        batch_size: Chunks that run together. On a CPU a larger batch is no faster, and takes more memory.
        device: ``cpu``, ``cuda`` (refused if it cannot be used) or ``auto``, which says why it takes the CPU.
        threads: Threads of each model on a CPU. Another number changes sums in their last bit.
    """

    model: str = ""
    sha256: str = ""
    parameters: MdxParameters = field(default_factory=MdxParameters)
    overlap: float = 0.25
    batch_size: int = 1
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is {self.overlap}, must lie in [0, 1)")
        if self.batch_size < 1 or self.threads < 1:
            raise ValueError("batch_size and threads start at 1")
        if self.device not in ("cpu", "cuda", "auto"):
            raise ValueError(f"device is {self.device!r}, choose cpu, cuda or auto")
