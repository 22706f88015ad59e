"""What a run left in its folder: the scores of its best checkpoint, its size, its time and its settings.

Everything is read from ``metrics.csv``, ``config.yaml`` and a checkpoint. What a run has not logged, or a folder no
longer holds, is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hafm_lightning.cli.fit.continuation import flat_settings
from hafm_lightning.cli.runs.curves import Series, metrics_file, read_series
from hafm_lightning.errors import RequestError

CONFIG_FILE = "config.yaml"
SELECTED_BY = "val/loss"
SCORES = {
    "val/loss": "lower",
    "val/accuracy": "higher",
    "val/accuracy_top10": "higher",
    "val/conditioning_gain": "higher",
    "val/other_song_gap": "higher",
    "val/other_vocal_gap": "higher",
    "test/loss": "lower",
    "test/accuracy": "higher",
}
"""Scores of a stage -> which of two values is better; scores of the music follow them."""
MUSIC = "music/"
NO_SCORE = ("clips", "failed", "seconds")
"""Logged about the music, but no score."""
LOWER_MUSIC = ("fad", "loss", "kd", "semantic_centroid_frechet")
"""Beginnings of the music's scores of which the lower one is better."""
OWN = ("trainer.default_root_dir", "ckpt_path", "allow_changes")
"""Settings that say where a run is, and not what it does."""


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        name: Last parts of its path, which no other run of the comparison has.
        folder: Its folder.
        series: Metric -> logged values.
        settings: Key -> value of its configuration; empty where there is no file.
        parameters: Weights of its network.
    """

    name: str
    folder: Path
    series: Mapping[str, Series]
    settings: Mapping[str, Any]
    parameters: int | None

    @property
    def best_step(self) -> int | None:
        """Optimizer steps done at the best ``val/loss``."""
        losses = self.series.get(SELECTED_BY)
        if losses is None or not losses.values:
            return None
        return losses.steps[losses.values.index(min(losses.values))]

    @property
    def hours(self) -> float | None:
        """Hours of training."""
        seconds = self.series.get("seconds")
        return max(seconds.values) / 3600 if seconds is not None and seconds.values else None

    @property
    def steps(self) -> int | None:
        """Optimizer steps done when the last row was logged."""
        return max((max(one.steps) for one in self.series.values() if one.steps), default=None)

    def score(self, name: str) -> float | None:
        """A score at the best ``val/loss``: the last value logged up to that step, else the last of all."""
        series = self.series.get(name)
        if series is None or not series.values:
            return None
        best = self.best_step
        until = [value for step, value in zip(series.steps, series.values, strict=True) if best is None or step <= best]
        return (until or series.values)[-1]


def music_scores(records: Sequence[Record]) -> dict[str, str]:
    """Scores of the music that any run has logged -> which of two values is better."""
    names = {name for record in records for name in record.series if name.startswith(MUSIC)}
    scores = {}
    for name in sorted(names):
        short = name.removeprefix(MUSIC)
        if not short.startswith(NO_SCORE) and "_paper" not in short:
            scores[name] = "lower" if short.startswith(LOWER_MUSIC) else "higher"
    return scores


def read_records(runs: Sequence[Path]) -> list[Record]:
    """The runs, each a run folder, the folder above it (its newest run) or a ``metrics.csv``; RequestError if none."""
    files = [metrics_file(run) for run in runs]
    folders = [file.resolve().parent for file in files]
    twice = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if twice:
        raise RequestError(f"{twice[0]} is named twice\nname each run once")
    return [
        Record(name, folder, read_series(file), settings_of(folder), parameters_of(folder))
        for name, file, folder in zip(names_of(folders), files, folders, strict=True)
    ]


def names_of(folders: Sequence[Path]) -> list[str]:
    """Names that tell the runs apart: the last two parts of their paths, or more where two runs share these."""
    names: list[str] = []
    for depth in range(2, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a run; none where it left no configuration. RequestError if the file is damaged."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{path}: cannot be read ({reason})\nrepair it, or move it away") from error
    return flat_settings(content) if isinstance(content, Mapping) else {}


def parameters_of(folder: Path) -> int | None:
    """Weights in the run's newest checkpoint, each counted once; None where there is none that can be read."""
    saved = sorted((folder / "checkpoints").glob("*.ckpt"))
    if not saved:
        return None
    from hafm_lightning.checkpoint_format import read_checkpoint

    try:
        state = read_checkpoint(saved[0], mapped=True).get("state_dict")
    except RequestError:
        return None
    if not isinstance(state, Mapping):
        return None
    weights = {value.data_ptr(): value.numel() for value in state.values() if value.is_floating_point()}
    return int(sum(weights.values()))


def differing_settings(records: Sequence[Record]) -> dict[str, list[Any]]:
    """Key -> its value in each run, for keys that differ; a run without the key, or without settings, has None."""
    keys = {key for record in records for key in record.settings if key not in OWN}
    found = {}
    for key in sorted(keys):
        values = [record.settings.get(key) for record in records]
        told = [repr(record.settings.get(key)) for record in records if record.settings]
        if len(set(told)) > 1:
            found[key] = values
    return found
