"""The settings of ``prepare`` as one frozen dataclass; each group stands beside the code that it controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hafm_lightning.configuration.settings import as_plain, read_settings
from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.engine import EngineSettings
from hafm_lightning.preparation.plan import SplitSettings
from hafm_lightning.preparation.quality.filters import RULES_VERSION, FilterSettings
from hafm_lightning.preparation.quality.fingerprint import DuplicateSettings
from hafm_lightning.preparation.shard_work import SoundSettings
from hafm_lightning.preparation.tokenizer_training import TokenizerSettings
from hafm_lightning.songs import AnyCorpus
from hafm_lightning.songs.clips import ClipSettings
from hafm_lightning.songs.separation import SeparationSettings

_NEUTRAL = ("root", "engine", "report", "device")  # do not change the content of shards


@dataclass(frozen=True)
class ReportSettings:
    """The run report.

    Attributes:
        examples: Clips to listen to in the report, original beside decoded tokens.
    """

    examples: int = 10

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ValueError(f"examples is {self.examples}, must be 0 or more")


@dataclass(frozen=True)
class PreparationConfig:
    """All settings of ``prepare``.

    Attributes:
        root: Output folder.
        corpora: Sources of songs; the key ``kind`` of each names its class.
        clips: How songs are cut.
        split: How songs are divided between train and validation.
        filters: Which clips are dropped.
        duplicates: Search for recordings that occur twice.
        separation: How mixtures are separated.
        tokenizers: The tokenizers.
        noise_sigma: Standard deviation of the noise on vocals before the semantic tokenizer; full scale is 1.
        seed: Seed of that noise.
        vocal_acoustic: Also store the acoustic codes of vocals (section 3.2 of the paper); twice the space.
        styles: Also store each clip's genre as a style.
        clips_per_shard: Approximate number of clips in a shard, before the filter. A stopped run repeats its
            unfinished shards.
        batch_size: Clips that a tokenizer processes together.
        device: Where tokenizers run: ``cpu``, ``cuda`` or ``auto``; with Ray, ``auto`` is the GPU where
            ``engine.gpus_per_worker`` asks for one. On another kind of device a few tokens differ.
        engine: Processes or cluster that do the work.
        report: Content of the report.
    """

    root: str
    corpora: tuple[AnyCorpus, ...]
    clips: ClipSettings = field(default_factory=ClipSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    filters: FilterSettings = field(default_factory=FilterSettings)
    duplicates: DuplicateSettings = field(default_factory=DuplicateSettings)
    separation: SeparationSettings = field(default_factory=SeparationSettings)
    tokenizers: TokenizerSettings = field(default_factory=TokenizerSettings)
    noise_sigma: float = 0.01
    seed: int = 0
    vocal_acoustic: bool = False
    styles: bool = False
    clips_per_shard: int = 512
    batch_size: int = 8
    device: str = "auto"
    engine: EngineSettings = field(default_factory=EngineSettings)
    report: ReportSettings = field(default_factory=ReportSettings)

    def __post_init__(self) -> None:
        if not self.corpora:
            raise ValueError("corpora is empty; name at least one, with its kind and path")
        if self.clips_per_shard < 1 or self.batch_size < 1 or not self.noise_sigma >= 0:
            raise ValueError("clips_per_shard and batch_size start at 1, noise_sigma at 0")
        if self.device not in ("cpu", "cuda", "auto"):
            raise ValueError(f"device is {self.device!r}, choose cpu, cuda or auto")

    @property
    def sound(self) -> SoundSettings:
        """The settings that change the waveforms before the tokenizers."""
        return SoundSettings(self.clips, self.filters, self.separation, self.noise_sigma, self.seed)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the content of shards, as JSON values."""
        values = {item.name: as_plain(getattr(self, item.name)) for item in fields(self) if item.name not in _NEUTRAL}
        values["filters"]["rules"] = RULES_VERSION
        return values

    def resolved_device(self) -> str:
        """``cpu`` or ``cuda``, for the models of this process; RequestError if there is no GPU to use."""
        import torch

        available = torch.cuda.is_available()
        if self.device == "cuda" and not available and self.engine.kind != "ray":
            raise RequestError("device is cuda, but torch sees no GPU here\nset device: cpu (or auto)")
        return "cuda" if available and self.device != "cpu" else "cpu"

    def worker_device(self) -> str:
        """``cpu`` or ``cuda``, for the models of the workers; RequestError if they have no GPU to use."""
        if self.engine.kind != "ray":
            return self.resolved_device()
        if self.device == "cuda" and not self.engine.gpus_per_worker:
            raise RequestError(
                "device is cuda, but engine.gpus_per_worker is 0, so Ray shows its workers no GPU\n"
                "set engine.gpus_per_worker: 1 (or a share), or device: cpu"
            )
        # An actor has the share of a GPU that it asked for, on any machine, and no GPU if it asked for none.
        return "cuda" if self.engine.gpus_per_worker and self.device != "cpu" else "cpu"


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> PreparationConfig:
    """Settings from a YAML file and ``key=value`` overrides; RequestError with the wrong key and its place."""
    return read_settings(PreparationConfig, ["--config", str(path), *overrides])
