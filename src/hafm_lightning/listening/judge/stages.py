"""The stages of a model as a judge: how much does the vocal help them to predict an accompaniment's tokens?

A side's score is the cross-entropy of its tokens without the vocal minus that with the vocal, in nats per token: an
estimate of what the accompaniment tells about the vocal. An accompaniment that is easy to predict by itself gains
nothing from that. Only stages with a condition from the vocal take part. There is one score, so all criteria get the
same answer. A model is not impartial towards its own accompaniments: read the gate first, and its verdict on itself
with care.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hafm_lightning.accompanist.model_folder import HUB_PATTERNS, ModelFolder, read_model_folder
from hafm_lightning.audio import resample
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.token_scores.scores import score_clips, vocal_conditions
from hafm_lightning.files import sha256_of, sha256_of_json
from hafm_lightning.listening.judge.base import (
    TIE_SHARE,
    Answer,
    Failed,
    Presented,
    Samples,
    opinions_of,
    same_sounds,
    without_vocal,
)
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.token_scores import without_conditions
from hafm_lightning.tokenizers.hub import fetch_folder
from hafm_lightning.tokens import (
    FRAME_GRID_S,
    INSTRUMENTAL_COARSE,
    INSTRUMENTAL_FINE,
    INSTRUMENTAL_SEMANTIC,
    NULL,
    STYLE,
    VOCAL_ACOUSTIC,
    VOCAL_SEMANTIC,
    TokenBatch,
    split_codes,
)

SCALE_NATS = 0.3
"""Difference of two scores at which the confidence is full."""
VERSION = 1
"""Raised whenever the answers of the same model change."""


@dataclass(frozen=True)
class StagesSource:
    """A model folder whose stages judge.

    Attributes:
        model: A folder of ``export``, or ``owner/name`` on the Hub.
        criteria: Of the study.
        revision: Of a Hub id.
    """

    model: str
    criteria: tuple[str, ...]
    revision: str | None = None

    @cached_property
    def folder(self) -> Path:
        """The local folder; fetched from the Hub at the first use."""
        return fetch_folder(self.model, HUB_PATTERNS, revision=self.revision, what="model")

    @cached_property
    def identity(self) -> str:
        """Over the weights, the tokenizers and the version of the arithmetic."""
        files = sorted(path for pattern in ("*.json", "*.safetensors") for path in self.folder.rglob(pattern))
        hashes = {str(path.relative_to(self.folder)): sha256_of(path) for path in files}
        return sha256_of_json([hashes, list(self.criteria), SCALE_NATS, TIE_SHARE, VERSION])

    def load(self, device: torch.device) -> StagesJudge:
        """The stages on a device.

        Raises:
            RequestError: The folder is no model, or no stage has a condition from the vocal.
        """
        return StagesJudge(read_model_folder(self.folder, device=device), self.criteria, self.identity, device)


class StagesJudge:
    """Loaded stages; made by :class:`StagesSource`."""

    def __init__(self, model: ModelFolder, criteria: Sequence[str], identity: str, device: torch.device) -> None:
        self.identity, self.criteria = identity, tuple(criteria)
        networks = [network for network in model.networks if vocal_conditions(network.model)]
        if not networks:
            raise RequestError("no stage of this model has a condition from the vocal; it cannot judge")
        self.models = [network.model.to(device) for network in networks]
        self.window_s = min(network.duration_s for network in networks)
        self.tokenizers = model.tokenizers

    def judge(self, trials: Sequence[Presented]) -> Iterator[Answer | Failed]:
        """Score both sides of each trial; sounds that come again, in the other order, are scored once."""
        scored = same_sounds(self.score)
        for trial in trials:
            first, second = (scored(trial.vocal, mix, trial.rate_hz) for mix in (trial.first, trial.second))
            scores = dict.fromkeys(self.criteria, (first, second, SCALE_NATS))
            what = dict.fromkeys(self.criteria, "nats per token that the vocal saves:")
            yield Answer(opinions_of(scores, what))

    def score(self, vocal: Samples, mix: Samples, rate_hz: int) -> float:
        """Cross-entropy without the vocal minus that with it, nats per token, mean over windows and stages."""
        batch = self._tokens(vocal, without_vocal(mix, vocal), rate_hz)
        return float(np.mean([self._gain(model, batch) for model in self.models]))

    def _gain(self, model: TokenModel, batch: TokenBatch) -> float:
        null = without_conditions(batch, vocal_conditions(model))
        return float((score_clips(model, batch, null).losses - score_clips(model, batch).losses).mean())

    def _tokens(self, vocal: Samples, accompaniment: Samples, rate_hz: int) -> TokenBatch:
        """Tokens of whole windows no longer than the training clips; a rest below a frame is left out."""
        length_s = len(vocal) / rate_hz
        count = max(int(np.ceil(round(length_s / self.window_s, 6))), 1)
        window_s = int(round(length_s / count / FRAME_GRID_S, 6)) * FRAME_GRID_S
        semantic, acoustic = self.tokenizers.semantic, self.tokenizers.acoustic

        def windows(sound: Samples, wanted_hz: int) -> Tensor:
            at_rate, size = resample(sound, rate_hz, wanted_hz), round(window_s * wanted_hz)
            return torch.from_numpy(at_rate[: count * size].reshape(count, size).copy())

        semantic_hz, acoustic_hz = semantic.identity.sample_rate_hz, acoustic.identity.sample_rate_hz
        coarse, fine = split_codes(acoustic.encode(windows(accompaniment, acoustic_hz)).cpu())
        streams: dict[str, Tensor] = {
            VOCAL_SEMANTIC.name: semantic.encode(windows(vocal, semantic_hz)).cpu(),
            INSTRUMENTAL_SEMANTIC.name: semantic.encode(windows(accompaniment, semantic_hz)).cpu(),
            INSTRUMENTAL_COARSE.name: coarse,
            INSTRUMENTAL_FINE.name: fine,
        }
        needed = {stream for model in self.models for stream in model.layout.conditions}
        if VOCAL_ACOUSTIC in needed:
            streams[VOCAL_ACOUSTIC.name] = acoustic.encode(windows(vocal, acoustic_hz)).cpu()
        if STYLE in needed:
            streams[STYLE.name] = torch.full((count, STYLE.codebooks, 1), NULL)
        return TokenBatch(streams, [str(number) for number in range(count)])
