"""The commands that are tried, what each reads, and a digest of what it leaves, to be compared bit for bit."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from children import Call
from workshop import CHECKPOINTS

TIMED = ("seconds", "speed/", "system/")
"""Columns of metrics.csv that no two runs have in common."""


@dataclass(frozen=True)
class Work:
    """A command.

    Attributes:
        name: In the tables.
        command: Its arguments, or a function of the package that reads one file.
        reads: What it needs of the workshop.
        leaves: Folders and files that it makes; they are taken away before it is done anew.
        result: Digest of what it left in the working folder.
    """

    name: str
    command: tuple[str, ...] | Call
    reads: tuple[str, ...]
    leaves: tuple[str, ...]
    result: Callable[[Path], str]


def files_digest(pattern: str, folder: Path) -> str:
    """Names and bytes of files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(pattern)):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _flat(value: Any, name: str = "") -> Iterator[bytes]:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _flat(value[key], f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}[{index}]")
    elif isinstance(value, torch.Tensor):
        yield f"{name} {value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    else:
        yield f"{name}={value!r}".encode()


def run_digest(logs: str, folder: Path, run: str = "run-*") -> str:
    """Weights, optimizer and loops of the last checkpoint, and the logged values, of the newest run."""
    runs = sorted((folder / logs).glob(run))
    if not runs:
        return "no run"
    checkpoints = sorted((runs[-1] / "checkpoints").glob("step-*.ckpt"))
    digest = hashlib.sha256()
    if checkpoints:
        content = torch.load(checkpoints[-1], weights_only=True)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            for part in _flat(content.get(key), key):
                digest.update(part)
    with (runs[-1] / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            kept = {key: value for key, value in row.items() if value and not key.startswith(TIMED)}
            digest.update(json.dumps(kept, sort_keys=True).encode())
    return digest.hexdigest()


def card_digest(folder: Path) -> str:
    """Rows, columns and numbers of the card."""
    path = folder / "card" / "card.json"
    if not path.is_file():
        return "no card"
    tables = json.loads(path.read_text())["tables"]
    rows = [[table["name"], row["system"], row["values"]] for table in tables for row in table["rows"]]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def study_digest(folder: Path) -> str:
    """That study and key load, and the levels of all sounds. Ids, order and dither follow the folder's path."""
    import numpy as np
    import soundfile

    from hafm_lightning.listening.study import Key, Study

    study = Study.load(folder / "built")
    key = Key.load(folder / "built" / "key.json", study)
    sounds = [soundfile.read(path)[0] for path in (folder / "built").rglob("*.wav")]
    levels = sorted((len(sound), round(float(np.sqrt(np.mean(sound**2))), 4)) for sound in sounds)
    kinds = sorted(assignment.kind for assignment in key.assignments.values())
    return f"{len(study.trials)} trials, {kinds}, {levels}"


def report_digest(folder: Path) -> str:
    """All numbers of the report."""
    path = folder / "report" / "report.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no report"


def printed(folder: Path) -> str:
    """What a function wrote."""
    path = folder / "result.txt"
    return path.read_text() if path.is_file() else "no result"


def _centroids() -> int:
    from hafm_lightning.tokenizers.kmeans import import_centroids

    values = import_centroids("centroids.npy")
    Path("result.txt").write_text(hashlib.sha256(values.tobytes()).hexdigest())
    return 0


def _statistics() -> int:
    from hafm_lightning.evaluation.distances.frechet import GaussianStatistics

    found = GaussianStatistics.load("statistics.npz")
    content = found.mean.tobytes() + found.covariance.tobytes() + str(found.rows).encode()
    Path("result.txt").write_text(hashlib.sha256(content).hexdigest())
    return 0


def _card() -> int:
    from hafm_lightning.evaluation.card.card import load_card, markdown

    Path("result.txt").write_text(markdown(load_card(Path("card/card.json"))))
    return 0


def _weights() -> int:
    from hafm_lightning.evaluation.embeddings.weights import read_weights

    Path("result.txt").write_text(" ".join(sorted(read_weights(Path("weights.pt")))))
    return 0


MUSIC = ("take", "out")
WORKS = {
    work.name: work
    for work in (
        Work("fit", ("fit", "--config", "fit.yaml"), ("fit.yaml", "shards"), ("logs",), partial(run_digest, "logs")),
        Work(
            "resume",
            ("fit", "--config", "fit.yaml", "--trainer.default_root_dir", "stopped", "--ckpt_path", "auto"),
            ("fit.yaml", "shards", "stopped"),
            (),
            partial(run_digest, "stopped"),
        ),
        Work(
            "generate",
            ("generate", "--vocal", "vocals/one.wav", "--model", "model", "--out", "out", "--seed", "3"),
            ("vocals", "model"),
            ("out",),
            partial(files_digest, "out/*.wav"),
        ),
        Work(
            "generate from checkpoints",
            ("generate", "--vocal", "vocals/one.wav", *CHECKPOINTS, "--tokenizers", "tokenizers", "--out", "out"),
            ("vocals", "stages", "tokenizers"),
            ("out",),
            partial(files_digest, "out/*.wav"),
        ),
        Work(
            "repeat a take",
            ("generate", "--take", "take/take.json", "--model", "model", "--out", "out"),
            ("vocals", "model", "take"),
            ("out",),
            partial(files_digest, "out/*.wav"),
        ),
        Work(
            "export",
            ("export", *CHECKPOINTS, "--tokenizers", "tokenizers", "--out", "exported"),
            ("stages", "tokenizers"),
            ("exported",),
            partial(files_digest, "exported/*.safetensors"),
        ),
        Work(
            "prepare",
            ("prepare", "--config", "prepare.yaml"),
            ("corpus", "tokenizers", "prepare.yaml"),
            ("prepared",),
            partial(files_digest, "prepared/*/shard-*"),
        ),
        Work(
            "prepare again",
            ("prepare", "--config", "prepare.yaml"),
            ("corpus", "tokenizers", "prepare.yaml", "prepared"),
            (),
            partial(files_digest, "prepared/*/shard-*"),
        ),
        Work(
            "evaluate",
            ("evaluate", "--config", "evaluate.yaml"),
            ("corpus", "tokenizers", "evaluate.yaml", "statistics.npz"),
            ("card",),
            card_digest,
        ),
        Work(
            "evaluate again",
            ("evaluate", "--config", "evaluate.yaml"),
            ("corpus", "tokenizers", "evaluate.yaml", "statistics.npz", "card"),
            (),
            card_digest,
        ),
        Work(
            "listen build",
            ("listen", "build", "--config", "listening.yaml"),
            ("corpus", "tokenizers", "listening.yaml"),
            ("built", "card"),
            study_digest,
        ),
        Work(
            "listen report",
            ("listen", "report", "study", "--output", "report"),
            ("study",),
            ("report",),
            report_digest,
        ),
        Work("read centroids", _centroids, ("centroids.npy",), ("result.txt",), printed),
        Work("read statistics", _statistics, ("statistics.npz",), ("result.txt",), printed),
        Work("read card", _card, ("card",), ("result.txt",), printed),
        Work("read weights", _weights, (), ("result.txt",), printed),
    )
}
