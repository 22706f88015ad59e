"""A small study folder with noise for sounds and its key, written without the package's own writer."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from pathlib import Path

import numpy as np
import soundfile

from hafm_lightning.listening.study import Key, Study

SYSTEMS = ("ground_truth", "random", "three_stages")
RATE_HZ, DURATION_S = 8000, 0.1


def make_tiny_study(
    folder: Path, clips: int = 4, systems: tuple[str, ...] = SYSTEMS, seed: int = 0
) -> tuple[Study, Key]:
    """Every pair of ``systems`` for every clip, one control of each kind, in ``folder``; as loaded from there."""
    generator, noise = random.Random(seed), np.random.default_rng(seed)
    compared = [
        {"clip": f"song {clip}@0", "song": f"song {clip}", "kind": "pair", "a": sides[0], "b": sides[1]}
        for clip in range(clips)
        for pair in itertools.combinations(systems, 2)
        for sides in [generator.sample(pair, 2)]
    ]
    compared += [
        {"clip": "song 0@0", "song": "song 0", "kind": "same", "a": "ground_truth", "b": "ground_truth"},
        {"clip": "song 0@0", "song": "song 0", "kind": "silence", "a": "silence", "b": "ground_truth"},
    ]
    assignments = {f"{generator.getrandbits(48):012x}": entry for entry in compared}
    trials = []
    for trial in sorted(assignments):
        (folder / "trials" / trial).mkdir(parents=True)
        facts = {"id": trial}
        for sound in ("vocal", "A", "B"):
            path = folder / "trials" / trial / f"{sound}.wav"
            soundfile.write(path, 0.1 * noise.standard_normal(int(RATE_HZ * DURATION_S)), RATE_HZ, subtype="PCM_16")
            facts[f"{sound.lower()}_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        trials.append(facts)
    study = {
        "format": "hafm_lightning.study",
        "version": 1,
        "study_id": f"{generator.getrandbits(64):016x}",
        "title": "A tiny study",
        "question": "Which accompaniment matches the vocal better?",
        "criteria": ["rhythm", "harmony", "overall"],
        "duration_s": DURATION_S,
        "rate_hz": RATE_HZ,
        "trials": trials,
    }
    (folder / "study.json").write_text(json.dumps(study))
    key = {
        "format": "hafm_lightning.study_key",
        "version": 1,
        "study_id": study["study_id"],
        "study_sha256": hashlib.sha256((folder / "study.json").read_bytes()).hexdigest(),
        "seed": seed,
        "systems": list(systems),
        "assignments": assignments,
        "sources": {},
    }
    (folder / "key.json").write_text(json.dumps(key))
    loaded = Study.load(folder)
    return loaded, Key.load(folder / "key.json", loaded)
