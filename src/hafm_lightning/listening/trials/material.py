"""The music of a study: the clips of a protocol of ``evaluate``, and what every system plays for them.

Generations that ``evaluate`` has kept are found by their identity and used again; those that are missing are made and
kept where ``evaluate`` looks for them. Sounds of other programs come from folders, one file for each clip. A clip that
one system lacks is refused: trials of a silent side would say who it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hafm_lightning.audio import Audio, read_audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.evaluate import Evaluation
from hafm_lightning.evaluation.segments import ClipReader, Segment, SelectedClips, clip_file_stem, select_segments
from hafm_lightning.evaluation.settings import ProtocolSettings
from hafm_lightning.evaluation.systems.base import LABELS
from hafm_lightning.evaluation.systems.generations import Generations
from hafm_lightning.files import sha256_of, sha256_of_json
from hafm_lightning.listening.trials.draw import ClipName
from hafm_lightning.listening.trials.settings import ListenSettings
from hafm_lightning.listening.trials.sounds import Samples
from hafm_lightning.processes.locks import LOCK_NAME, held
from hafm_lightning.processes.pool import local_pool
from hafm_lightning.tokenizers import load_tokenizers

LENGTH_TOLERANCE_S = 0.05
"""A file may be this much longer or shorter than its clip: a frame of a codec."""
NAMED_CLIPS = 3
"""Clips that a message names."""


@dataclass(frozen=True)
class Material:
    """Clips, and a way to their sounds; all sounds are mono, at one rate and of one length.

    Attributes:
        clips: In the order of the protocol.
        duration_s: Length of every sound.
        rate_hz: Sample rate of every sound.
        vocal: Clip -> its vocal ``[L]``.
        accompaniment: System and clip -> what it plays ``[L]``.
        identity: Changes with the sounds.
        sources: Where everything comes from, for the key.
    """

    clips: Sequence[ClipName]
    duration_s: float
    rate_hz: int
    vocal: Callable[[ClipName], Samples]
    accompaniment: Callable[[str, ClipName], Samples]
    identity: str
    sources: Mapping[str, Any]


def select_clips(settings: ListenSettings) -> SelectedClips:
    """The clips of the protocol.

    Raises:
        RequestError: There is no such protocol, or its songs do not have as many clips.
    """
    protocol = _protocol(settings)
    selection = select_segments(protocol.segments(settings.root, settings.split))
    if selection.missing:
        problems = f"; {len(selection.problems)} songs could not be read" if selection.problems else ""
        raise RequestError(
            f"protocol {protocol.name}: {protocol.clips} clips are asked for, {len(selection.segments)} could be drawn "
            f"from {selection.songs} songs{problems}\nlower `clips` or `active` of the protocol, or give more songs"
        )
    return SelectedClips(selection, ClipReader.of(load_tokenizers(settings.tokenizers)))


def write_vocals(clips: SelectedClips, folder: Path) -> list[Path]:
    """Write the vocal of every clip under the name that the clip's file has in a folder of ``study.sounds``."""
    files = []
    for segment in clips.segments:
        files.append(folder / f"{clip_file_stem(segment.clip_id)}.wav")
        write_audio(files[-1], Audio(clips.load(segment).vocal[None], clips.rate_hz), subtype="FLOAT")
    return files


def collect_material(settings: ListenSettings, clips: SelectedClips) -> Material:
    """Play every system and read every folder.

    Raises:
        RequestError: A system cannot play, has no sound for a clip, or a sound does not fit its clip.
    """
    folders = {
        name: _FolderOfSounds(name, Path(folder), clips, settings.study.rate_hz or clips.rate_hz)
        for name, folder in settings.study.sounds.items()
    }
    played = _play(settings, clips)
    segments = {segment.clip_id: segment for segment in clips.segments}

    def accompaniment(system: str, name: ClipName) -> Samples:
        segment = segments[name.clip]
        if system in folders:
            return folders[system].read(segment)
        return played[system].outcome(segment).samples if system in played else clips.load(segment).accompaniment

    hashes = {name: _hashes(generations, clips) for name, generations in played.items()}
    hashes |= {name: folder.hashes for name, folder in folders.items()}
    sources = {
        "protocol": dataclasses.asdict(_protocol(settings)),
        "root": settings.root,
        "split": settings.split,
        "songs": {segment.clip_id: segment.song.bytes for segment in clips.segments},
        "model": settings.model or {role: getattr(settings, role) for role in ("semantic", "coarse", "fine")},
        "systems": {name: _facts(played[name], clips) for name in settings.study.systems},
        "sha256": hashes,
    }
    return Material(
        [ClipName(segment.clip_id, segment.song.id) for segment in clips.segments],
        clips.duration_s,
        clips.rate_hz,
        lambda name: clips.load(segments[name.clip]).vocal,
        accompaniment,
        sha256_of_json([sources["songs"], hashes]),
        sources,
    )


def _protocol(settings: ListenSettings) -> ProtocolSettings:
    by_name = {protocol.name: protocol for protocol in settings.protocols}
    wanted = settings.study.protocol or settings.protocols[0].name
    if wanted not in by_name:
        raise RequestError(f"study.protocol: no protocol {wanted}; choose from {', '.join(by_name)}")
    return by_name[wanted]


def _play(settings: ListenSettings, clips: SelectedClips) -> dict[str, Generations]:
    """What each of ``study.systems`` plays, kept where ``evaluate`` keeps it."""
    names = list(settings.study.systems)
    if "other_vocal" in names and "three_stages" not in names:
        names.append("three_stages")  # whose takes it plays
    for name in names:
        if reason := settings.absent(name):
            raise RequestError(f"study.systems: {name} cannot play: {reason}\nadd it, or leave {name} out")
        if name in ("random", "other_vocal") and len(set(clips.songs)) < 2:
            raise RequestError(f"study.systems: {LABELS[name]} needs clips of at least two songs")
    output, protocol = Path(settings.output), _protocol(settings).name
    # Nothing is scored: metrics and embeddings would only be loaded.
    playing = dataclasses.replace(settings, systems=tuple(names), metrics=(), embeddings=(), differences=())
    advice = "wait for it, or choose another folder: --output DIR"
    with local_pool(settings.workers, threads=1) as pool, held(output / LOCK_NAME, f"{output}", advice, erase=True):
        played = Evaluation(playing, pool).play(output / protocol, clips)
    for name in settings.study.systems:
        failures = {s.clip_id: e.failure for s in clips.segments if (e := played[name].entries[s.key]).failure}
        if failures:
            clip, reason = next(iter(failures.items()))
            raise RequestError(
                f"{name} has no sound for {len(failures)} of {len(clips.segments)} clips: {clip} ({reason})\n"
                f"delete {played[name].folder} to try again, or leave {name} or these songs out"
            )
    return played


def _facts(played: Generations, clips: SelectedClips) -> dict[str, Any]:
    entries = {segment.clip_id: played.entries[segment.key] for segment in clips.segments}
    return {
        "identity": played.system.identity,
        "facts": played.system.facts,
        "notes": {clip: entry.note for clip, entry in entries.items() if entry.note},
    }


def _hashes(played: Generations, clips: SelectedClips) -> dict[str, str]:
    return {segment.clip_id: sha256_of(played.file(segment)) for segment in clips.segments}


class _FolderOfSounds:
    """Accompaniments that another program made.

    Args:
        name: Of the system.
        folder: Holds a file for each clip, named as :func:`write_vocals` names its vocal, of any audio format.
        clips: The clips.
        least_hz: Lowest sample rate of the files; at a lower one their band would tell which side they are.
    """

    def __init__(self, name: str, folder: Path, clips: SelectedClips, least_hz: int) -> None:
        self.name, self.clips, self.least_hz = name, clips, least_hz
        if not folder.is_dir():
            raise RequestError(f"study.sounds.{name}: no folder {folder}; name one with a file for each clip")
        by_stem: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            if path.is_file():
                by_stem.setdefault(path.stem, []).append(path)
        stems = {segment.clip_id: clip_file_stem(segment.clip_id) for segment in clips.segments}
        missing = [stem for stem in stems.values() if stem not in by_stem]
        if missing:
            shown = ", ".join(f"{stem}.wav" for stem in missing[:NAMED_CLIPS])
            raise RequestError(
                f"study.sounds.{name}: {folder} has no sound for {len(missing)} of {len(stems)} clips: {shown}\n"
                "each file has the name that `listen build --study.vocals DIR` gives to the vocal of its clip"
            )
        double = next((by_stem[stem] for stem in stems.values() if len(by_stem[stem]) > 1), None)
        if double:
            raise RequestError(
                f"study.sounds.{name}: {' and '.join(map(str, double[:NAMED_CLIPS]))} are of the same clip; keep one"
            )
        self.files = {clip: by_stem[stem][0] for clip, stem in stems.items()}
        for segment in clips.segments:  # before anything is generated
            self.read(segment)
        self.hashes = {clip: sha256_of(path) for clip, path in self.files.items()}

    def read(self, segment: Segment) -> Samples:
        """The sound of a clip ``[L]`` at the rate of the clips."""
        path = self.files[segment.clip_id]
        audio = read_audio(path, mono=True)
        if audio.rate_hz < self.least_hz:
            raise RequestError(
                f"{path}: has {audio.rate_hz} Hz, the study {self.least_hz} Hz, so that its missing treble would "
                f"tell which side it is\nset study.rate_hz to {audio.rate_hz}, or make the sounds at a higher rate"
            )
        if abs(audio.duration_s - segment.duration_s) > LENGTH_TOLERANCE_S:
            raise RequestError(
                f"{path}: lasts {audio.duration_s:.3f} s, its clip {segment.duration_s:g} s; cut or extend it"
            )
        if not audio.samples.any():
            raise RequestError(f"{path}: is silent, and would tell which side it is; make it again")
        samples = read_audio(path, mono=True, rate_hz=self.clips.rate_hz).samples[0]
        length = round(segment.duration_s * self.clips.rate_hz)
        return np.pad(samples[:length], (0, max(0, length - len(samples))))
