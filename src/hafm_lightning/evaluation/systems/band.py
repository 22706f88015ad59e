"""A trained model as a system, in this process or in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from hafm_lightning.accompanist import Accompanist
from hafm_lightning.audio import Audio, resample
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import ClipReader, MusicClip, Segment, read_vocal
from hafm_lightning.evaluation.systems.base import Outcome, Played, System, fitted, play_clips, silence_for
from hafm_lightning.evaluation.systems.separated import SeparatedVocals
from hafm_lightning.files import sha256_of_json
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.songs.separation import SeparationSettings
from hafm_lightning.tokenizers import Tokenizers, load_tokenizers
from hafm_lightning.tokenizers.compatibility import check_same_tokenizers

Stages = Literal[2, 3]


@dataclass(frozen=True)
class ModelSource:
    """Where a model lies and how it is loaded; a worker process needs no more.

    Attributes:
        model: Model folder or Hub id, in place of the checkpoints.
        semantic: Checkpoint of the semantic stage.
        coarse: Checkpoint of the coarse stage.
        fine: Checkpoint of the fine stage.
        tokenizers: Folder of the tokenizers.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        precision: ``auto``, ``fp32``, ``bf16``.
        stages: 2 or 3.
    """

    model: str
    semantic: str
    coarse: str
    fine: str
    tokenizers: str
    device: str
    precision: str
    stages: Stages = 3

    def load(self, tokenizers: Tokenizers) -> Accompanist:
        """The model.

        Raises:
            RequestError: It cannot be loaded, or was trained with other tokenizers.
        """
        how: Any = {"stages": self.stages, "device": self.device, "precision": self.precision}
        if self.model:
            band = Accompanist.from_pretrained(self.model, **how)
        else:
            fine = self.fine if self.stages == 3 else None
            band = Accompanist.from_checkpoints(self.semantic, self.coarse, fine, tokenizers=tokenizers, **how)
        check_same_tokenizers(
            band.tokenizers.identities(),
            tokenizers.identities(),
            part="the model",
            other=f"the one in {self.tokenizers}",
            advice="correct `tokenizers`: the folder beside the shards that the model was trained on",
        )
        return band


@dataclass(frozen=True)
class RemoteBand:
    """Plays in a worker process, which loads the model at its first call.

    Attributes:
        source: The model.
        sampling: Guidance and sampling.
        seed: See :class:`Band`.
        name: Row.
        separated: Folder of separated vocals; empty for none.
        separation: A separation model in its place; None for clean vocals.
    """

    source: ModelSource
    sampling: SamplingOptions
    seed: int
    name: str
    separated: str = ""
    separation: SeparationSettings | None = None

    def __call__(self, segments: Sequence[Segment]) -> Played:
        """Outcomes of the segments."""
        band, reader = _loaded(self)
        return play_clips(band, [reader(segment) for segment in segments])


@lru_cache(maxsize=2)
def _loaded(remote: RemoteBand) -> tuple[Band, ClipReader]:
    """Of one worker process, which ends with the evaluation: files do not change under it."""
    tokenizers = load_tokenizers(remote.source.tokenizers)
    vocals = None if remote.separation is None else SeparatedVocals(remote.separated, remote.separation)
    band = remote.source.load(tokenizers)
    return Band(band, remote.sampling, remote.seed, remote.name, vocals), ClipReader.of(tokenizers)


class Band(System):
    """A model of two or three stages.

    Args:
        band: The model, loaded with two or three stages.
        sampling: Guidance and sampling.
        seed: A clip's own seed is drawn from this and its id.
        name: Row.
        separated: Vocals that the model gets in place of the clean ones.
        remote: The same system for worker processes.
    """

    def __init__(
        self,
        band: Accompanist,
        sampling: SamplingOptions,
        seed: int,
        name: str,
        separated: SeparatedVocals | None = None,
        remote: RemoteBand | None = None,
    ) -> None:
        self.remote = remote
        self.name, self.band, self.sampling, self.seed = name, band, sampling, seed
        self.vocal: Callable[[Segment], Audio] = read_vocal if separated is None else separated.read
        self.facts = {
            "stages": {network.role: network.sha256 for network in band.networks},
            "tokenizers": {key: value["sha256"] for key, value in band.tokenizers.identities().items()},
            "sampling": {key: getattr(sampling, key) for key in ("guidance", "temperature", "top_k", "top_p")},
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
