"""The manifest of a split: the contents and the origin of its shards; names and shapes of the stored streams."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hafm_lightning import limits
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
from hafm_lightning.untrusted import checked, open_file, parse_json

Ids = NDArray[np.uint16]

FORMAT_VERSION = 1  # readers refuse any other
ADVICE = "prepare the shards again"
_SHA256 = re.compile("[0-9a-f]{64}")
_CLIP = re.compile(r".+@-?[0-9]+(\.[0-9]+)?", re.DOTALL)
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

    def problem(self) -> str:
        """The first contradiction, or an empty string."""
        if self.clips != len(self.clip_ids) or self.clips < 1:
            return f"{self.clips} clips, {len(self.clip_ids)} ids"
        if not _SHA256.fullmatch(self.sha256):
            return f"its sha256 {self.sha256!r:.80} is not one"
        if not self.file.endswith(".safetensors") or Path(self.file).name != self.file or "\\" in self.file:
            return "it is not the name of a safetensors file in the folder"
        if wrong := next((clip for clip in self.clip_ids if not _CLIP.fullmatch(clip)), None):
            return f"{wrong!r:.80} is not the id of a clip (song@start)"
        return "" if songs_of(self.clip_ids) == self.songs else "its songs are not those of its clips"


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
        if not path.exists():
            raise RequestError(
                f"no shards in {folder}: {MANIFEST_NAME} is missing\n"
                "give the folder that `prepare` wrote as `root`, or run `python -m hafm_lightning prepare` first"
            )
        most = limits.current().json_bytes
        with open_file(path, what="a shard manifest", advice=ADVICE, most_bytes=most) as file:
            return cls.parse(file.read(), str(path))

    @classmethod
    def parse(cls, text: bytes, where: str) -> Manifest:
        """A manifest from its JSON bytes; ``where`` names the file in messages."""
        content = parse_json(text, f"{where}: a shard manifest", advice=ADVICE)
        version = content.get("format_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise RequestError(f"{where}: shards of format {version}, this version reads {FORMAT_VERSION}; {ADVICE}")
        manifest = checked(content, cls, f"{where}: a shard manifest", ADVICE)
        problem = manifest.problem()
        if problem:
            raise RequestError(f"{where}: {problem}; {ADVICE}")
        return manifest

    def problem(self) -> str:
        """The first contradiction in the manifest, or an empty string."""
        if self.split not in SPLITS:
            return f"the split {self.split!r:.40} is none of {', '.join(SPLITS)}"
        if not 0 < self.duration_s <= limits.current().audio_seconds:
            return f"clips of {self.duration_s} s"
        known = {name: stream_description(stream) for name, stream in STORED_STREAMS.items()}
        for name in (*REQUIRED_STREAMS, *self.streams):
            shape = self.streams.get(name, "missing")
            if shape != known.get(name):
                expected = known.get(name, f"one of {', '.join(known)}")
                return f"stream {name!r:.40} is {shape}, expected {expected}"
        if len(self.styles) > STYLE.vocabulary or len(set(self.styles)) != len(self.styles):
            return f"{len(self.styles)} styles, of which {len(set(self.styles))} differ; {STYLE.vocabulary} at most"
        for shard in self.shards:
            if problem := shard.problem():
                return f"the entry of {shard.file!r:.80} is inconsistent: {problem}"
        names = [shard.file for shard in self.shards]
        if repeated := _repeated(names):
            return f"the shard {repeated!r:.80} is listed twice"
        if repeated := _repeated(self.clip_ids()):
            return f"the clip {repeated!r:.80} is listed twice"
        return ""


def _repeated(names: Sequence[str]) -> str:
    """The first name that occurs twice, or an empty string."""
    if len(set(names)) == len(names):
        return ""
    return next(name for name, count in Counter(names).items() if count > 1)
