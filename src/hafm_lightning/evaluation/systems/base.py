"""The rows of a card: what plays for each vocal.

========================  =========================================================================================
``ground_truth``          the song's own accompaniment
``codec_8``, ``codec_4``  the same through the acoustic tokenizer with all and with the first codebooks: the ceiling
                          for every model that writes such tokens
``random``                an accompaniment of another song, from a segment that is not evaluated where there is one:
                          real music that did not hear the singer, and the noise of a FAD with so few rows
``retrieval``             the training accompaniment whose vocal's tokens are nearest, decoded
``two_stages``            the model without its fine stage
``three_stages``          the model
``separated``             the model, hearing vocals separated from the mixture instead of clean ones
========================  =========================================================================================

A system plays whole batches and never raises for one clip: what went wrong is an :class:`Outcome` with a reason, which
sounds as silence, is counted, and stays in every mean.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hafm_lightning.accompanist import Accompanist
from hafm_lightning.audio import Audio, resample
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.distances.adherence import random_partners
from hafm_lightning.evaluation.segments import MusicClip, Segment, read_vocal
from hafm_lightning.evaluation.systems.separated import SeparatedVocals
from hafm_lightning.files import sha256_of_json
from hafm_lightning.modeling.sampling import SamplingOptions
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
    "separated": "three stages, separated vocals",
}
"""Every system, in the order of the card's rows."""
MODEL_SYSTEMS = ("two_stages", "three_stages", "separated")
"""Systems that need a model."""


@dataclass(frozen=True)
class Outcome:
    """What a system made of one clip.

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
    """One row.

    Attributes:
        name: Key in :data:`LABELS`.
        identity: sha256 over everything that changes its sound, besides the clips.
    """

    name: str
    identity: str

    @abstractmethod
    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """One outcome a clip, in order."""

    def describe(self) -> dict[str, Any]:
        """Facts for the card (seed, sampling, hashes)."""
        return {}


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
        segments: The evaluated segments, in order.
        spare: Segments that are not evaluated; where none of another song is left, evaluated ones serve.
        load: Reads a segment.
        seed: Of the pairing.
    """

    def __init__(
        self, segments: Sequence[Segment], spare: Sequence[Segment], load: Callable[[Segment], MusicClip], seed: int
    ) -> None:
        self.name = "random"
        self.load = load
        self.partners: dict[str, Segment] = {}
        left = [spare[index] for index in np.random.default_rng(seed).permutation(len(spare))]
        fallback = random_partners([segment.song.id for segment in segments], seed)
        for segment, partner in zip(segments, fallback, strict=True):
            chosen = next((other for other in left if other.song.id != segment.song.id), None)
            if chosen is not None:
                left.remove(chosen)
            self.partners[segment.clip_id] = chosen if chosen is not None else segments[partner]
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


class Band(System):
    """A model of two or three stages.

    Args:
        band: The model.
        stages: 2 or 3, as the model was loaded.
        sampling: Guidance and sampling.
        seed: A clip's own seed is drawn from this and its id.
        name: Row.
        separated: Vocals that the model hears in place of the clean ones.
    """

    def __init__(
        self,
        band: Accompanist,
        sampling: SamplingOptions,
        seed: int,
        name: str,
        separated: SeparatedVocals | None = None,
    ) -> None:
        self.name, self.band, self.sampling, self.seed = name, band, sampling, seed
        self.vocal: Callable[[Segment], Audio] = read_vocal if separated is None else separated.read
        self.facts = {
            "stages": {network.role: network.sha256 for network in band.networks},
            "tokenizers": {key: value["sha256"] for key, value in band.tokenizers.identities().items()},
            "sampling": {
                "guidance": sampling.guidance,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
            },
            "seed": seed,
            "precision": band.precision,
            **({} if separated is None else {"vocals": separated.identity}),
        }
        self.identity = sha256_of_json([self.name, self.facts])

    def describe(self) -> dict[str, Any]:
        """Hashes of the stages and tokenizers, sampling, seed."""
        return self.facts

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """Generated accompaniments; where a batch fails, its clips are tried one by one."""
        began = time.perf_counter()
        try:
            takes = self.band.accompany_batch(
                [self.vocal(clip.segment) for clip in clips],
                seeds=[self.clip_seed(clip) for clip in clips],
                options=self.sampling,
            )
        except (RequestError, ValueError) as error:
            if len(clips) > 1:
                return [outcome for clip in clips for outcome in self.play([clip])]
            return [silence_for(clips[0], str(error).splitlines()[0], time.perf_counter() - began)]
        share = (time.perf_counter() - began) / len(clips)
        return [
            fitted(clip, resample(take.instrumental.mono().samples[0], take.sample_rate_hz, clip.acoustic_hz), share)
            for clip, take in zip(clips, takes, strict=True)
        ]

    def clip_seed(self, clip: MusicClip) -> int:
        """Seed of one clip: the same whichever clips are evaluated with it."""
        return int(sha256_of_json([self.seed, clip.clip_id])[:8], 16)


def codec_systems(tokenizers: Tokenizers) -> list[System]:
    """The codec's ceilings."""
    return [ThroughCodec(tokenizers, ACOUSTIC_CODEBOOKS), ThroughCodec(tokenizers, COARSE_CODEBOOKS)]
