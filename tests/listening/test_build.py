"""A study folder holds what its key says, and nothing about a file tells which system it is."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyloudnorm
import pytest
import soundfile
from made_material import LENGTH, RATE_HZ, made_material
from scipy.signal import resample_poly

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.listening.build import write_study
from hafm_lightning.listening.study import Assignment, Key, Study
from hafm_lightning.listening.trials.material import Material
from hafm_lightning.listening.trials.settings import StudySettings
from hafm_lightning.listening.trials.sounds import mixed

CLIPS = 24
GIVEAWAYS = {"dull": "d", "loud": "l", "quiet": "q"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Key]:
    folder = tmp_path_factory.mktemp("studies") / "study"
    study = write_study(made_material(CLIPS), StudySettings(str(folder), systems=(), sounds=GIVEAWAYS, seed=5))
    loaded = Study.load(folder)
    assert loaded == study
    return loaded, Key.load(folder / "key.json", loaded)


def test_the_folder_is_complete(built: tuple[Study, Key]) -> None:
    study, key = built
    assert Counter(entry.kind for entry in key.assignments.values()) == {"pair": 3 * CLIPS, "same": 3, "silence": 3}
    assert key.systems == ("dull", "loud", "quiet")
    assert key.seed == 5
    assert key.sources["study"]["folder"] == str(study.folder)
    files = {str(path.relative_to(study.folder)) for path in study.folder.rglob("*") if path.is_file()}
    assert files == {"study.json", "key.json"} | {name for trial in study.trials for name in trial.files}


def samples_of(study: Study, name: str) -> npt.NDArray[np.float64]:
    return soundfile.read(study.folder / name)[0]


def test_files_are_bare_16_bit_sounds_of_one_size(built: tuple[Study, Key]) -> None:
    """RIFF, a format chunk, the samples: no room for a name, a date or a program."""
    study, _ = built
    header = b"RIFF" + struct.pack("<I", 36 + 2 * LENGTH) + b"WAVE" + b"fmt "
    header += struct.pack("<IHHIIHH", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16) + b"data" + struct.pack("<I", 2 * LENGTH)
    for trial in study.trials:
        for name in trial.files:
            content = (study.folder / name).read_bytes()
            assert content[:44] == header
            assert len(content) == 44 + 2 * LENGTH
    assert len({(study.folder / name).stat().st_mtime_ns for trial in study.trials for name in trial.files}) == 1
    hashes = [sha256 for trial in study.trials for sha256 in trial.files.values()]
    assert len(set(hashes)) == len(hashes), (
        "a file that comes twice tells which trials have a clip or a system in common"
    )


def test_all_files_have_one_loudness_below_one_peak(built: tuple[Study, Key]) -> None:
    study, key = built
    meter = pyloudnorm.Meter(RATE_HZ)
    sounds = [samples_of(study, name) for trial in study.trials for name in trial.files]
    levels = [meter.integrated_loudness(sound) for sound in sounds]
    assert max(levels) - min(levels) < 0.03
    assert np.mean(levels) == pytest.approx(-23.0 + key.sources["gain_db"], abs=0.02)
    assert max(float(np.abs(resample_poly(sound, 8, 1)).max()) for sound in sounds) <= 10 ** (-0.9 / 20)


def test_sides_hold_what_the_key_says(built: tuple[Study, Key]) -> None:
    """By correlation with the sounds that went in."""
    study, key = built
    material = made_material(CLIPS)
    names = {name.clip: name for name in material.clips}
    for trial in study.trials:
        entry = key.assignments[trial.id]
        vocal = material.vocal(names[entry.clip])
        heard = {
            side: samples_of(study, file) for side, file in (("A", trial.a), ("B", trial.b), ("vocal", trial.vocal))
        }
        truth = {
            name: vocal if name == "silence" else mixed(vocal, material.accompaniment(name, names[entry.clip]), RATE_HZ)
            for name in (*GIVEAWAYS, "silence", "ground_truth")
        }

        assert [nearest(sound, truth) for sound in heard.values()] == [entry.a, entry.b, "silence"]


def nearest(sound: npt.NDArray[np.float64], truth: dict[str, Any]) -> str:
    """The name of the sound that correlates most."""
    likeness = {name: np.corrcoef(sound[500:-500], other[500:-500])[0, 1] for name, other in truth.items()}
    return max(likeness, key=lambda name: float(likeness[name]))


def facts_of(path: Path) -> list[float]:
    """What a program can read off a file without knowing music."""
    content = path.read_bytes()
    sound, rate_hz = soundfile.read(path)
    info, status = soundfile.info(path), path.stat()
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    treble = spectrum[int(0.91 * len(spectrum)) :]
    return [
        len(content),
        len(sound),
        rate_hz,
        info.channels,
        hash(info.subtype) % 1000,
        float(sum(content[:44])),
        status.st_mtime_ns,
        float(status.st_mode),
        round(pyloudnorm.Meter(rate_hz).integrated_loudness(sound), 2),
        10 * np.log10(treble.sum() + 1e-30),
        10 * np.log10(treble.max() + 1e-30),
        float(int(path.parent.name, 16)),
        float(path.stem == "A"),
    ]


def table_of(study: Study, key: Key) -> tuple[npt.NDArray[np.float64], list[str], list[int]]:
    """Facts of both sides of all comparisons, their systems, and the number of their trial."""
    rows, systems, trials = [], [], []
    for place, trial in enumerate(study.trials):
        entry = key.assignments[trial.id]
        if entry.kind != "pair":
            continue
        for name, system in ((trial.a, entry.a), (trial.b, entry.b)):
            rows.append([*facts_of(study.folder / name), float(place)])
            systems.append(system)
            trials.append(place)
    return np.array(rows), systems, trials


def accuracies(facts: npt.NDArray[np.float64], labels: list[str], groups: list[int]) -> dict[str, float]:
    """Cross-validated accuracy (whole trials are left out) of nearest neighbours and of linear discrimination."""
    facts = (facts - facts.mean(axis=0)) / np.where(facts.std(axis=0) > 0, facts.std(axis=0), 1)
    known = sorted(set(labels))
    truth = np.array([known.index(label) for label in labels])
    fold = np.random.default_rng(0).permutation(max(groups) + 1)[groups] % 6
    right = Counter({"neighbours": 0, "linear": 0})
    for part in range(6):
        train, test = fold != part, fold == part
        distance = np.square(facts[test][:, None] - facts[train][None]).sum(axis=-1)
        near = truth[train][np.argsort(distance, axis=1)[:, :7]]
        right["neighbours"] += int((np.array([np.bincount(row).argmax() for row in near]) == truth[test]).sum())
        design = np.column_stack([facts, np.ones(len(facts))])
        targets = np.eye(len(known))[truth[train]]
        weights = np.linalg.solve(design[train].T @ design[train] + np.eye(design.shape[1]), design[train].T @ targets)
        right["linear"] += int(((design[test] @ weights).argmax(axis=1) == truth[test]).sum())
    return {name: count / len(labels) for name, count in right.items()}


def test_a_classifier_over_facts_about_files_stays_at_chance(built: tuple[Study, Key]) -> None:
    facts, systems, trials = table_of(*built)
    assert len(systems) == 2 * 3 * CLIPS
    chance = 1 / 3 + 3 * np.sqrt(1 / 3 * 2 / 3 / len(systems))
    scores = accuracies(facts, systems, trials)
    assert max(scores.values()) < chance, scores


def test_the_classifier_can_tell_files_that_were_not_made_alike(built: tuple[Study, Key], tmp_path: Path) -> None:
    """The same trials with plain sums: its staying at chance is the study's merit."""
    study, key = built
    material = made_material(CLIPS)
    names = {name.clip: name for name in material.clips}
    for trial in study.trials:
        entry = key.assignments[trial.id]
        for side, system in (("A", entry.a), ("B", entry.b)):
            if entry.kind == "pair":
                clip = names[entry.clip]
                mix = np.clip(material.vocal(clip) + material.accompaniment(system, clip), -1, 1)
                write_audio(tmp_path / "trials" / trial.id / f"{side}.wav", Audio(mix[None], RATE_HZ))
    facts, systems, trials = table_of(dataclasses.replace(study, folder=tmp_path), key)
    scores = accuracies(facts, systems, trials)
    assert min(scores.values()) > 0.6, scores


def test_the_same_seed_builds_the_same_study_and_other_sounds_get_other_ids(tmp_path: Path) -> None:
    def build(name: str, material: Material, seed: int | None = 1) -> Study:
        folder = str(tmp_path / name)
        return write_study(material, StudySettings(folder, systems=(), sounds={"x": "", "y": ""}, seed=seed, same=0))

    material = made_material(2)
    first, again = build("first", material), build("again", material)
    assert first.as_json() == again.as_json()
    other = build("other", dataclasses.replace(material, identity="1" * 64))
    assert not {trial.id for trial in first.trials} & {trial.id for trial in other.trials}
    drawn = [build(name, material, None) for name in ("drawn", "drawn again")]
    assert drawn[0].study_id != drawn[1].study_id
    seeds = [json.loads((study.folder / "key.json").read_text())["seed"] for study in drawn]
    assert seeds[0] != seeds[1]


def test_a_seed_of_the_key_builds_the_study_again(tmp_path: Path) -> None:
    first = write_study(made_material(2), StudySettings(str(tmp_path / "a"), systems=(), sounds={"x": "", "y": ""}))
    key = Key.load(first.folder / "key.json", first)
    settings = StudySettings(**{**key.sources["study"], "folder": str(tmp_path / "b"), "seed": key.seed})
    settings = dataclasses.replace(settings, systems=tuple(settings.systems), criteria=tuple(settings.criteria))
    assert write_study(made_material(2), settings).as_json() == first.as_json()


def test_a_folder_with_something_in_it_is_kept(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "votes.sqlite").write_text("votes")
    settings = StudySettings(str(tmp_path / "study"), systems=(), sounds={"x": "", "y": ""})
    with pytest.raises(RequestError, match="is not empty; choose another folder"):
        write_study(made_material(1), settings)
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["votes.sqlite"]
    with pytest.raises(RequestError, match=r"--study\.folder DIR"):
        write_study(made_material(1), dataclasses.replace(settings, folder=""))


def test_a_silent_sound_ends_the_build_and_leaves_no_folder(tmp_path: Path) -> None:
    material = made_material(2)
    silent = dataclasses.replace(material, vocal=lambda name: np.zeros(LENGTH, np.float32))
    with pytest.raises(RequestError, match=r"song \d@0, (vocal|silence): the sound is silent"):
        write_study(silent, StudySettings(str(tmp_path / "study"), systems=(), sounds={"x": "", "y": ""}))
    assert not list(tmp_path.iterdir())


def test_the_rate_may_be_lower_and_not_higher_than_the_codecs(tmp_path: Path) -> None:
    settings = StudySettings(str(tmp_path / "study"), systems=(), sounds={"x": "", "y": ""}, rate_hz=12000)
    study = write_study(made_material(1), settings)
    assert study.rate_hz == soundfile.info(study.folder / study.trials[0].a).samplerate == 12000
    with pytest.raises(RequestError, match="44100 Hz is above the 16000 Hz of the codec"):
        write_study(made_material(1), dataclasses.replace(settings, folder=str(tmp_path / "high"), rate_hz=44100))


def test_one_gain_keeps_all_peaks_below_full_scale(tmp_path: Path) -> None:
    """A loud target: every file is turned down alike, so that loudness tells nothing."""
    settings = StudySettings(str(tmp_path / "study"), systems=(), sounds=GIVEAWAYS, loudness_lufs=-10.0)
    study = write_study(made_material(3), settings)
    key = Key.load(study.folder / "key.json", study)
    assert key.sources["gain_db"] < -1
    levels = [
        pyloudnorm.Meter(RATE_HZ).integrated_loudness(samples_of(study, name))
        for trial in study.trials
        for name in trial.files
    ]
    assert max(levels) - min(levels) < 0.03
    peak = max(float(np.abs(samples_of(study, name)).max()) for trial in study.trials for name in trial.files)
    assert 0.7 < peak <= 10 ** (-1 / 20) + 2**-14


def test_a_study_of_one_song_and_clip_works(tmp_path: Path) -> None:
    settings = StudySettings(str(tmp_path / "s"), systems=(), sounds={"x": "", "y": ""}, same=2, silence=2)
    study = write_study(made_material(1), settings)
    key = Key.load(study.folder / "key.json", study)
    assert sorted(entry.kind for entry in key.assignments.values()) == ["pair", "same", "same", "silence", "silence"]
    assert all(isinstance(entry, Assignment) for entry in key.assignments.values())
