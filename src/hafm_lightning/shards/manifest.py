"""The manifest of a split: the contents and the origin of its shards; names and shapes of the stored streams."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hafm_lightning.errors import RequestError
from hafm_lightning.files import write_json
from hafm_lightning.tokens import (
    ACOUSTIC_CODEBOOKS,
    ACOUSTIC_RATE_HZ,
    ACOUSTIC_VOCABULARY,
    INSTRUMENTAL_CODES,
    INSTRUMENTAL_SEMANTIC,
    STYLE,
    VOCAL_ACOUSTIC,
    VOCAL_SEMANTIC,
    TokenStream,
)

Ids = NDArray[np.uint16]

FORMAT_VERSION = 1  # readers refuse any other
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "validation", "test")

STORED_STREAMS: Mapping[str, TokenStream] = {
    stream.name: stream
    for stream in (
        VOCAL_SEMANTIC,
        INSTRUMENTAL_SEMANTIC,
        TokenStream(INSTRUMENTAL_CODES, ACOUSTIC_RATE_HZ, ACOUSTIC_CODEBOOKS, ACOUSTIC_VOCABULARY),
        VOCAL_ACOUSTIC,
        STYLE,
    )
}
"""Arrays that a shard may hold; ``instrumental_codes`` has the coarse and the fine codebooks."""
REQUIRED_STREAMS = (VOCAL_SEMANTIC.name, INSTRUMENTAL_SEMANTIC.name, INSTRUMENTAL_CODES)


def clip_id(song: str, start_s: float) -> str:
    """Name of a clip: ``song@start``, the start in seconds with two decimals."""
    return f"{song}@{start_s:.2f}"


def song_of(clip: str) -> str:
    """The song part of a clip id."""
    return clip.rpartition("@")[0]


def songs_of(clip_ids: Iterable[str]) -> list[str]:
    """The songs of the clips, each once, in order."""
    return list(dict.fromkeys(song_of(clip) for clip in clip_ids))


def row_shape(stream: TokenStream, duration_s: float) -> tuple[int, ...]:
    """Shape of a clip's row in a shard: ``[T]`` for one codebook, ``[K, T]`` for more, ``[]`` for a style."""
    if not stream.rate_hz:
        return ()
    frames = stream.frames(duration_s)
    return (frames,) if stream.codebooks == 1 else (stream.codebooks, frames)


def stream_description(stream: TokenStream) -> dict[str, int]:
    """A stream in a manifest."""
    return {"rate_hz": stream.rate_hz, "codebooks": stream.codebooks, "vocabulary": stream.vocabulary}


def rows_problem(name: str, rows: np.ndarray[Any, Any], clips: int, duration_s: float, check_ids: bool = True) -> str:
    """The first problem of a stored array, or an empty string; ``check_ids`` reads every id."""
    stream = STORED_STREAMS.get(name)
    if stream is None:
        return f"unknown stream {name!r}; known: {', '.join(STORED_STREAMS)}"
    expected = (clips, *row_shape(stream, duration_s))
    if rows.dtype != np.uint16 or rows.shape != expected:
        return f"stream {name!r} is {rows.dtype} {list(rows.shape)}, expected uint16 {list(expected)}"
    if check_ids and rows.size and int(rows.max()) >= stream.vocabulary:
        return f"stream {name!r} has id {int(rows.max())}, allowed 0..{stream.vocabulary - 1}"
    return ""


@dataclass(frozen=True)
class ShardInfo:
    """One shard in its manifest."""

    file: str  # name inside the split's folder
    clips: int  # number of rows
    sha256: str  # hash of the file's bytes
    clip_ids: list[str]  # one id a row, `song@start_s`
    songs: list[str]  # the songs those clips come from, each once, in order


@dataclass(frozen=True)
class Manifest:
    """The shards of a split and their origin."""

    split: str  # `train`, `validation` or `test`
    duration_s: float  # length of every clip, in seconds
    streams: dict[str, dict[str, int]]  # stored name -> `{"rate_hz", "codebooks", "vocabulary"}`
    tokenizers: dict[str, dict[str, Any]]  # `semantic`, `acoustic` -> identity (kind, sha256, rates, ...)
    resampler: str  # another resampler before the tokenizers gives other tokens
    preparation: dict[str, Any]  # settings that decide the contents of the shards
    styles: list[str]  # names of the ids in the `style` stream
    shards: list[ShardInfo]  # in the order in which the clips of the split are numbered
    format_version: int = FORMAT_VERSION

    @property
    def clips(self) -> int:
        """Number of clips in all shards."""
        return sum(shard.clips for shard in self.shards)

    def clip_ids(self) -> list[str]:
        """Ids of all clips, in the order of the reader."""
        return [clip for shard in self.shards for clip in shard.clip_ids]

    def songs(self) -> list[str]:
        """Songs of the split, each once, in order."""
        return list(dict.fromkeys(song for shard in self.shards for song in shard.songs))

    def save(self, folder: Path) -> None:
        """Write the folder's ``manifest.json``, completely or not at all."""
        write_json(Path(folder) / MANIFEST_NAME, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the folder's ``manifest.json``; RequestError when it is missing or cannot be used."""
        path = Path(folder) / MANIFEST_NAME
        try:
            return cls.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise RequestError(
                f"no shards in {folder}: {MANIFEST_NAME} is missing\n"
                "give the folder that `prepare` wrote as `root`, or run `python -m hafm_lightning prepare` first"
            ) from None
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}") from error

    @classmethod
    def parse(cls, text: bytes, where: str) -> Manifest:
        """A manifest from its JSON bytes; ``where`` names the file in messages."""

        def refused(reason: str) -> RequestError:
            return RequestError(f"{where}{reason}; prepare the shards again")

        try:
            content = json.loads(text)
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise refused(f": shards of format {version!r}, this version reads {FORMAT_VERSION}")
            manifest = cls(**content | {"shards": [ShardInfo(**shard) for shard in content["shards"]]})
            known = {name: stream_description(stream) for name, stream in STORED_STREAMS.items()}
            for name in (*REQUIRED_STREAMS, *manifest.streams):
                shape = manifest.streams.get(name, "missing")
                if shape != known.get(name):
                    expected = known.get(name, f"one of {', '.join(known)}")
                    raise refused(f": stream {name!r} is {shape}, expected {expected}")
            for shard in manifest.shards:
                clips, ids = shard.clips, len(shard.clip_ids)
                if clips != ids or clips < 1 or Path(shard.file).name != shard.file:
                    raise refused(f": the entry of {shard.file!r} is inconsistent ({clips} clips, {ids} ids)")
        except RequestError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise refused(f" is not a shard manifest ({error!r})") from error
        return manifest
