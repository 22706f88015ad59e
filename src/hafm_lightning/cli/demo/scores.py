"""What the demo measures: does each stage listen, and does the music that comes out fit the voice?

The music is scored on one segment of every held-out song, in five ways (systems):

``ground truth``
    The band that was really played.
``codec ceiling``
    The same through the acoustic tokenizer and back: the best that a model over these tokens can sound.
``model``
    What the three stages wrote for the vocal.
``model, other vocal``
    What they wrote for another song's vocal, put under this one: same sound, no listening.
``random pairing``
    The real band of another song.

A raw score has no scale: read the model between random pairing and ground truth, and the differences with their
intervals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hafm_lightning.accompanist import Accompanist
from hafm_lightning.accompanist.take import INSTRUMENTAL_FILE, RECORD_FILE
from hafm_lightning.audio import Audio, read_audio, resample
from hafm_lightning.cli.demo.workers import spread
from hafm_lightning.evaluation.coherence.scores import TOY_METRICS, coherence_scores, toy_truth_scores
from hafm_lightning.evaluation.distances.frechet import GaussianStatistics, frechet_distance
from hafm_lightning.evaluation.embeddings.base import EmbeddingSource, load_embedding
from hafm_lightning.evaluation.intervals import bootstrap_interval, paired_difference_interval
from hafm_lightning.evaluation.segments import Segment, SegmentSettings, read_vocal, select_segments
from hafm_lightning.files import write_json
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.toyband.corpus import TRUTH_FILE
from hafm_lightning.toyband.score import ToyTruth

TRUTH, CEILING, MODEL, SHUFFLED, RANDOM = (
    "ground truth",
    "codec ceiling",
    "model",
    "model, other vocal",
    "random pairing",
)
SYSTEMS = (TRUTH, CEILING, MODEL, SHUFFLED, RANDOM)
METRICS = ("chroma_cosine", "onset_f1", "onset_f1_reference", "beat_f_measure", "key_score", *TOY_METRICS)
CONTROLS = (RANDOM, SHUFFLED)
SEGMENT_S = 10.0
TOGETHER = 6
"""Vocals that ride in one batch."""

Mono = NDArray[np.float32]


@dataclass(frozen=True)
class Listening:
    """One held-out segment: its sound and, for each system, an accompaniment; mono at one rate."""

    segment: Segment
    truth: ToyTruth
    vocal: Mono
    systems: Mapping[str, Mono]


def held_out_segments(corpus: Path, songs: int) -> list[Segment]:
    """One vocal-active segment of each of ``songs`` test songs."""
    settings = SegmentSettings(str(corpus), "test", SEGMENT_S, clips=songs, per_song=1, active=0.4)
    return select_segments(settings).segments


def generate_takes(
    pool: ProcessPoolExecutor, model: Path, segments: Sequence[Segment], folder: Path, options: SamplingOptions
) -> None:
    """Accompany every segment and save the takes under ``folder``; those that are there already are kept.

    A take's seed is the number of its segment, so that it does not depend on the others.
    """
    missing = [(n, s) for n, s in enumerate(segments) if not (folder / s.clip_id / RECORD_FILE).is_file()]
    groups = [missing[start : start + TOGETHER] for start in range(0, len(missing), TOGETHER)]
    if groups:
        spread(pool, _accompany, groups, model, folder, options, description="Accompanying held-out vocals")


@lru_cache(maxsize=1)
def _band(model: Path) -> Accompanist:
    return Accompanist.from_pretrained(model, device="cpu")


def _accompany(group: Sequence[tuple[int, Segment]], model: Path, folder: Path, options: SamplingOptions) -> None:
    """Takes for some segments; runs in a worker."""
    vocals = [read_vocal(segment) for _, segment in group]
    takes = _band(model).accompany_batch(vocals, seeds=[number for number, _ in group], options=options)
    for (_, segment), take in zip(group, takes, strict=True):
        take.save(folder / segment.clip_id)


def read_listenings(model: Path, segments: Sequence[Segment], folder: Path) -> tuple[list[Listening], int]:
    """Sound of all systems for all segments, at the acoustic tokenizer's rate, and that rate."""
    acoustic = _band(model).tokenizers.acoustic
    rate_hz = acoustic.identity.sample_rate_hz
    voices = [_mono(read_vocal(segment), rate_hz) for segment in segments]
    bands = [_true_band(segment, rate_hz) for segment in segments]
    written = [_mono(read_audio(folder / segment.clip_id / INSTRUMENTAL_FILE), rate_hz) for segment in segments]
    listenings = []
    for index, segment in enumerate(segments):
        other = (index + 1) % len(segments)
        codes = acoustic.encode(torch.from_numpy(bands[index])[None])
        systems = {
            TRUTH: bands[index],
            CEILING: acoustic.decode(codes)[0, : len(bands[index])].numpy(),
            MODEL: written[index],
            SHUFFLED: written[other],
            RANDOM: bands[other],
        }
        truth = ToyTruth.load(Path(segment.song.vocals).parent / TRUTH_FILE)
        listenings.append(Listening(segment, truth, voices[index], systems))
    return listenings, rate_hz


def score_music(
    pool: ProcessPoolExecutor, listenings: Sequence[Listening], rate_hz: int, cache: Path
) -> dict[str, Any]:
    """All metrics for all systems: means, intervals over songs, and the model's lead over the controls.

    Finished clips are kept in ``cache`` (JSON), so that an interrupted scoring continues.
    """
    scores = _clip_scores(pool, listenings, rate_hz, cache)
    systems = {
        system: {m: bootstrap_interval([clip[system][m] for clip in scores]).as_dict() for m in METRICS}
        for system in SYSTEMS
    }
    leads = {
        control: {
            metric: paired_difference_interval(
                [clip[MODEL][metric] for clip in scores], [clip[control][metric] for clip in scores]
            ).as_dict()
            for metric in METRICS
        }
        for control in CONTROLS
    }
    return {"clips": len(listenings), "systems": systems, "model_minus": leads, "fad": _distances(listenings, rate_hz)}


def _clip_scores(
    pool: ProcessPoolExecutor, listenings: Sequence[Listening], rate_hz: int, cache: Path
) -> list[dict[str, dict[str, float]]]:
    known: dict[str, dict[str, dict[str, float]]] = json.loads(cache.read_text()) if cache.is_file() else {}

    def keep(listening: Listening, scores: dict[str, dict[str, float]]) -> None:
        known[listening.segment.clip_id] = scores
        write_json(cache, known)

    missing = [listening for listening in listenings if listening.segment.clip_id not in known]
    if missing:
        spread(pool, _score, missing, rate_hz, description="Scoring the music", on_result=keep)
    return [known[listening.segment.clip_id] for listening in listenings]


def _score(listening: Listening, rate_hz: int) -> dict[str, dict[str, float]]:
    """All metrics for all systems of a segment; runs in a worker."""
    scores = {}
    for system, candidate in listening.systems.items():
        coherence = coherence_scores(listening.vocal, listening.systems[TRUTH], candidate, rate_hz)
        truth = toy_truth_scores(candidate, rate_hz, listening.truth, listening.segment.start_s)
        scores[system] = {metric: float((coherence | truth)[metric]) for metric in METRICS}
    return scores


def _distances(listenings: Sequence[Listening], rate_hz: int) -> dict[str, Any]:
    """FAD of every system against the true accompaniments of the same segments, over the `logmel` embedding."""
    embedding = load_embedding(EmbeddingSource("logmel"))

    def statistics(system: str) -> GaussianStatistics:
        sounds = [resample(item.systems[system], rate_hz, embedding.rate_hz) for item in listenings]
        return GaussianStatistics.from_rows(embedding.rows([torch.from_numpy(sound) for sound in sounds]))

    reference = statistics(TRUTH)
    values = {system: frechet_distance(statistics(system), reference) for system in (CEILING, MODEL)}
    return {
        "embedding": embedding.name,
        "identity": embedding.identity,
        "rate_hz": embedding.rate_hz,
        "rows": reference.rows,
        "dimensions": reference.dimensions,
        "seconds_a_clip": SEGMENT_S,
        "reference": "true accompaniments of the same segments",
        "values": values,
    }


def _mono(audio: Audio, rate_hz: int) -> Mono:
    return resample(audio.mono().samples[0], audio.rate_hz, rate_hz)


def _true_band(segment: Segment, rate_hz: int) -> Mono:
    stems = [
        read_audio(file, start_s=segment.start_s, duration_s=segment.duration_s) for file in segment.song.accompaniment
    ]
    total = Audio(np.sum([stem.samples for stem in stems], axis=0, dtype=np.float32), stems[0].rate_hz)
    return _mono(total, rate_hz)
