"""The rows of a card: what plays for each vocal, and the systems that need no model.

A system plays whole batches and never raises for one clip: a failure is an :class:`Outcome` with a reason, which sounds
as silence, is counted, and stays in every mean.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hafm_lightning.audio import Samples
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.coherence.meaning import is_silent
from hafm_lightning.evaluation.distances.adherence import random_partners
from hafm_lightning.evaluation.seeds import seed_of
from hafm_lightning.evaluation.segments import MusicClip, Segment, SelectedClips, next_of_other_song
from hafm_lightning.files import sha256_of_json
from hafm_lightning.tokenizers import Tokenizers

LABELS: Mapping[str, str] = {
    "ground_truth": "ground truth",  # the song's own accompaniment
    # The same through the acoustic tokenizer: the ceiling for every model that writes such tokens.
    "codec_8": "ground truth, codec 8 codebooks",
    "codec_4": "ground truth, codec 4 codebooks",
    # An accompaniment of another song, from a segment that is not evaluated where there is one: real music that
    # ignores the singer. Shows the noise of a FAD with few rows.
    "random": "random pairing",
    "vocal_alone": "vocal alone",  # the vocal in place of an accompaniment
    "silence": "silence",  # as a failed clip sounds
    "noise": "noise",  # white, at the level of the true accompaniment
    "retrieval": "retrieval",  # the training accompaniment whose vocal's tokens are nearest, decoded
    "two_stages": "two stages",  # the model without its fine stage
    "three_stages": "three stages",  # the model
    # without the noise of training on the vocal, which `three_stages` hears as `generate` does
    "clean_vocal": "three stages, no noise on the vocal",
    "other_vocal": "three stages, other vocal",  # what it played for the vocal of another song: same sound, wrong vocal
    "separated": "three stages, separated vocals",  # separated from the mixture, in place of clean ones
}
"""Every system, in the order of the card's rows."""
MODEL_PREFIX = "model-"
"""Begins the row of a model that a card compares with others (``models`` in its settings), before the model's name."""
MODEL_SYSTEMS = ("two_stages", "three_stages", "clean_vocal", "other_vocal", "separated")
"""Systems that need a model."""


@dataclass(frozen=True)
class Outcome:
    """A system's result for one clip.

    Attributes:
        samples: Mono ``[L]`` at the acoustic rate, as long as the clip; silence where it failed.
        seconds: Computing time for this clip; None where nothing was computed for it.
        failure: Why there is no sound; empty if there is.
        note: Where the sound comes from, for controls.
    """

    samples: Samples
    seconds: float | None = None
    failure: str = ""
    note: str = ""


class System(ABC):
    """One row: its name in :data:`LABELS`, and ``parts``, everything else that changes its sound, as JSON values.

    Attributes:
        identity: sha256 over name and parts.
        label: Heading of the row.
        facts: For the card: hashes, seed, sampling.
        parallel: Whether worker processes play it; most systems are cheaper in one process.
    """

    parallel = False

    def __init__(self, name: str, *parts: Any) -> None:
        self.name, self.identity = name, sha256_of_json([name, *parts])
        self.label = LABELS.get(name, name)
        self.facts: dict[str, Any] = {}

    @abstractmethod
    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """One outcome a clip, in order."""


def play_segments(
    system: System, read: Callable[[Segment], MusicClip], segments: Sequence[Segment]
) -> tuple[list[Outcome], float | None]:
    """Outcomes of a batch, and the peak memory (None if nothing was computed); may run in a worker process."""
    outcomes = system.play([read(segment) for segment in segments])
    computed = any(outcome.seconds is not None for outcome in outcomes)
    return outcomes, peak_memory_mib() if computed else None


def peak_memory_mib() -> float | None:
    """Peak memory so far, MiB: of the GPU's tensors where there is one, else of the whole process; None on Windows."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def silence_for(clip: MusicClip, failure: str, seconds: float | None = None) -> Outcome:
    """A failed clip: silence of its length."""
    return Outcome(np.zeros_like(clip.accompaniment), seconds, failure)


def fitted(clip: MusicClip, samples: Samples, seconds: float | None = None, note: str = "") -> Outcome:
    """``samples [L]`` cut or padded to the clip's length; a failure where they are not finite or silent."""
    if not np.isfinite(samples).all():
        return silence_for(clip, "the sound holds NaN or infinite samples", seconds)
    heard = with_length(samples.astype(np.float32), len(clip.accompaniment))
    if is_silent(heard):
        return silence_for(clip, "the sound is silent", seconds)
    return Outcome(heard, seconds, note=note)


def with_length(samples: Samples, length: int) -> Samples:
    """``samples [L]`` cut, or filled with silence, to ``[length]``."""
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


class GroundTruth(System):
    """The song's own accompaniment."""

    def __init__(self) -> None:
        super().__init__("ground_truth")

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """The true accompaniments."""
        return [Outcome(clip.accompaniment) for clip in clips]


class ThroughCodec(System):
    """The song's own accompaniment, encoded, and decoded from the first ``codebooks``."""

    def __init__(self, tokenizers: Tokenizers, codebooks: int) -> None:
        super().__init__(f"codec_{codebooks}", tokenizers.acoustic.identity.sha256)
        self.acoustic, self.codebooks = tokenizers.acoustic, codebooks

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """Decoded accompaniments."""
        outcomes = []
        for clip in clips:
            codes = self.acoustic.encode(torch.from_numpy(clip.accompaniment)[None])[:, : self.codebooks]
            outcomes.append(fitted(clip, self.acoustic.decode(codes)[0].float().cpu().numpy()))
        return outcomes


class RandomPairing(System):
    """Accompaniments of other songs, chosen by :func:`partners_of`."""

    def __init__(self, clips: SelectedClips, pairing: str, seed: int) -> None:
        self.load, self.partners = clips.load, partners_of(clips, pairing, seed)
        super().__init__("random", sorted((k, v.clip_id) for k, v in self.partners.items()))

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """Accompaniments that belong to other vocals."""
        outcomes = []
        for clip in clips:
            partner = self.partners[clip.clip_id]
            try:
                outcomes.append(fitted(clip, self.load(partner).accompaniment, note=partner.clip_id))
            except RequestError as error:
                outcomes.append(silence_for(clip, str(error).splitlines()[0]))
        return outcomes


class OtherVocal(System):
    """What a model, whose row has the identity ``model``, played for the next clip of another song."""

    def __init__(self, clips: SelectedClips, model: str, outcome: Callable[[Segment], Outcome]) -> None:
        self.outcome, self.partners = outcome, partners_of(clips, "next")
        super().__init__("other_vocal", model, sorted((k, v.key) for k, v in self.partners.items()))

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """The model's takes for other vocals; nothing is generated, so no time is counted."""
        partners = [self.partners[clip.clip_id] for clip in clips]
        return [replace(self.outcome(it), seconds=None, note=f"for the vocal of {it.clip_id}") for it in partners]


def partners_of(clips: SelectedClips, pairing: str, seed: int = 0) -> dict[str, Segment]:
    """For each clip id a segment of another song.

    ``next`` takes the next evaluated segment of another song. ``spare`` draws segments that are not evaluated, with
    ``seed``, and evaluated ones where no such segment of another song is left.
    """
    if pairing == "next":
        chosen = [clips.segments[index] for index in next_of_other_song(clips.songs)]
    else:
        spare, chosen = clips.selection.spare, []
        left = [spare[index] for index in np.random.default_rng(seed_of(seed, "spare")).permutation(len(spare))]
        fallbacks = random_partners(clips.songs, seed_of(seed, "random pairing"))
        for segment, fallback in zip(clips.segments, fallbacks, strict=True):
            partner = next((other for other in left if other.song.id != segment.song.id), None)
            if partner is not None:
                left.remove(partner)
            chosen.append(clips.segments[fallback] if partner is None else partner)
    return dict(zip((segment.clip_id for segment in clips.segments), chosen, strict=True))
