"""Wrong content in sound containers: entries of checkpoints, arrays of safetensors and npz files, columns of votes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damage import Damage, Keys, at, dotted, paths_of, place, without

ENTRIES: dict[str, Any] = {
    "nothing": None,
    "minus one": -1,
    "a huge number": 10**30,
    "a text": "something else",
    "a path upwards": "../../escaped",
    "an empty dict": {},
    "an empty list": [],
    "NaN": float("nan"),
    "a tensor": torch.zeros(3),
}
UNREAD = frozenset({"pytorch-lightning_version", "hparams_name", "hyper_parameters"})
"""Entries of Lightning that nothing here is computed from."""

Change = Callable[[torch.Tensor], torch.Tensor]
TENSORS: dict[str, Change] = {
    "int8": lambda value: (value * 10).to(torch.int8),
    "float64": lambda value: value.double() + 1e-3,
    "bfloat16": lambda value: value.bfloat16(),
    "complex64": lambda value: value.to(torch.complex64),
    "bool": lambda value: value > 0,
    "another shape": lambda value: value.reshape(-1)[:-1],
    "one dimension more": lambda value: value[None] + 1e-3,
    "no elements": lambda value: value.reshape(-1)[:0],
    "one NaN": lambda value: _with(value, float("nan")),
    "one infinity": lambda value: _with(value, float("inf")),
    "one large value": lambda value: _with(value, 1e30),
    "other values": lambda value: value.flip(0) + 1e-3,
}
ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "int8": lambda value: value.astype(np.int8),
    "float16": lambda value: value.astype(np.float16),
    "texts": lambda value: value.astype("U8"),
    "complex": lambda value: value.astype(np.complex128) + 1j,
    "another shape": lambda value: value.reshape(-1)[:-1],
    "transposed, one row doubled": lambda value: np.concatenate([value[:1], value]) if value.ndim else value + 1,
    "NaN": lambda value: np.full_like(value, np.nan) if value.dtype.kind == "f" else value,
    "negative": lambda value: -np.abs(value) - 1 if value.dtype.kind in "fiu" else value,
    "asymmetric": lambda value: np.triu(value) * 3 if value.ndim == 2 else value,
    "huge": lambda value: value * 10**9 if value.dtype.kind in "fiu" else value,
    "empty": lambda value: value.reshape(-1)[:0],
}


def _with(value: torch.Tensor, number: float) -> torch.Tensor:
    if not value.is_floating_point() or not value.numel():
        return value + 1
    value = value.clone()
    value.view(-1)[0] = number
    return value


def checkpoint_entries(path: Path) -> Iterator[Damage]:
    """Every entry of a checkpoint of another kind or left out, every third tensor of another kind or value."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    tensors = 0
    for keys in paths_of(content, most_items=1):
        value = at(content, keys)
        words = (str(keys[-1]),)
        if keys[0] in UNREAD:
            continue
        if isinstance(value, torch.Tensor):
            tensors += 1
            if tensors % 3 == 1:
                for title, change in TENSORS.items():
                    yield Damage(f"{dotted(keys)} is {title}", partial(_tensor, keys, change), words)
        else:
            for title, other in ENTRIES.items():
                yield Damage(f"{dotted(keys)} is {title}", partial(_entry, keys, other), words)
        yield Damage(f"{dotted(keys)} left out", partial(_left_out, keys), words)
    yield Damage("no dict but a list", lambda file: torch.save([1, 2], file), refused=True)
    yield Damage("a tensor alone", lambda file: torch.save(torch.zeros(2), file), refused=True)


def _changed(path: Path, change: Callable[[Any], None]) -> None:
    content = torch.load(path, map_location="cpu", weights_only=True)
    change(content)
    torch.save(content, path)


def _entry(keys: Keys, value: Any, path: Path) -> None:
    _changed(path, lambda content: place(content, keys, value))


def _left_out(keys: Keys, path: Path) -> None:
    _changed(path, lambda content: without(content, keys))


def _tensor(keys: Keys, change: Change, path: Path) -> None:
    def apply(content: Any) -> None:
        value = content
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = change(value[keys[-1]])

    _changed(path, apply)


def safetensors_arrays(path: Path) -> Iterator[Damage]:
    """Every array of a safetensors file of another kind, shape or value, left out, under another name; and headers."""
    from safetensors.torch import load_file

    for name in load_file(path):
        for title, change in TENSORS.items():
            if title != "complex64":
                yield Damage(f"{name} is {title}", partial(_safetensor, name, change), (name,))
        yield Damage(f"{name} left out", partial(_safetensor, name, None), (name,))
    for title, header in {
        "without end": b"{" * 64,
        "of deep nesting": b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        "with offsets beyond the end": b'{"a":{"dtype":"F32","shape":[9999],"data_offsets":[0,39996]}}',
        "with a negative shape": b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        "with a huge shape": b'{"a":{"dtype":"F32","shape":[1000000000000000],"data_offsets":[0,4]}}',
        "of a list": b"[1,2]",
    }.items():
        yield Damage(f"a header {title}", partial(_header, header), refused=True)
    yield Damage("a header of 2^60 bytes", lambda file: file.write_bytes((1 << 60).to_bytes(8, "little")), refused=True)


def _safetensor(name: str, change: Change | None, path: Path) -> None:
    from safetensors.torch import load_file, save_file

    arrays = {key: value.clone() for key, value in load_file(path).items()}
    value = arrays.pop(name)
    if change is not None:
        arrays[name] = change(value).contiguous()
    path.unlink()
    save_file(arrays, path)


def _header(header: bytes, path: Path) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))


def npz_arrays(path: Path) -> Iterator[Damage]:
    """Every array of an npz file of another kind, shape or value, or left out."""
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
    for name in names:
        for title, change in ARRAYS.items():
            yield Damage(f"{name} is {title}", partial(_npz, name, change), (name,))
        yield Damage(f"{name} left out", partial(_npz, name, None), (name,), refused=True)


def _npz(name: str, change: Callable[[np.ndarray], Any] | None, path: Path) -> None:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    value = arrays.pop(name)
    if change is not None:
        try:
            arrays[name] = change(value)
        except (TypeError, ValueError):  # this array cannot be of that kind
            arrays[name] = np.zeros(1)
    np.savez(path, **arrays)


def vote_columns(path: Path) -> Iterator[Damage]:
    """Every column of the votes with a wrong value in one row; tables and versions of another program."""
    values: dict[str, Any] = {
        "NULL": None,
        "a text": "something else",
        "bytes": b"\xff\x00",
        "minus one": -1,
        "infinity": float("inf"),
        "deep nesting": "[" * 100_000,
        "a long text": "x" * 100_000,
    }
    with sqlite3.connect(path) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(votes)")]
    connection.close()
    for column in columns:
        for title, value in values.items():
            damage = partial(_sql, f"UPDATE votes SET {column} = ? WHERE number = 1", (value,))
            yield Damage(f"{column} is {title}", damage, (column, "vote"))
    for statement in ("DROP TABLE votes", "DELETE FROM study", "PRAGMA user_version = 99", "PRAGMA application_id = 1"):
        yield Damage(statement, partial(_sql, statement, ()), refused=True)


def _sql(statement: str, values: tuple[Any, ...], path: Path) -> None:
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(statement, values)
        connection.commit()
    except sqlite3.IntegrityError:
        pass  # the database itself refuses this value: the votes stay as they were
    finally:
        connection.close()
