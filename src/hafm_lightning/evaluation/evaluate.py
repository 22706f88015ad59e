"""``evaluate`` from settings to card: load the model, run every protocol, score tokens, probe, write.

Works without a model too: the controls alone show what a corpus, a codec and an embedding can tell apart.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch

from hafm_lightning import __version__
from hafm_lightning.accompanist import Accompanist
from hafm_lightning.accompanist.stage_network import Precision, pick_device
from hafm_lightning.audio import resample
from hafm_lightning.compatibility import check_same_tokenizers
from hafm_lightning.evaluation.card.card import Card, Plot, Table, load_card
from hafm_lightning.evaluation.card.dashboard import log_to_wandb
from hafm_lightning.evaluation.card.page import write_card
from hafm_lightning.evaluation.embeddings.base import load_embedding
from hafm_lightning.evaluation.protocol.run import ProtocolRun
from hafm_lightning.evaluation.segments import MusicClip, Segment, tokenize_clips
from hafm_lightning.evaluation.settings import EvaluateSettings
from hafm_lightning.evaluation.systems.base import Band, GroundTruth, RandomPairing, System, codec_systems
from hafm_lightning.evaluation.systems.retrieval import Retrieval
from hafm_lightning.evaluation.systems.separated import SeparatedVocals
from hafm_lightning.evaluation.token_scores.probes import Probes
from hafm_lightning.evaluation.token_scores.token_table import token_table
from hafm_lightning.files import sha256_of_json, write_json
from hafm_lightning.locks import LOCK_NAME, held
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.progress import progress
from hafm_lightning.shards import open_shards
from hafm_lightning.tokenizers import Tokenizers, load_tokenizers

PROBES_VERSION = 2
"""Raised when a definition changes: kept token scores and probes are computed again."""


class Evaluation:
    """One run of ``evaluate``.

    Args:
        settings: What to evaluate, on what, and how.
    """

    def __init__(self, settings: EvaluateSettings) -> None:
        self.settings = settings
        self.device = pick_device(settings.device)
        self.tokenizers: Tokenizers = load_tokenizers(settings.tokenizers, device=self.device)
        self.embeddings = [load_embedding(source).to(self.device) for source in settings.embeddings]
        self.absent = {name: reason for name in settings.systems if (reason := settings.absent(name))}
        self.separated: SeparatedVocals | None = None
        if "separated" in settings.systems and "separated" not in self.absent:
            self.separated = SeparatedVocals(settings.separated, settings.separation)
        self._bands: dict[tuple[int, str], Accompanist] = {}

    def band(self, stages: Literal[2, 3], precision: str | None = None) -> Accompanist:
        """The model with two or three stages, loaded once."""
        settings = self.settings
        wanted = cast(Precision, precision or settings.precision)
        if (stages, wanted) not in self._bands:
            if settings.model:
                made = Accompanist.from_pretrained(
                    settings.model, stages=stages, device=settings.device, precision=wanted
                )
            else:
                made = Accompanist.from_checkpoints(
                    settings.semantic,
                    settings.coarse,
                    settings.fine if stages == 3 else None,
                    tokenizers=self.tokenizers,
                    stages=stages,
                    device=settings.device,
                    precision=wanted,
                )
            check_same_tokenizers(
                made.tokenizers.identities(),
                self.tokenizers.identities(),
                part="the model",
                other=f"the one in {settings.tokenizers}",
                advice="correct `tokenizers`: the folder beside the shards that the model was trained on",
            )
            if made.precision_note is not None:
                warnings.warn(made.precision_note, stacklevel=2)
            self._bands[stages, wanted] = made
        return self._bands[stages, wanted]

    def systems(self, run: ProtocolRun) -> list[System]:
        """The rows that can be made, in the order of the settings."""
        settings = self.settings
        codecs = {system.name: system for system in codec_systems(self.tokenizers)}
        found: list[System] = []
        for name in settings.systems:
            if name in self.absent:
                continue
            if name == "ground_truth":
                found.append(GroundTruth())
            elif name in codecs:
                found.append(codecs[name])
            elif name == "random":
                if len(set(run.songs)) < 2:
                    self.absent[f"{run.protocol.name}: random"] = "random pairing needs clips of at least two songs"
                    continue
                found.append(RandomPairing(run.segments, run.selection.spare, run.load, settings.seed))
            elif name == "retrieval":
                found.append(Retrieval(open_shards(settings.shards, "train"), self.tokenizers))
            else:
                separated = self.separated if name == "separated" else None
                band = self.band(2 if name == "two_stages" else 3)
                found.append(Band(band, settings.sampling, settings.seed, name, separated))
        return found

    def run(self) -> Card:
        """Everything; writes the card and returns it."""
        settings = self.settings
        tables: list[Table] = []
        runs = [ProtocolRun(settings, protocol, self.tokenizers, self.embeddings) for protocol in settings.protocols]
        for run in runs:
            tables.append(run.table(self.systems(run)))
        plots: list[Plot] = []
        if {"tokens", "probes"} & set(settings.metrics):
            longest = max(runs, key=lambda run: run.protocol.duration_s)
            found, plots = self._listen(longest)
            tables += found
        card = Card("Evaluation of vocal-to-accompaniment models", self._facts(), tables, plots, self.absent)
        write_card(card, Path(settings.output))
        return card

    def _listen(self, run: ProtocolRun) -> tuple[list[Table], list[Plot]]:
        """Token table and probes on the clips of one protocol."""
        settings = self.settings
        if not settings.has_model:
            self.absent["tokens and probes"] = "no `model` and no checkpoints"
            return [], []
        segments = run.segments[: settings.token_clips] if settings.token_clips else run.segments
        songs = [segment.song.id for segment in segments]
        if len(set(songs)) < 2:
            self.absent["tokens and probes"] = "another song's vocal needs clips of at least two songs"
            return [], []
        stages: Literal[2, 3] = 3 if settings.model or settings.fine else 2
        loaded = self.band(stages, "fp32").networks
        networks: dict[str, TokenModel] = {network.role: network.model for network in loaded}
        kept = self._kept([network.sha256 for network in loaded], segments)
        if kept.is_file():
            card = load_card(kept)
            return card.tables, card.plots
        clips = [run.load(segment) for segment in segments]
        heard = [stream.name for model in networks.values() for stream in model.layout.conditions]
        batch = tokenize_clips(clips, self.tokenizers, settings.vocal_noise_sigma, heard)
        about = [
            f"{len(clips)} clips of {run.protocol.duration_s:g} s from {len(set(songs))} songs of protocol "
            f"{run.protocol.name}, noise on the vocal: sigma {settings.vocal_noise_sigma:g}; fp32"
        ]
        tables = [token_table(networks, batch, songs, about)] if "tokens" in settings.metrics else []
        if "probes" not in settings.metrics:
            write_json(kept, Card("tokens", {}, tables).as_dict())
            return tables, []
        separated = self._separated_vocals(clips)
        total = Probes.passes(networks, separated is not None)
        with progress("Probes", total=total, unit="passes") as bar:
            probes = Probes(
                networks, clips, batch, self.tokenizers, settings.vocal_noise_sigma, separated, lambda: bar.advance()
            )
            plots = probes.plots()
        write_json(kept, Card("tokens", {}, tables, plots).as_dict())
        return tables, plots

    def _kept(self, networks: Sequence[str], segments: Sequence[Segment]) -> Path:
        """Where token scores and probes of these weights on these clips are kept."""
        settings = self.settings
        identity = [
            PROBES_VERSION,
            networks,
            self.tokenizers.identities(),
            [segment.key for segment in segments],
            settings.vocal_noise_sigma,
            self.separated.identity if self.separated is not None else "",
            [name for name in ("tokens", "probes") if name in settings.metrics],
        ]
        return Path(settings.output) / "tokens" / f"{sha256_of_json(identity)[:16]}.json"

    def _separated_vocals(self, clips: Sequence[MusicClip]) -> list[npt.NDArray[np.float32]] | None:
        if self.separated is None:
            return None
        vocals = []
        for clip in clips:
            audio = self.separated.read(clip.segment)
            mono = resample(audio.mono().samples[0], audio.rate_hz, clip.semantic_hz)
            length = len(clip.sound.vocal)
            vocals.append(np.pad(mono[:length], (0, max(0, length - len(mono)))))
        return vocals

    def _facts(self) -> dict[str, Any]:
        settings = self.settings
        sampling = settings.sampling
        facts: dict[str, Any] = {
            "hafm_lightning": __version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "seed": settings.seed,
            "clips at once": settings.batch_clips,
            "sampling": f"guidance {sampling.guidance:g}, temperature {sampling.temperature:g}, top-k {sampling.top_k}",
            "tokenizers": {
                name: f"{identity['kind']} {identity['sha256'][:12]}"
                for name, identity in self.tokenizers.identities().items()
            },
        }
        if settings.has_model:
            facts["model"] = settings.model or ", ".join(
                filter(None, (settings.semantic, settings.coarse, settings.fine))
            )
        if self.separated is not None:
            facts["separated vocals"] = self.separated.identity
        return facts


def evaluate(settings: EvaluateSettings) -> Card:
    """Run an evaluation, write its card, log it to W&B where a project is named, and return it.

    Raises:
        RequestError: The settings are wrong, something is missing, or another evaluation writes to ``output``.
    """
    evaluation, output = Evaluation(settings), Path(settings.output)
    with held(output / LOCK_NAME, f"{output}", "wait for it, or choose another folder: --output DIR", erase=True):
        card = evaluation.run()
        if settings.wandb_project:
            print(log_to_wandb(card, output, settings.wandb_project))
    return card
