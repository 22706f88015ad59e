"""Separation: a mixture in, vocals and instrumental out, behind one small protocol.

A :class:`Separator` gets stretches of a song, so that memory does not grow with the song. Kinds: MDX-Net models in ONNX
(:mod:`~hafm_lightning.songs.separation.mdx`, what the paper used) and HTDemucs
(:mod:`~hafm_lightning.songs.separation.htdemucs`); another model is one more class with the same three names.

Choices:

* Weights come from a local file, as data only, and their sha256 is recorded with every shard.
* Vocals and instrumental add up to the mixture: the instrumental is what the vocals leave.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hafm_lightning.errors import RequestError

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stems:
    """What a separator makes of a mixture: float32 ``[2, L]`` each, which add up to it."""

    vocals: Samples
    instrumental: Samples


class Separator(Protocol):
    """A model that takes vocals out of a mixture.

    Attributes:
        identity: Everything that decides the result (kind, sha256 of the weights, settings), as JSON values.
        rate_hz: Sample rate of mixture and stems.
        margin_s: How much of the surroundings the model wants on each side of a stretch: whole seconds.
    """

    identity: dict[str, Any]
    rate_hz: int
    margin_s: float

    def separate(self, mixture: Samples, first: int = 0) -> Stems:
        """Separate a stretch of a song.

        Args:
            mixture: float32 ``[2, L]``.
            first: Where the stretch begins in the song, in samples. Further than ``margin_s`` from its ends, what comes
                out depends on the song alone and not on where the stretch was cut.
        """


@dataclass(frozen=True)
class MdxParameters:
    """Shape of an MDX-Net model's input; ``null`` is read from the JSON beside the model, or from the model itself.

    Attributes:
        n_fft: Length of the transform, in samples.
        hop: Samples between its frames.
        dim_f: Frequencies that the model sees, from the lowest on.
        dim_t: Frames that the model sees.
        compensation: Factor on the model's output.
        target: What the model puts out: ``vocals`` or ``instrumental``.
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
        sha256: What the file's sha256 must be; empty accepts any and records it.
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


def load_separator(settings: SeparationSettings) -> Separator:
    """The separator that the settings describe.

    Raises:
        RequestError: The model file is missing, not the expected one, or its package is not installed.
    """
    from hafm_lightning.files import sha256_of

    path = Path(settings.model).expanduser()
    if not settings.model or not path.is_file():
        raise RequestError(
            f"separation model {settings.model or '(none)'} does not exist\n"
            "give separation.model: an MDX-Net file (.onnx) or an HTDemucs file (.safetensors)"
        )
    found = sha256_of(path)
    if settings.sha256 and settings.sha256.lower() != found:
        raise RequestError(
            f"{path} has sha256 {found}, separation.sha256 is {settings.sha256}\n"
            "fetch the right file, or correct the key"
        )
    if path.suffix.lower() == ".onnx":
        from hafm_lightning.songs.separation.mdx import MdxSeparator

        return MdxSeparator(path, found, settings)
    if path.suffix.lower() == ".safetensors":
        from hafm_lightning.songs.separation.htdemucs import HtdemucsSeparator

        return HtdemucsSeparator(path, found, settings)
    raise RequestError(
        f"{path} is neither .onnx (MDX-Net) nor .safetensors (HTDemucs); other formats can run code when loaded"
    )
