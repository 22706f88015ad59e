"""Separating a mixture into vocals and instrumental."""

from __future__ import annotations

from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of
from hafm_lightning.songs.separation.base import MdxParameters, Runtime, SeparationSettings, Separator
from hafm_lightning.songs.separation.htdemucs import HtdemucsSeparator
from hafm_lightning.songs.separation.mdx import MdxSeparator
from hafm_lightning.songs.separation.weights import find_model

__all__ = ["MdxParameters", "Runtime", "SeparationSettings", "Separator", "load_separator"]


def load_separator(settings: SeparationSettings) -> Separator:
    """The separator of the settings; RequestError if its file is missing or wrong, or a package is missing."""
    path = find_model(settings.model)
    sha256 = sha256_of(path)
    if settings.sha256 and settings.sha256.lower() != sha256:
        raise RequestError(
            f"{path} has sha256 {sha256}, separation.sha256 is {settings.sha256}\n"
            "fetch the right file, or correct the key"
        )
    if path.suffix.lower() == ".onnx":
        return MdxSeparator(path, sha256, settings)
    if path.suffix.lower() in (".safetensors", ".th"):
        return HtdemucsSeparator(path, sha256, settings)
    raise RequestError(
        f"{path} is neither .onnx (MDX-Net) nor .safetensors or .th (HTDemucs); others can run code when loaded"
    )
