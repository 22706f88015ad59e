"""The rows of a card: what plays for each vocal, and the systems that need no model.

========================  =========================================================================================
``ground_truth``          the song's own accompaniment
``codec_8``, ``codec_4``  the same through the acoustic tokenizer with all and with the first codebooks: the ceiling
                          for every model that writes such tokens
``random``                an accompaniment of another song, from a segment that is not evaluated where there is one:
                          real music that ignores the singer, and the noise of a FAD with this few rows
``retrieval``             the training accompaniment whose vocal's tokens are nearest, decoded
``two_stages``            the model without its fine stage
``three_stages``          the model
``other_vocal``           what three stages played for the vocal of another song: same sound, wrong vocal
``separated``             three stages, given vocals separated from the mixture instead of clean ones
========================  =========================================================================================

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
import numpy.typing as npt
import torch

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.distances.adherence import random_partners
from hafm_lightning.evaluation.segments import MusicClip, Segment, SelectedClips, next_of_other_song
from hafm_lightning.files import sha256_of_json
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokens import ACOUSTIC_CODEBOOKS, COARSE_CODEBOOKS

Samples = npt.NDArray[np.float32]

LABELS: Mapping[str, str] = {
    "ground_truth": "ground truth",
    "codec_8": "ground truth, codec 8 codebooks",
    "codec_4": "ground truth, codec 4 codebooks",
    "random": "random pairing",
    "retrieval": "retrieval",
    "two_stages": "two stages",
    "three_stages": "three stages",
    "other_vocal": "three stages, other vocal",
    "separated": "three stages, separated vocals",
}
"""Every system, in the order of the card's rows."""
MODEL_SYSTEMS = ("two_stages", "three_stages", "other_vocal", "separated")
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


@dataclass(frozen=True)
class Played:
    """Outcomes of a batch, and the peak memory of the process that computed them (None: nothing was computed)."""

    outcomes: list[Outcome]
    peak_memory_mib: float | None = None


class System(ABC):
    """One row.

    Attributes:
        name: Key in :data:`LABELS`.
        identity: sha256 over everything that changes its sound, besides the clips.
        remote: Plays segments in a worker process; None for systems that are cheaper in this one.
    """

    name: str
    identity: str
    remote: Callable[[Sequence[Segment]], Played] | None = None

    @abstractmethod
    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """One outcome a clip, in order."""

    def describe(self) -> dict[str, Any]:
        """Facts for the card (seed, sampling, hashes)."""
        return {}


def play_clips(system: System, clips: Sequence[MusicClip]) -> Played:
    """Outcomes of a batch, with the memory that it took."""
    outcomes = system.play(clips)
    computed = any(outcome.seconds is not None for outcome in outcomes)
    return Played(outcomes, peak_memory_mib() if computed else None)


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
    if not samples.any():
        return silence_for(clip, "the sound is silent", seconds)
    length = len(clip.accompaniment)
    samples = samples[:length].astype(np.float32)
    return Outcome(np.pad(samples, (0, length - len(samples))), seconds, note=note)


class GroundTruth(System):
    """The song's own accompaniment."""

    def __init__(self) -> None:
        self.name = "ground_truth"
        self.identity = sha256_of_json([self.name])

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """The true accompaniments."""
        return [Outcome(clip.accompaniment) for clip in clips]


class ThroughCodec(System):
    """The song's own accompaniment, encoded and decoded.

    Args:
        tokenizers: Their acoustic one is the codec.
        codebooks: How many of its codebooks are decoded.
    """

    def __init__(self, tokenizers: Tokenizers, codebooks: int) -> None:
        self.name = f"codec_{codebooks}"
        self.acoustic, self.codebooks = tokenizers.acoustic, codebooks
        self.identity = sha256_of_json([self.name, tokenizers.acoustic.identity.sha256])

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """Decoded accompaniments."""
        outcomes = []
        for clip in clips:
            codes = self.acoustic.encode(torch.from_numpy(clip.accompaniment)[None])[:, : self.codebooks]
            outcomes.append(fitted(clip, self.acoustic.decode(codes)[0].float().cpu().numpy()))
        return outcomes


class RandomPairing(System):
    """Accompaniments of other songs.

    Args:
        clips: The evaluated clips.
        pairing: ``spare``: segments that are not evaluated, and evaluated ones where no such segment of another song
            is left. ``next``: the next evaluated clip of another song.
        seed: Of the pairing ``spare``.
    """

    def __init__(self, clips: SelectedClips, pairing: str, seed: int) -> None:
        self.name = "random"
        self.load = clips.load
        if pairing == "next":
            partners = [clips.segments[index] for index in next_of_other_song(clips.songs)]
        else:
            partners = _spare_partners(clips, seed)
        self.partners = dict(zip((segment.clip_id for segment in clips.segments), partners, strict=True))
        self.identity = sha256_of_json([self.name, sorted((k, v.clip_id) for k, v in self.partners.items())])

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


def _spare_partners(clips: SelectedClips, seed: int) -> list[Segment]:
    spare = clips.selection.spare
    left = [spare[index] for index in np.random.default_rng(seed).permutation(len(spare))]
    partners = []
    for segment, fallback in zip(clips.segments, random_partners(clips.songs, seed), strict=True):
        chosen = next((other for other in left if other.song.id != segment.song.id), None)
        if chosen is not None:
            left.remove(chosen)
        partners.append(clips.segments[fallback] if chosen is None else chosen)
    return partners


class OtherVocal(System):
    """What a model played for the next clip of another song.

    Args:
        clips: The evaluated clips.
        model: Identity of the model's row.
        outcome: What the model played for a segment.
    """

    def __init__(self, clips: SelectedClips, model: str, outcome: Callable[[Segment], Outcome]) -> None:
        self.name = "other_vocal"
        self.outcome = outcome
        partners = [clips.segments[index] for index in next_of_other_song(clips.songs)]
        self.partners = dict(zip((segment.clip_id for segment in clips.segments), partners, strict=True))
        self.identity = sha256_of_json([self.name, model, sorted((k, v.key) for k, v in self.partners.items())])

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """The model's takes for other vocals; nothing is generated, so no time is counted."""
        partners = [self.partners[clip.clip_id] for clip in clips]
        return [
            replace(self.outcome(partner), seconds=None, note=f"for the vocal of {partner.clip_id}")
            for partner in partners
        ]


def codec_systems(tokenizers: Tokenizers) -> dict[str, System]:
    """The codec's ceilings by name."""
    systems = [ThroughCodec(tokenizers, ACOUSTIC_CODEBOOKS), ThroughCodec(tokenizers, COARSE_CODEBOOKS)]
    return {system.name: system for system in systems}
