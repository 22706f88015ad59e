"""A trained model as a system, in this process or in a worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from hafm_lightning.accompanist import Accompanist
from hafm_lightning.accompanist.song import NOISE_AUTO, VocalNoise
from hafm_lightning.accompanist.windows import GRID_S
from hafm_lightning.audio import resample
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import MusicClip, around, read_vocal
from hafm_lightning.evaluation.systems.base import Outcome, System, fitted, silence_for
from hafm_lightning.evaluation.systems.separated import SeparatedVocals
from hafm_lightning.files import sha256_of_json
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.tokenizers import Tokenizers, load_tokenizers
from hafm_lightning.tokenizers.compatibility import check_same_tokenizers


@dataclass(frozen=True)
class ModelSource:
    """Where a model lies and how it is loaded, as :class:`~hafm_lightning.evaluation.settings.EvaluateSettings` names
    it; a worker process needs no more."""

    model: str
    semantic: str
    coarse: str
    fine: str
    tokenizers: str
    device: str
    precision: str
    stages: Literal[2, 3] = 3

    def load(self, tokenizers: Tokenizers) -> Accompanist:
        """The model; RequestError if it cannot be loaded, or was trained with other tokenizers."""
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


# A worker process ends with the evaluation: the files of its models do not change.
@lru_cache(maxsize=2)
def worker_model(source: ModelSource) -> Accompanist:
    """The model of a worker process, loaded at the first call."""
    return source.load(load_tokenizers(source.tokenizers))


class Band(System):
    """A model of two or three stages.

    Args:
        band: The model.
        sampling: Guidance and sampling.
        seed: A clip's own seed is computed from this and its id.
        name: Row.
        separated: Vocals that the model gets in place of the clean ones.
        source: Where worker processes load the model, at their first batch; None if they do not play.
        noise: Whether the semantic tokenizer hears the vocal with the noise of training, as in generation.
        label: Heading of the row; empty for the one of ``name``.
    """

    def __init__(
        self,
        band: Accompanist,
        sampling: SamplingOptions,
        seed: int,
        name: str,
        separated: SeparatedVocals | None = None,
        source: ModelSource | None = None,
        noise: bool = True,
        label: str = "",
    ) -> None:
        self.band, self.sampling, self.seed = band, sampling, seed
        self.vocal = read_vocal if separated is None else separated.read
        self.context_s = float(band.window * GRID_S)
        self.vocal_noise: VocalNoise = NOISE_AUTO if noise else 0.0
        facts = {
            "stages": {network.role: network.sha256 for network in band.networks},
            "tokenizers": {key: value["sha256"] for key, value in band.tokenizers.identities().items()},
            "sampling": {key: getattr(sampling, key) for key in ("guidance", "temperature", "top_k", "top_p")},
            "seed": seed,
            "precision": band.precision,
            "noise on the vocal": band.trained_noise_sigma if noise else 0.0,
            "context": f"{self.context_s:g} s of the song around each clip",
            **({} if separated is None else {"vocals": separated.identity}),
        }
        super().__init__(name, facts)
        self.facts, self.parallel = facts, source is not None
        self.label = label or self.label
        self._arguments = (source, sampling, seed, name, None if separated is None else separated.arguments, noise)

    def __reduce__(self) -> tuple[Any, ...]:
        return _worker_band, self._arguments

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """Generated accompaniments; where a batch fails, its clips are tried one by one.

        The model hears a clip in the song around it, as long as its windows, and what it plays there is cut out: a
        short clip by itself would be continued with something that nobody sang.
        """
        began = time.perf_counter()
        stretches = [around(clip.segment, self.context_s) for clip in clips]
        try:
            takes = self.band.accompany_batch(
                [self.vocal(segment) for segment, _ in stretches],
                # a clip's seed is the same whichever clips are evaluated with it
                seeds=[int(sha256_of_json([self.seed, clip.clip_id])[:8], 16) for clip in clips],
                options=self.sampling,
                vocal_noise=self.vocal_noise,
            )
        except (RequestError, ValueError) as error:
            if len(clips) > 1:
                return [outcome for clip in clips for outcome in self.play([clip])]
            return [silence_for(clips[0], str(error).splitlines()[0], time.perf_counter() - began)]
        # computing time for a second of what was played, of which the clip is a part
        factor = (time.perf_counter() - began) / sum(segment.duration_s for segment, _ in stretches)
        outcomes = []
        for clip, take, (_, before_s) in zip(clips, takes, stretches, strict=True):
            played = resample(take.decoded.samples[0], take.decoded.rate_hz, clip.acoustic_hz)
            first, length = round(before_s * clip.acoustic_hz), len(clip.accompaniment)
            outcomes.append(fitted(clip, played[first : first + length], factor * clip.segment.duration_s))
        return outcomes


@lru_cache(maxsize=2)
def _worker_band(
    source: ModelSource, sampling: SamplingOptions, seed: int, name: str, vocals: Any, noise: bool
) -> Band:
    separated = None if vocals is None else SeparatedVocals(*vocals)
    return Band(worker_model(source), sampling, seed, name, separated, noise=noise)
