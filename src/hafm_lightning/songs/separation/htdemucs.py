"""HTDemucs through the optional package ``demucs-infer``.

Files: safetensors, and the checkpoints that demucs itself downloads (``.th``). The latter are pickles that name the
model's class. They are read by torch's weights-only reader, in which harmless stand-ins take the place of the classes
that they name: no code of the file runs, and a file that names anything else is refused.
Source: Rouard, Massa and Défossez, "Hybrid Transformers for Music Source Separation", 2022.
"""

from __future__ import annotations

import inspect
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafm_lightning import limits
from hafm_lightning.audio import Samples
from hafm_lightning.errors import RequestError
from hafm_lightning.songs.separation.base import Runtime, SeparationSettings, Stems

_CHECKSUM = re.compile(r"[0-9a-f]{8}-([0-9a-f]{8})")


class HtdemucsSeparator:
    """Runs an HTDemucs; the vocals are its vocal stem, the instrumental is the mixture minus the vocals."""

    def __init__(self, path: Path, sha256: str, settings: SeparationSettings) -> None:
        """RequestError if demucs-infer is not installed, or the file is not an HTDemucs with vocals."""
        try:
            from demucs_infer.apply import apply_model
            from demucs_infer.htdemucs import HTDemucs
            from demucs_infer.safetensors import load_safetensors_model
        except ImportError:
            raise RequestError(
                "HTDemucs needs the package demucs-infer: pip install 'demucs-infer[safetensors]'\n"
                "or use an MDX-Net model (.onnx)"
            ) from None
        expected = _CHECKSUM.fullmatch(path.stem)
        if expected and not sha256.startswith(expected[1]):
            raise RequestError(f"{path} is damaged: its sha256 begins with {sha256[:8]}, its name says {expected[1]}")
        try:
            original = path.suffix.lower() == ".th"
            self._model: Any = (
                _from_checkpoint(path, HTDemucs) if original else load_safetensors_model(str(path))
            ).eval()
        except Exception as error:
            raise RequestError(f"{path} is not an HTDemucs: {' '.join(str(error).split())[:200]}") from error
        if "vocals" not in self._model.sources:
            raise RequestError(f"{path} separates {', '.join(self._model.sources)}, not vocals; use another model")
        if not all(bool(torch.isfinite(values).all()) for values in self._model.state_dict().values()):
            raise RequestError(f"{path} holds weights that are NaN or infinite; fetch it again")
        self._apply = apply_model
        self._overlap = settings.overlap
        available = torch.cuda.is_available()
        if settings.device == "cuda" and not available:
            raise RequestError("separation.device is cuda, but torch sees no GPU here; set separation.device: cpu")
        self._device = "cuda" if available and settings.device != "cpu" else "cpu"
        note = "torch sees no GPU here" if settings.device == "auto" and not available else ""
        self.runtime = Runtime(f"torch on {self._device}", note)
        self.rate_hz = int(self._model.samplerate)
        self.margin_s = 8.0  # a little more than the length of the model's input (7.8 s)
        self.identity: dict[str, Any] = {"kind": "htdemucs", "sha256": sha256, "overlap": settings.overlap}

    def separate(self, mixture: Samples, first: int = 0) -> Stems:
        """Separate ``[2, L]`` at the model's rate; ``first`` has no effect, since the model has no grid of its own."""
        sound = torch.from_numpy(np.ascontiguousarray(mixture))
        centre, spread = sound.mean(), sound.mean(dim=0).std() + 1e-8  # the model was trained on normalised mixtures
        settings = {"shifts": 0, "split": True, "overlap": self._overlap, "device": self._device}  # shifts are random
        with self.runtime.counting(mixture.shape[1] / self.rate_hz), torch.inference_mode():
            stems = self._apply(self._model, ((sound - centre) / spread)[None], **settings)[0]
            vocals = (stems[list(self._model.sources).index("vocals")].cpu() * spread + centre).numpy()
        return Stems(vocals, mixture - vocals)


class _StandIn:
    """Takes the place of a class that a checkpoint names."""

    def __init__(self, *values: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Model(_StandIn):
    """Stands for ``demucs.htdemucs.HTDemucs``."""


_STAND_INS: list[Any] = [
    (_Model, "demucs.htdemucs.HTDemucs"),
    (Fraction, "fractions.Fraction"),
    # Scores from training, which are not used.
    (_StandIn, "numpy.core.multiarray.scalar"),
    (_StandIn, "numpy._core.multiarray.scalar"),
    (_StandIn, "numpy.dtype"),
    (_StandIn, "numpy.dtypes.Float64DType"),
    (_StandIn, "numpy.dtypes.Float32DType"),
]


def _from_checkpoint(path: Path, network: Any) -> Any:
    """The network of a checkpoint of demucs: ``klass``, ``args``, ``kwargs``, ``state``. ValueError for other files."""
    with torch.serialization.safe_globals(_STAND_INS):
        package = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(package, dict) or package.get("klass") is not _Model:
        raise ValueError("the checkpoint is not of the class HTDemucs")
    arguments, options, state = package["args"], package["kwargs"], package["state"]
    known = inspect.signature(network).parameters
    options = {name: value for name, value in options.items() if name in known}
    most = limits.current()
    sizes: list[Any] = [*arguments, *options.values()]
    for value in sizes:
        if isinstance(value, int | float | Fraction) and not -most.width <= value <= most.width:
            raise ValueError(f"a size of {value}, at most {most.width} are built")
    model = network(*arguments, **options)
    model.load_state_dict(state, strict=True)
    return model
