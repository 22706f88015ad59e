"""``listen build``: from a model, or kept generations of ``evaluate``, to a study folder.

The paper's listening test (section 4.1) has 33 clips of 3 s and three systems: a trial plays a vocal, then two mixes of
it, and every pair of systems is compared on every clip, which makes 99 trials. Here any systems, clips and numbers do.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_folder, is_occupied, sha256_of, sha256_of_json, write_json
from hafm_lightning.listening.study import (
    KEY_FILE,
    SILENCE,
    STUDY_FILE,
    TRIALS_FOLDER,
    Assignment,
    Key,
    Study,
    Trial,
    sound_file,
)
from hafm_lightning.listening.trials.draw import ClipName, draw_trials
from hafm_lightning.listening.trials.material import Material, collect_material, select_clips
from hafm_lightning.listening.trials.settings import LARGEST_SEED, ListenSettings, StudySettings
from hafm_lightning.listening.trials.sounds import PEAK_DBTP, Samples, alike, mixed, peak_of, rounded
from hafm_lightning.progress import progress

VOCAL = "vocal"
"""Name of the vocal alone among the sounds of a clip."""


def build_study(settings: ListenSettings) -> Study:
    """Make the sounds that are missing, and write the study.

    Raises:
        RequestError: The settings are wrong, a clip or a sound is missing, or the folder is not empty.
    """
    _check_free(Path(settings.study.folder))
    return write_study(collect_material(settings, select_clips(settings)), settings.study)


def write_study(material: Material, settings: StudySettings) -> Study:
    """Draw the trials and write their folder, whole or not at all.

    Raises:
        RequestError: More trials than the clips allow, a rate above that of the sounds, a silent sound, or a folder
            that is not empty.
    """
    folder = Path(settings.folder)
    _check_free(folder)
    rate_hz = settings.rate_hz or material.rate_hz
    if rate_hz > material.rate_hz:
        raise RequestError(
            f"study.rate_hz: {rate_hz} Hz is above the {material.rate_hz} Hz of the codec; "
            f"set it to {material.rate_hz} or less"
        )
    seed = secrets.randbelow(LARGEST_SEED + 1) if settings.seed is None else settings.seed
    # other sounds give other ids, so that no browser plays what it kept of an earlier study
    text = f"{seed}:{sha256_of_json([material.identity, settings.names, rate_hz, settings.loudness_lufs])}"
    drawn = draw_trials(material.clips, settings.names, settings.trials, settings.same, settings.silence, text)
    clips = _Clips(material, rate_hz, settings.loudness_lufs)
    gain_db = _common_gain(clips, drawn.assignments)
    with atomic_folder(folder, lambda: _check_free(folder)) as draft:
        trials = []
        with progress("Trials", total=len(drawn.assignments), unit="trials") as bar:
            for trial, assignment in drawn.assignments.items():
                sounds = clips.of(assignment)
                for name, side in (("vocal", VOCAL), ("A", assignment.a), ("B", assignment.b)):
                    samples = rounded(sounds[side], gain_db, f"{text}:{trial}:{name}")
                    write_audio(draft / sound_file(trial, name), Audio(samples[None], rate_hz))
                hashes = {n: sha256_of(draft / sound_file(trial, n)) for n in ("vocal", "A", "B")}
                trials.append(Trial(trial, hashes["vocal"], hashes["A"], hashes["B"]))
                bar.advance(1)
        study = Study(
            drawn.study_id,
            settings.title,
            settings.question,
            settings.criteria,
            material.duration_s,
            rate_hz,
            tuple(trials),
            folder,
        )
        write_json(draft / STUDY_FILE, study.as_json())
        facts = {**material.sources, "study": asdict(settings), "gain_db": gain_db}
        sha256 = sha256_of(draft / STUDY_FILE)
        key = Key(study.study_id, sha256, seed, settings.names, drawn.assignments, facts)
        write_json(draft / KEY_FILE, key.as_json())
        _same_time(draft)
    return study


class _Clips:
    """The sounds of trials, at the study's rate, band and loudness; those of the last clip are kept."""

    def __init__(self, material: Material, rate_hz: int, loudness_lufs: float) -> None:
        self.material, self.rate_hz, self.loudness_lufs = material, rate_hz, loudness_lufs
        self._clip: ClipName | None = None
        self._sounds: dict[str, Samples] = {}

    def of(self, assignment: Assignment) -> Mapping[str, Samples]:
        """The vocal and both sides of a trial, by :data:`VOCAL` and system."""
        clip = ClipName(assignment.clip, assignment.song)
        if clip != self._clip:
            self._clip, self._sounds = clip, {}
        for name in {VOCAL, assignment.a, assignment.b} - self._sounds.keys():
            self._sounds[name] = self._sound(clip, name)
        return self._sounds

    def _sound(self, clip: ClipName, name: str) -> Samples:
        sound = self.material.vocal(clip)
        if name not in (VOCAL, SILENCE):
            sound = mixed(sound, self.material.accompaniment(name, clip), self.material.rate_hz)
        try:
            return alike(sound, self.material.rate_hz, self.rate_hz, self.loudness_lufs)
        except ValueError as error:
            raise RequestError(f"{clip.clip}, {name}: {error}; leave this song out") from error


def _common_gain(clips: _Clips, assignments: Mapping[str, Assignment]) -> float:
    """The gain, 0 dB or less, at which no true peak of the study passes :data:`PEAK_DBTP`."""
    peaks: dict[tuple[str, str], float] = {}
    by_clip = sorted(assignments.values(), key=lambda assignment: assignment.clip)
    with progress("Loudness", total=len(by_clip), unit="trials") as bar:
        for assignment in by_clip:
            for name, sound in clips.of(assignment).items():
                if (assignment.clip, name) not in peaks:
                    peaks[assignment.clip, name] = peak_of(sound, clips.rate_hz)
            bar.advance(1)
    return min(0.0, PEAK_DBTP - max(peaks.values()))


def _check_free(folder: Path) -> bool:
    """False, so that a folder is written; RequestError if something is there: votes could be lost with it."""
    if not str(folder) or folder == Path():
        raise RequestError("study.folder: no folder for the study; name one with --study.folder DIR")
    if is_occupied(folder):
        raise RequestError(f"{folder}: is not empty; choose another folder for the study, or remove this one")
    return False


def _same_time(folder: Path) -> None:
    """Give all files of the trials one time: the order in which they were written is nobody's business."""
    newest = (folder / KEY_FILE).stat().st_mtime_ns
    for path in sorted((folder / TRIALS_FOLDER).rglob("*")):
        os.utime(path, ns=(newest, newest))
