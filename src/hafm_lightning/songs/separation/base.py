"""Separation: a mixture in, vocals and instrumental out, behind one small protocol.

A :class:`Separator` gets stretches of a song, so that memory does not grow with the song. Kinds: MDX-Net models in ONNX
(``mdx``, as in the paper) and HTDemucs (``htdemucs``); another model is one more class with the same three names.

Choices:

* Weights come from a local file, as data only, and their sha256 is recorded with every shard.
* Vocals and instrumental add up to the mixture: the instrumental is the mixture minus the vocals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stems:
    """The two parts of a mixture: float32 ``[2, L]`` each, which add up to it."""

    vocals: Samples
    instrumental: Samples


class Separator(Protocol):
    """A model that takes vocals out of a mixture."""

    # Everything that decides the result (kind, sha256 of the weights, settings), as JSON values.
    identity: dict[str, Any]
    rate_hz: int  # sample rate of mixture and stems
    margin_s: float  # context that the model needs on each side of a stretch: whole seconds

    def separate(self, mixture: Samples, first: int = 0) -> Stems:
        """Separate a stretch of a song.

        Args:
            mixture: float32 ``[2, L]``.
            first: Start of the stretch in the song, in samples. Further than ``margin_s`` from the ends of the stretch,
                the result depends on the song alone and not on where the stretch was cut.
        """


@dataclass(frozen=True)
class MdxParameters:
    """Shape of an MDX-Net model's input; ``null`` is read from the JSON beside the model, or from the model itself.

    Attributes:
        n_fft: Length of the transform, in samples.
        hop: Samples between its frames.
        dim_f: Frequencies of the model's input, from the lowest on.
        dim_t: Frames of the model's input.
        compensation: Factor on the model's output.
        target: Output of the model: ``vocals`` or ``instrumental``.
    """

    n_fft: int | None = None
    hop: int | None = None
    dim_f: int | None = None
    dim_t: int | None = None
    compensation: float | None = None
    target: str | None = None


@dataclass(frozen=True)
class SeparationSettings:
    """Which model separates songs that come as mixtures only.

    Attributes:
        model: File of an MDX-Net model (``.onnx``, with a JSON of the same name beside it or ``parameters`` here) or of
            an HTDemucs (``.safetensors``, as demucs-infer writes them). Empty: all corpora come as stems.
        sha256: Required sha256 of the file; empty accepts any and records it.
        parameters: Shape of an MDX-Net model's input.
        overlap: Share of each chunk that is computed twice and cross-faded.
        batch_size: Chunks that run together. On a CPU that is no faster, and each needs its memory.
        device: ``cpu``, ``cuda`` or ``auto``.
        threads: Of each model on a CPU. Another number changes sums in their last bit.
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
