"""HTDemucs through the optional package ``demucs-infer``.

Only safetensors files are read: the original ``.th`` checkpoints are pickles, which run code when they are loaded.
Source: Rouard, Massa and Défossez, "Hybrid Transformers for Music Source Separation", 2022.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafm_lightning.audio import Samples
from hafm_lightning.errors import RequestError
from hafm_lightning.songs.separation.base import SeparationSettings, Stems


class HtdemucsSeparator:
    """Runs an HTDemucs; the vocals are its vocal stem, the instrumental is the mixture minus the vocals."""

    def __init__(self, path: Path, sha256: str, settings: SeparationSettings) -> None:
        """RequestError if demucs-infer is not installed, or the file is not an HTDemucs with vocals."""
        try:
            from demucs_infer.apply import apply_model
            from demucs_infer.safetensors import load_safetensors_model
        except ImportError:
            raise RequestError(
                "HTDemucs needs the package demucs-infer: pip install 'demucs-infer[safetensors]'\n"
                "or use an MDX-Net model (.onnx)"
            ) from None
        try:
            self._model: Any = load_safetensors_model(str(path)).eval()
        except Exception as error:
            raise RequestError(f"{path} is not an HTDemucs: {' '.join(str(error).split())[:200]}") from error
        if "vocals" not in self._model.sources:
            raise RequestError(f"{path} separates {', '.join(self._model.sources)}, not vocals; use another model")
        self._apply = apply_model
        self._overlap = settings.overlap
        available = torch.cuda.is_available()
        if settings.device == "cuda" and not available:
            raise RequestError("separation.device is cuda, but torch sees no GPU here; set separation.device: cpu")
        self._device = "cuda" if available and settings.device != "cpu" else "cpu"
        self.rate_hz = int(self._model.samplerate)
        self.margin_s = 8.0  # a little more than the length of the model's input (7.8 s)
        self.identity: dict[str, Any] = {"kind": "htdemucs", "sha256": sha256, "overlap": settings.overlap}

    def separate(self, mixture: Samples, first: int = 0) -> Stems:
        """Separate ``[2, L]`` at the model's rate; ``first`` has no effect, since the model has no grid of its own."""
        sound = torch.from_numpy(np.ascontiguousarray(mixture))
        centre, spread = sound.mean(), sound.mean(dim=0).std() + 1e-8  # the model was trained on normalised mixtures
        settings = {"shifts": 0, "split": True, "overlap": self._overlap, "device": self._device}  # shifts are random
        with torch.inference_mode():
            stems = self._apply(self._model, ((sound - centre) / spread)[None], **settings)[0]
        vocals = (stems[list(self._model.sources).index("vocals")].cpu() * spread + centre).numpy()
        return Stems(vocals, mixture - vocals)
