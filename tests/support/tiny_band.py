"""A whole tiny band for tests: offline tokenizers trained on a few seconds of tones, three stages with random weights.

The stages know what to do as little as a new-born; but every token, window, file and sample of the real thing is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafm_lightning.audio import Audio
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.stages import CoarseStage, FineStage, SemanticStage, Stage
from hafm_lightning.tokenizers import Tokenizers, save_tokenizers
from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer, OfflineSemanticTokenizer

WINDOW_S = 0.4
LOOK_AHEAD_S = 0.04
TINY = BackboneConfig(width=32, layers=2, heads=2)
PAPER = {"pattern": "flattened", "conditioning": "prefix"}
VARIANTS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "paper": (PAPER, PAPER),
    "live": (
        {"pattern": "delay", "conditioning": "aligned"},
        {"pattern": "nonautoregressive", "conditioning": "aligned"},
    ),
}
"""Name -> settings of semantic and coarse stages, and of the fine stage."""


def sing(duration_s: float, rate_hz: int, *, seed: int = 0, channels: int = 1) -> Audio:
    """A gliding tone with overtones, pauses and some breath: enough for tokens to differ."""
    time = np.arange(round(duration_s * rate_hz)) / rate_hz
    noise = np.random.default_rng(seed)
    pitch_hz = 220 * 2 ** (np.sin(2 * np.pi * time * (0.4 + 0.1 * seed)) + 0.01 * np.sin(2 * np.pi * 5.5 * time))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate_hz
    tone = sum(np.sin(n * phase) / n for n in range(1, 6))
    loud = 0.2 + 0.8 * (np.sin(2 * np.pi * 1.3 * time + seed) > -0.3)
    samples = 0.15 * tone * loud + 0.005 * noise.standard_normal(len(time))
    return Audio(np.tile(samples.astype(np.float32), (channels, 1)), rate_hz)


def tiny_tokenizers(folder: Path) -> Tokenizers:
    """Train the offline pair and keep it in ``folder``."""
    pair = Tokenizers(
        OfflineSemanticTokenizer.train([sing(12, 16000, seed=seed).samples[0] for seed in range(3)]),
        OfflineAcousticTokenizer.train([sing(8, 24000, seed=seed).samples[0] for seed in range(3)]),
    )
    save_tokenizers(pair.semantic, pair.acoustic, folder)
    return pair


@dataclass(frozen=True)
class TinyBand:
    """Files of a band: keyword arguments of ``Accompanist.from_checkpoints``."""

    semantic: Path
    coarse: Path
    fine: Path
    tokenizers: Path

    def files(self, **changes: Any) -> dict[str, Any]:
        """The files, some replaced."""
        return {"semantic": self.semantic, "coarse": self.coarse, "fine": self.fine, **changes}


def save_stage(stage: Stage, path: Path, tokenizers: Path, pair: Tokenizers, **metadata: Any) -> Path:
    """Write what Lightning would write of a trained stage."""
    stage.tokenizers, stage.tokenizers_folder = pair.identities(), str(tokenizers)
    stage.duration_s = WINDOW_S
    checkpoint: dict[str, Any] = {"state_dict": stage.state_dict(), "epoch": 3, "global_step": 100}
    stage.on_save_checkpoint(checkpoint)
    checkpoint["hafm_lightning"] |= metadata
    torch.save(checkpoint, path)
    return path


def make_band(folder: Path, tokenizers: Path, pair: Tokenizers, variant: str, **settings: Any) -> TinyBand:
    """Random stages of a variant, as checkpoint files."""
    torch.manual_seed(5)
    folder.mkdir(parents=True, exist_ok=True)
    first, last = VARIANTS[variant]
    stages = {
        "semantic": SemanticStage(backbone=TINY, **{**first, "pattern": "flattened"}, look_ahead_s=LOOK_AHEAD_S),
        "coarse": CoarseStage(backbone=TINY, **first, look_ahead_s=LOOK_AHEAD_S, **settings),
        "fine": FineStage(backbone=TINY, **last, look_ahead_s=LOOK_AHEAD_S),
    }
    for stage in stages.values():
        for parameter in stage.parameters():
            parameter.data.mul_(3)  # louder random weights: logits differ enough for every token to matter
    paths = {name: save_stage(stage, folder / f"{name}.ckpt", tokenizers, pair) for name, stage in stages.items()}
    return TinyBand(**paths, tokenizers=tokenizers)
