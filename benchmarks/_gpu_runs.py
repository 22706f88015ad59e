"""Two optimizer steps of every file under experiments/, through the real command, in one process."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
import yaml

from hafm_lightning.cli import main as run_command
from hafm_lightning.shards import STORED_STREAMS, Manifest, row_shape, stream_description, write_shard

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
ORDER = ("aligned", "quickstart", "live", ".", "variants")
"""Folders under experiments/, the most important ones first."""
TINY = {"layers": 1, "width": 16, "heads": 2, "feedforward": 24}
"""A backbone that shows whether something runs."""
COMPILER_WORDS = ("_dynamo", "_inductor", "lru_cache", "torch.compile", "recompile")
"""What a warning of torch.compile, or the file that it comes from, contains."""


def write_learnable_shards(root: Path, clips: int, duration_s: float) -> Path:
    """Shards with every stream, for all splits: each clip's tokens walk through few ids from a random one on."""
    random = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        begins = random.integers(0, 48, clips)
        arrays = {}
        for number, (name, stream) in enumerate(STORED_STREAMS.items()):
            shape = row_shape(stream, duration_s)  # [K, T], [T] or []
            walk = np.full(shape, 7 * number)
            for index, pace in zip(reversed(np.indices(shape)), (3, 5), strict=False):  # time, then codebook
                walk += pace * index
            ids = begins.reshape(-1, *(1 for _ in shape)) + walk
            arrays[name] = (ids % min(48, stream.vocabulary)).astype(np.uint16)
        ids_of_clips = [f"{split} {row}@0.00" for row in range(clips)]
        info = write_shard(root / split / "shard-00000.safetensors", arrays, ids_of_clips, duration_s)
        Manifest(
            split=split,
            duration_s=duration_s,
            streams={name: stream_description(stream) for name, stream in STORED_STREAMS.items()},
            tokenizers={
                "semantic": {"kind": "offline-semantic", "sha256": "a1"},
                "acoustic": {"kind": "offline-acoustic", "sha256": "b2"},
            },
            resampler="soxr-hq",
            preparation={},
            styles=[f"style {number}" for number in range(STORED_STREAMS["style"].vocabulary)],
            shards=[info],
        ).save(root / split)
    return root


def training_files() -> Iterator[Path]:
    """The configurations that train, in the order of :data:`ORDER`, and those of a folder by name."""
    files = [path for path in EXPERIMENTS.rglob("*.yaml") if "trainer" in yaml.safe_load(path.read_text())]
    yield from sorted(files, key=lambda path: (ORDER.index(str(path.parent.relative_to(EXPERIMENTS))), path.name))


def try_experiments(
    shards: Path, device: str, tiny: bool, seconds: float, store: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Two steps of each file, logged but neither validated nor saved; what no time is left for is not run."""
    began, found = time.perf_counter(), dict[str, Any]()
    for path in training_files():
        name = str(path.relative_to(EXPERIMENTS))
        if time.perf_counter() - began > seconds:
            found[name] = "not run: no time left"
            continue
        config = shards.parent / name.replace("/", "-")
        config.write_text(without_songs(path))
        settings = {
            "data.root": shards, "trainer.max_steps": 2, "trainer.limit_val_batches": 0,
            "trainer.num_sanity_val_steps": 0, "trainer.log_every_n_steps": 1, "trainer.enable_progress_bar": "false",
            "trainer.enable_checkpointing": "false", "trainer.default_root_dir": shards.parent / "logs",
            "trainer.accelerator": "gpu" if device == "cuda" else "cpu", "trainer.devices": 1,
        }  # fmt: skip
        if tiny:
            settings |= {f"model.backbone.{key}": value for key, value in TINY.items()}
            settings |= {"data.global_batch_size": 2, "data.crop_s": "null", "trainer.precision": "32-true"}
        started = time.perf_counter()
        found[name] = first_steps(["fit", "--config", str(config), *as_options(settings)])
        found[name]["seconds"] = round(time.perf_counter() - started, 1)
        if device == "cuda":
            found[name]["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        torch._dynamo.reset()  # a real run is a process of its own: it begins with nothing compiled
        store(found)
    return found


def first_steps(arguments: list[str]) -> dict[str, Any]:
    """The exit code of a command in this process, the last lines of one that fails, and the compiler's warnings."""
    said, messages = io.StringIO(), CompilerMessages()
    with messages.collected(), contextlib.redirect_stderr(said):
        try:
            code: Any = run_command(arguments)
        except (Exception, SystemExit):  # noqa: BLE001 - what fails is the result
            code = traceback.format_exc().strip().splitlines()[-1][:300]
            traceback.print_exc()
    print(said.getvalue(), file=sys.stderr, end="", flush=True)
    row: dict[str, Any] = {"exit": code}
    if code != 0:
        row["said"] = said.getvalue().strip().splitlines()[-3:]
    return row | ({"compiler": messages.lines} if messages.lines else {})


class CompilerMessages(logging.Handler):
    """Warnings of torch.compile, from the log and from ``warnings``, each once: recompile limits, graph breaks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Collect for the block; everything is printed as ever."""
        loggers = [logging.getLogger(name) for name in ("torch", "torch._dynamo", "torch._inductor")]
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
            shown(message, category, filename, *rest)
            if any(word in f"{message} {filename}" for word in COMPILER_WORDS):
                self._add(f"{category.__name__}: {message}")

        for logger in loggers:
            logger.addHandler(self)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = show
                yield
        finally:
            for logger in loggers:
                logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """A message of the log."""
        self._add(f"{record.name}: {record.getMessage()}")

    def _add(self, text: str) -> None:
        line = " ".join(text.split())[:300]
        if line not in self.lines:
            self.lines.append(line)


def without_songs(path: Path) -> str:
    """A configuration with the CSV log alone and without music: there are no songs beside random tokens."""
    settings = yaml.safe_load(path.read_text())
    settings["trainer"]["logger"] = True  # W&B is an extra, which a machine for measurements need not have
    for callback in settings["trainer"].get("callbacks", []):
        if callback["class_path"].endswith("MusicEvaluation"):
            callback["init_args"]["root"] = None
    return yaml.safe_dump(settings)


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options of a command."""
    return [text for key, value in settings.items() for text in (f"--{key}", str(value))]
