"""The rows of the card by name: :class:`SystemFactory` makes each requested system."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

from hafm_lightning.accompanist import Accompanist
from hafm_lightning.evaluation.segments import SelectedClips
from hafm_lightning.evaluation.systems.band import Band, ModelSource, RemoteBand, Stages
from hafm_lightning.evaluation.systems.base import GroundTruth, OtherVocal, RandomPairing, System, codec_systems
from hafm_lightning.evaluation.systems.generations import Generations
from hafm_lightning.evaluation.systems.retrieval import Retrieval
from hafm_lightning.evaluation.systems.separated import SeparatedVocals
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.shards import open_shards
from hafm_lightning.songs.separation import SeparationSettings
from hafm_lightning.tokenizers import Tokenizers


class SystemFactory:
    """Makes systems; a model is loaded once for each number of stages and precision.

    Args:
        tokenizers: The pair that the model was trained with.
        source: The model.
        sampling: Guidance and sampling.
        seed: Of everything that is drawn.
        shards: Root of the shards that ``retrieval`` searches.
        pairing: See :class:`~hafm_lightning.evaluation.systems.base.RandomPairing`.
        separated: Folder of separated vocals, for the row ``separated``.
        separation: A separation model in its place; None where that row is not wanted.
    """

    def __init__(
        self,
        tokenizers: Tokenizers,
        source: ModelSource,
        sampling: SamplingOptions,
        seed: int,
        *,
        shards: str = "",
        pairing: str = "spare",
        separated: str = "",
        separation: SeparationSettings | None = None,
    ) -> None:
        self.tokenizers, self.source, self.sampling, self.seed = tokenizers, source, sampling, seed
        self.shards, self.pairing = shards, pairing
        self.separated_folder, self.separation = separated, separation
        self.separated = None if separation is None else SeparatedVocals(separated, separation)
        self._models: dict[ModelSource, Accompanist] = {}

    def model(self, stages: Stages, precision: str = "") -> Accompanist:
        """The model with two or three stages, at ``precision`` or at the source's own."""
        source = replace(self.source, stages=stages, precision=precision or self.source.precision)
        if source not in self._models:
            self._models[source] = model = source.load(self.tokenizers)
            if model.precision_note is not None:
                warnings.warn(model.precision_note, stacklevel=2)
        return self._models[source]

    def system(self, name: str, clips: SelectedClips, played: Mapping[str, Generations]) -> System:
        """One row; ``other_vocal`` uses the row ``three_stages`` of ``played``."""
        if name == "ground_truth":
            return GroundTruth()
        if name in (codecs := codec_systems(self.tokenizers)):
            return codecs[name]
        if name == "random":
            return RandomPairing(clips, self.pairing, self.seed)
        if name == "retrieval":
            return Retrieval(open_shards(self.shards, "train"), self.tokenizers)
        if name == "other_vocal":
            model = played["three_stages"]
            return OtherVocal(clips, model.system.identity, model.outcome)
        stages: Stages = 2 if name == "two_stages" else 3
        model_band, remote = self.model(stages), None
        if model_band.device.type == "cpu":  # several processes on one GPU would share its memory
            remote = RemoteBand(replace(self.source, stages=stages), self.sampling, self.seed, name)
        if name != "separated":
            return Band(model_band, self.sampling, self.seed, name, remote=remote)
        if remote is not None:
            remote = replace(remote, separated=self.separated_folder, separation=self.separation)
        return Band(model_band, self.sampling, self.seed, name, self.separated, remote)
