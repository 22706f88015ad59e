"""The work of a worker: a unit in, the rows of one shard out.

A worker writes nothing; only the process that holds the lock on the output does. So a worker may die, run twice or be
on another machine without any damage. A song that cannot be read to its end is quarantined, and none of its clips is
used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafm_lightning.audio import Samples
from hafm_lightning.preparation.plan import UNKNOWN_STYLE, Unit
from hafm_lightning.preparation.quality.filters import FilterSettings, broken_rules, measure
from hafm_lightning.shards import Ids, clip_id
from hafm_lightning.songs.clips import MARGIN_S, ClipSettings, ClipSound, clip_sound, clip_starts, with_noise
from hafm_lightning.songs.separation import Runtime, SeparationSettings, Separator, load_separator
from hafm_lightning.songs.song import Quarantined, Song, reason_of
from hafm_lightning.songs.stems import Window, cut_windows, probe_song, read_blocks, read_window, readable, stem_rate_hz
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokenizers.base import Tokenizer
from hafm_lightning.tokenizers.spectra import one_thread
from hafm_lightning.tokens import INSTRUMENTAL_CODES, INSTRUMENTAL_SEMANTIC, STYLE, VOCAL_ACOUSTIC, VOCAL_SEMANTIC

TokenizerLoader = Callable[[Path, str], Tokenizers]
"""Reads the tokenizers of a folder onto a device."""


@dataclass(frozen=True)
class SoundSettings:
    """Settings of the waveforms that are tokenized."""

    clips: ClipSettings  # positions of the clips
    filters: FilterSettings  # which clips are dropped
    separation: SeparationSettings  # how songs without stems are separated
    noise_sigma: float  # standard deviation of the noise on vocals; full scale is 1
    seed: int  # of that noise


@dataclass(frozen=True)
class ClipEntry:
    """One line of the clip log."""

    clip: str  # clip id
    split: str  # its split
    song: str  # its song
    start_s: float  # where it starts in the song, in seconds
    kept: bool  # true if it is in a shard
    dropped_by: str  # names of the broken rules, joined by spaces
    genre: str  # of the song; empty if unknown
    licence: str  # of the song; empty if unknown
    measurements: dict[str, float]  # the numbers that the rules test


@dataclass
class UnitResult:
    """A finished unit."""

    arrays: dict[str, Ids] = field(default_factory=dict)  # stored stream -> a row for each kept clip; empty without any
    clip_ids: list[str] = field(default_factory=list)  # ids of the kept clips
    entries: list[ClipEntry] = field(default_factory=list)  # the log, of all clips
    quarantined: list[Quarantined] = field(default_factory=list)  # songs that could not be read
    songs: int = 0  # songs that were read
    duration_s: float = 0.0  # length of the songs that were read, in seconds
    separation: dict[str, Any] = field(default_factory=dict)  # `provider`, `audio_s`, `busy_s`; empty without any


@dataclass(frozen=True)
class ShardWork:
    """Turns units into rows, in any process."""

    sound: SoundSettings  # settings of the waveforms
    tokenizers: Path  # folder of the tokenizers
    load: TokenizerLoader  # reads the tokenizers
    batch_size: int  # clips that are tokenized together
    vocal_acoustic: bool  # also store the acoustic codes of the vocals
    styles: dict[str, int] | None  # genre -> id of the `style` stream; None stores no styles
    device: str = "cpu"  # where tokenizers and separator run

    def __call__(self, unit: Unit) -> UnitResult:
        """All clips of the unit's songs, filtered and tokenized."""
        result = UnitResult()
        rows: list[dict[str, Ids]] = []
        with single_threaded():
            tokenizers = cached_tokenizers(self.load, self.tokenizers, self.device)
            for song in unit.songs:
                separator = separator_for(song, self.sound.separation)  # its errors concern every song
                before = replace(separator.runtime) if separator is not None else None
                try:
                    with readable(song) as files:
                        duration_s, entries, song_rows = self._song(files, unit.split, tokenizers, separator)
                except (OSError, ValueError) as error:
                    result.quarantined.append(Quarantined(song.id, reason_of(error)))
                    continue
                finally:
                    if separator is not None and before is not None:
                        result.separation = _with_time(result.separation, separator.runtime, before)
                result.songs += 1
                result.duration_s += duration_s
                result.entries += entries
                rows += song_rows
        result.clip_ids = [entry.clip for entry in result.entries if entry.kept]
        if rows:
            result.arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return result

    def _song(
        self, song: Song, split: str, tokenizers: Tokenizers, separator: Separator | None
    ) -> tuple[float, list[ClipEntry], list[dict[str, Ids]]]:
        semantic_hz = tokenizers.semantic.identity.sample_rate_hz
        acoustic_hz = tokenizers.acoustic.identity.sample_rate_hz
        entries: list[ClipEntry] = []
        rows: list[dict[str, Ids]] = []
        batch: list[tuple[str, ClipSound]] = []
        duration_s, windows = song_windows(song, self.sound, separator)
        for window in windows:
            sound = clip_sound(window, semantic_hz, acoustic_hz, self.vocal_acoustic)
            measured = measure(window, sound, self.sound.filters)
            broken = broken_rules(measured, self.sound.filters)
            name = clip_id(song.id, window.start_s)
            facts = (" ".join(broken), song.genre, song.licence, measured.as_dict())
            entries.append(ClipEntry(name, split, song.id, window.start_s, not broken, *facts))
            if not broken:
                batch.append((name, sound))
            if len(batch) == self.batch_size:
                rows.append(self._tokenize(tokenizers, song, batch))
                batch = []
        if batch:
            rows.append(self._tokenize(tokenizers, song, batch))
        return duration_s, entries, rows

    def _tokenize(self, tokenizers: Tokenizers, song: Song, clips: list[tuple[str, ClipSound]]) -> dict[str, Ids]:
        semantic, acoustic = tokenizers.semantic, tokenizers.acoustic
        vocals = [with_noise(sound.vocal, name, self.sound.noise_sigma, self.sound.seed) for name, sound in clips]
        try:
            rows = {
                VOCAL_SEMANTIC.name: _ids(semantic, vocals)[:, 0],
                INSTRUMENTAL_SEMANTIC.name: _ids(semantic, [sound.instrumental for _, sound in clips])[:, 0],
                INSTRUMENTAL_CODES: _ids(acoustic, [sound.instrumental_acoustic for _, sound in clips]),
            }
            if self.vocal_acoustic:
                waves = [sound.vocal_acoustic for _, sound in clips if sound.vocal_acoustic is not None]
                rows[VOCAL_ACOUSTIC.name] = _ids(acoustic, waves)
        except ValueError as error:  # the sound was checked, so this affects every song
            raise RuntimeError(f"tokenizing {clips[0][0]!r} failed: {error}") from error
        if self.styles is not None:
            rows[STYLE.name] = np.full(len(clips), self.styles[song.genre or UNKNOWN_STYLE], np.uint16)
        return rows


def _with_time(total: dict[str, Any], now: Runtime, before: Runtime) -> dict[str, Any]:
    audio_s = total.get("audio_s", 0.0) + now.audio_s - before.audio_s
    busy_s = total.get("busy_s", 0.0) + now.busy_s - before.busy_s
    return {"provider": now.provider, "audio_s": audio_s, "busy_s": busy_s}


def _ids(tokenizer: Tokenizer, waves: list[Samples]) -> Ids:
    """Ids ``[B, K, T]`` of waveforms of equal length; ValueError if one does not fit into the 16 bits of shards."""
    values = tokenizer.encode(torch.from_numpy(np.stack(waves))).detach().cpu().numpy()
    if values.size and (values.min() < 0 or values.max() > np.iinfo(np.uint16).max):
        raise ValueError(f"a tokenizer returned ids {values.min()}..{values.max()}")
    return values.astype(np.uint16)


def song_windows(song: Song, sound: SoundSettings, separator: Separator | None) -> tuple[float, Iterator[Window]]:
    """Length in seconds and clips, with a little context, of a song with readable files."""
    info = probe_song(song)
    rate_hz = stem_rate_hz(song, info, separator)
    starts = clip_starts(info.duration_s, sound.clips)
    blocks = read_blocks(song, separator)
    return info.duration_s, cut_windows(blocks, rate_hz, iter(starts), sound.clips.duration_s, MARGIN_S)


def song_window(song: Song, start_s: float, sound: SoundSettings, separator: Separator | None) -> Window:
    """One clip of a song, with a little context, without reading the rest of the song."""
    with readable(song) as files:
        return read_window(files, separator, start_s, sound.clips.duration_s, MARGIN_S)


def separator_for(song: Song, settings: SeparationSettings) -> Separator | None:
    """The separator if the song needs one."""
    return cached_separator(settings) if song.needs_separation else None


@functools.lru_cache(maxsize=2)
def cached_tokenizers(load: TokenizerLoader, folder: Path, device: str) -> Tokenizers:
    """The tokenizers, loaded once in each process."""
    return load(folder, device)


@functools.lru_cache(maxsize=2)
def cached_separator(settings: SeparationSettings) -> Separator:
    """The separator, loaded once in each process."""
    return load_separator(settings)


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread for torch, BLAS and OpenMP: sums in another order would give other bytes on another machine."""
    from threadpoolctl import threadpool_limits

    with one_thread(), threadpool_limits(limits=1):
        yield
