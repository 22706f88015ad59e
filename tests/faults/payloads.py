"""Files that run code when a careless reader loads them. Nothing may run: the code would leave a canary."""

from __future__ import annotations

import codecs
import functools
import io
import os
import pathlib
import pickle
import runpy
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Bench
from oracle import CANARY
from tries import Try
from works import WORKS


class Runs:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(canary: str) -> dict[str, Any]:
    """Name -> object whose loading would make the canary."""
    write = f"open({canary!r}, 'w').close()"
    return {
        "os.system": Runs(os.system, f"touch {canary}"),
        "subprocess": Runs(subprocess.call, ["touch", canary]),
        "eval": Runs(eval, write),
        "exec": Runs(exec, write),
        "open": Runs(open, canary, "w"),
        "Path.touch": Runs(pathlib.Path.touch, pathlib.Path(canary)),
        "os.mkdir": Runs(os.mkdir, canary),
        "a partial function": Runs(functools.partial(os.system, f"touch {canary}")),
        "runpy": Runs(runpy.run_path, canary + ".py"),
        "codecs.open": Runs(codecs.open, canary, "w"),
        "torch.load of another file": Runs(torch.load, canary + ".pt"),
        "a call inside a list": Runs(list, [Runs(os.system, f"touch {canary}")]),
        "a call inside a dict": {"state_dict": {"weight": Runs(os.system, f"touch {canary}")}},
    }


def _zip_checkpoint(content: Any, path: Path) -> None:
    torch.save(content, path)


def _old_checkpoint(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _in_hyper_parameters(content: Any, path: Path) -> None:
    whole = torch.load(path, weights_only=True)
    whole["hyper_parameters"] = {"optimizer": content}
    torch.save(whole, path)


def _in_loops(content: Any, path: Path) -> None:
    whole = torch.load(path, weights_only=True)
    whole["loops"] = {"fit_loop": content}
    torch.save(whole, path)


def _bare_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def _tar(content: Any, path: Path) -> None:
    inner = pickle.dumps(content)
    with tarfile.open(path, "w") as archive:
        for name in ("pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(inner)
            archive.addfile(entry, io.BytesIO(inner))


def _zip_with_code(content: Any, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def _object_array(content: Any, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([content, None], dtype=object), allow_pickle=True)


def _in_npz(name: str, content: Any, path: Path) -> None:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    arrays[name] = np.array([content], dtype=object)
    np.savez(path, **arrays)


Write = Callable[[Any, Path], None]
PLACES: tuple[tuple[str, str, str, Write], ...] = (
    ("a checkpoint", "stages/semantic.ckpt", "generate from checkpoints", _zip_checkpoint),
    ("a checkpoint of the old format", "stages/coarse.ckpt", "export", _old_checkpoint),
    ("a checkpoint's hyper-parameters", "stages/coarse.ckpt", "export", _in_hyper_parameters),
    ("a checkpoint's loops", "stopped/run-000/checkpoints/step-00000002.ckpt", "resume", _in_loops),
    ("a zip under a checkpoint's name", "stages/fine.ckpt", "export", _zip_with_code),
    ("a tar under a checkpoint's name", "stages/fine.ckpt", "export", _tar),
    ("safetensors", "model/coarse.safetensors", "generate", _bare_pickle),
    ("a shard", "shards/train/shard-00000.safetensors", "fit", _bare_pickle),
    ("centroids.npy", "centroids.npy", "read centroids", _object_array),
    ("a pickle called centroids.npy", "centroids.npy", "read centroids", _bare_pickle),
    ("the mean of statistics.npz", "statistics.npz", "read statistics", partial(_in_npz, "mean")),
    ("the provenance of statistics.npz", "statistics.npz", "read statistics", partial(_in_npz, "provenance")),
    ("weights of an embedding", "weights.pt", "read weights", _zip_checkpoint),
    ("old weights of an embedding", "weights.pt", "read weights", _old_checkpoint),
)


def do_payload(work_name: str, file: str, write: Write, payload: str, bench: Bench) -> list[str]:
    """Write hostile content, and let the command read it."""
    work = WORKS[work_name]
    bench.lay_out(work.reads)
    canary = str(bench.base / CANARY)
    Path(canary + ".py").write_text(f"open({canary!r}, 'w').close()\n")
    write(payloads(canary)[payload], bench.inside / file)
    if Path(canary).exists():
        return ["the try itself ran the code"]
    ending = bench.run(work)
    Path(canary + ".py").unlink()
    found = bench.judge(work, ending, may_differ=True)
    if ending.code == 0 and "resume" not in work.name:
        found.append("accepted")
    return found


def payload_tries() -> Iterator[Try]:
    """Every payload in every place."""
    for place, file, work, write in PLACES:
        for name in payloads("canary"):
            do = partial(do_payload, work, file, write, name)
            yield Try("hostile pickles", f"{name} in {place}", (work,) if work != "read weights" else (), do)
