"""``evaluate`` from settings to card: select clips, play systems, score clips, sets and tokens, write the card.

Everything expensive is stored under ``output``: generations, embedding rows, scores. A stopped run continues, and one
more metric or row costs only itself. Works without a model too: the controls alone show what a corpus, a codec and an
embedding can distinguish.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from hafm_lightning import __version__
from hafm_lightning.accompanist import Accompanist
from hafm_lightning.accompanist.stage_network import pick_device
from hafm_lightning.accompanist.windows import GRID_S
from hafm_lightning.evaluation.card.card import Card, Table, load_card
from hafm_lightning.evaluation.card.dashboard import log_to_wandb
from hafm_lightning.evaluation.card.page import write_card
from hafm_lightning.evaluation.contrasts import SetScore
from hafm_lightning.evaluation.embeddings import load_embedding
from hafm_lightning.evaluation.protocol.clip_scores import clip_cells, score_played
from hafm_lightning.evaluation.protocol.columns import Cells, clip_columns
from hafm_lightning.evaluation.protocol.set_scores import SetColumns
from hafm_lightning.evaluation.protocol.table import (
    contrasts_of,
    difference_table,
    model_table,
    players_of,
    speed_cells,
    system_table,
)
from hafm_lightning.evaluation.segments import (
    ClipReader,
    NoSegmentsError,
    SelectedClips,
    select_segments,
    tokenize_clips,
)
from hafm_lightning.evaluation.settings import EvaluateSettings, ProtocolSettings
from hafm_lightning.evaluation.systems.band import Band, ModelSource
from hafm_lightning.evaluation.systems.base import (
    LABELS,
    MODEL_PREFIX,
    GroundTruth,
    OtherVocal,
    RandomPairing,
    System,
    ThroughCodec,
)
from hafm_lightning.evaluation.systems.controls import CONTROLS
from hafm_lightning.evaluation.systems.generations import Generations
from hafm_lightning.evaluation.systems.models import main_source, other_sources
from hafm_lightning.evaluation.systems.retrieval import Retrieval
from hafm_lightning.evaluation.systems.separated import SeparatedVocals
from hafm_lightning.evaluation.token_scores.probes import probe_plots
from hafm_lightning.evaluation.token_scores.scores import stored_clips
from hafm_lightning.evaluation.token_scores.table import token_table
from hafm_lightning.files import sha256_of_json, write_json
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.token_scores import song_of
from hafm_lightning.page.figures import Plot
from hafm_lightning.processes.locks import LOCK_NAME, held
from hafm_lightning.processes.pool import LocalPool, SerialPool, local_pool
from hafm_lightning.shards import open_shards
from hafm_lightning.tokenizers import load_tokenizers
from hafm_lightning.tokens import TokenBatch

SET_METRICS = {"fad", "kd", "apa"}
"""Metrics that need embeddings."""
TOKENS_VERSION = 4
"""Raised when a definition changes: stored token scores and probes are computed again."""


def evaluate(settings: EvaluateSettings) -> Card:
    """Run an evaluation, write its card, log it to W&B where a project is named, and return it.

    Raises:
        RequestError: The settings are wrong, something is missing, or another evaluation writes to ``output``.
    """
    output = Path(settings.output)
    with local_pool(settings.workers, threads=1) as pool:
        evaluation = Evaluation(settings, pool)
        with held(output / LOCK_NAME, f"{output}", "wait for it, or choose another folder: --output DIR", erase=True):
            card = evaluation.run()
            if settings.wandb_project:
                print(log_to_wandb(card, output, settings.wandb_project))
    return card


class Evaluation:
    """One run of ``evaluate``; the processes of ``pool`` generate and score."""

    def __init__(self, settings: EvaluateSettings, pool: LocalPool) -> None:
        self.settings, self.pool, self.output = settings, pool, Path(settings.output)
        self.device = pick_device(settings.device)
        self.tokenizers = load_tokenizers(settings.tokenizers, device=self.device)
        # weights are downloaded only for columns that need them
        wanted = settings.embeddings if SET_METRICS & set(settings.metrics) else ()
        self.embeddings = [load_embedding(source).to(self.device) for source in wanted]
        self.absent = {name: reason for name in settings.systems if (reason := settings.absent(name))}
        self.systems = [name for name in settings.systems if name not in self.absent]
        self.separated: SeparatedVocals | None = None
        if "separated" in self.systems:
            self.separated = SeparatedVocals(settings.separated, settings.separation)
        self.source, self.others = main_source(settings), other_sources(settings)
        self.models: dict[ModelSource, Accompanist] = {}

    def run(self) -> Card:
        """Everything; writes the card and returns it."""
        selected = self._selected()
        tables: list[Table] = []
        for protocol, clips in selected:
            tables += self._protocol(protocol, clips)
        token_tables, plots = self._tokens(max((clips for _, clips in selected), key=lambda it: it.duration_s))
        tables += token_tables
        card = Card("Evaluation of vocal-to-accompaniment models", self._facts(), tables, plots, self.absent)
        write_card(card, self.output)
        return card

    def _selected(self) -> list[tuple[ProtocolSettings, SelectedClips]]:
        """The clips of each protocol; one whose segments the songs do not have is left out, unless all are."""
        selected, errors = [], []
        for protocol in self.settings.protocols:
            try:
                selected.append((protocol, self._select(protocol, self.settings.split)))
            except NoSegmentsError as error:
                self.absent[f"protocol {protocol.name}"] = str(error).splitlines()[0]
                errors.append(error)
        if not selected:
            raise errors[0]
        return selected

    def _select(self, protocol: ProtocolSettings, split: str) -> SelectedClips:
        selection = select_segments(protocol.segments(self.settings.root, split))
        return SelectedClips(selection, ClipReader.of(self.tokenizers))

    def _protocol(self, protocol: ProtocolSettings, clips: SelectedClips) -> list[Table]:
        """The tables of one protocol: play every system, score what it played, fill the columns."""
        settings, folder, seed = self.settings, self.output / protocol.name, self.settings.seed
        played = self.play(folder, clips) | self._play_others(folder, clips)
        columns = clip_columns(settings.metrics)
        scores = score_played(clips, played, folder / "scores", self.pool) if columns else {}
        sets = []
        if self.embeddings:
            training = None
            if settings.reference == "train" and {it.name for it in self.embeddings} - set(settings.statistics):
                training = self._select(replace(protocol, clips=settings.reference_clips, per_song=0), "train")
            for it in self.embeddings:
                statistics = settings.statistics.get(it.name, "")
                sets.append(SetColumns(clips, it, settings.metrics, folder, seed, training, statistics))
        cells: Cells = {}
        set_scores: dict[str, dict[str, SetScore]] = {}
        for part in sets:
            cells |= part.cells(played)
            set_scores |= part.scores
        cells |= clip_cells(clips, scores, columns)
        if "speed" in settings.metrics:
            cells |= speed_cells(clips, played, settings.batch_clips, self.pool.processes)
        contrasts = contrasts_of(clips, played, scores, columns, set_scores)
        table = system_table(protocol.name, clips, played, cells, contrasts)
        ranked_by = next((column for column in columns if column.key == settings.rank_by), None)
        players = []
        if ranked_by is not None and played:
            row = settings.players if settings.players in played else list(played)[-1]
            players = players_of(played[row], clips, scores[row], ranked_by, settings.player_clips, folder)
        facts = {
            **table.protocol,
            "settings": asdict(protocol),
            "segments": [segment.clip_id for segment in clips.segments],
            "problems": clips.selection.problems,
            "embeddings": [embedding.provenance() for embedding in self.embeddings],
        }
        about = [*table.about, *(part.about() for part in sets)]
        tables = [replace(table, about=about, players=players, protocol=facts)]
        controls = [name for name in settings.differences if name in scores]
        if controls and settings.players in scores:
            tables.append(difference_table(table, contrasts, settings.players, controls))
        models = [name for name in played if name == "three_stages" or name.startswith(MODEL_PREFIX)]
        if self.others and len(models) > 1:
            tables.append(model_table(table, contrasts, models))
        return tables

    def play(self, folder: Path, clips: SelectedClips) -> dict[str, Generations]:
        """Sounds of every row that can be made, in the order of the settings."""
        one_song = len(set(clips.songs)) < 2
        played: dict[str, Generations] = {}
        for name in sorted(self.systems, key=lambda name: name == "other_vocal"):  # it uses the takes of another row
            if one_song and name in ("random", "other_vocal"):
                self.absent[f"{folder.name}: {name}"] = f"{LABELS[name]} needs clips of at least two songs"
                continue
            played[name] = Generations(folder, self._system(name, clips, played))
            played[name].make(clips, self.settings.batch_clips, self.pool)
        return {name: played[name] for name in self.systems if name in played}

    def _play_others(self, folder: Path, clips: SelectedClips) -> dict[str, Generations]:
        """Sounds of the models that are compared, with the seeds and sampling of the first one."""
        played = {}
        for name, source in self.others.items():
            row, label = f"{MODEL_PREFIX}{name}", f"{LABELS['three_stages']}: {name}"
            played[row] = Generations(folder, self.band(source, row, self.settings.sampling, label))
            played[row].make(clips, self.settings.batch_clips, self.pool)
        return played

    def band(self, source: ModelSource, name: str, sampling: SamplingOptions, label: str = "") -> Band:
        """A model as the row ``name``."""
        band = self._model(source)
        separated = self.separated if name == "separated" else None
        # several processes on one GPU would share its memory
        worker_source = source if band.device.type == "cpu" else None
        seed, noise = self.settings.seed, name != "clean_vocal"
        return Band(band, sampling, seed, name, separated, worker_source, noise=noise, label=label)

    def _system(self, name: str, clips: SelectedClips, played: dict[str, Generations]) -> System:
        """One row; ``other_vocal`` uses the row ``three_stages`` of ``played``."""
        settings = self.settings
        if name == "ground_truth":
            return GroundTruth()
        if name.startswith("codec_"):
            return ThroughCodec(self.tokenizers, codebooks=int(name.removeprefix("codec_")))
        if name == "random":
            return RandomPairing(clips, settings.pairing, settings.seed)
        if name in CONTROLS:
            return CONTROLS[name](settings.seed)
        if name == "retrieval":
            return Retrieval(open_shards(settings.shards, "train"), self.tokenizers)
        if name == "other_vocal":
            model = played["three_stages"]
            return OtherVocal(clips, model.system.identity, model.outcome)
        source = replace(self.source, stages=2 if name == "two_stages" else 3)
        return self.band(source, name, settings.sampling)

    def _model(self, source: ModelSource) -> Accompanist:
        """A model, loaded once."""
        if source not in self.models:
            self.models[source] = model = source.load(self.tokenizers)
            if model.precision_note is not None:
                warnings.warn(model.precision_note, stacklevel=2)
        return self.models[source]

    def _tokens(self, clips: SelectedClips) -> tuple[list[Table], list[Plot]]:
        """Token table, on segments or on stored clips, and probes on segments."""
        settings, split = self.settings, self.settings.token_split
        wanted = [name for name in ("tokens", "probes") if name in settings.metrics]
        if not wanted:
            return [], []
        if not settings.has_model and not self.others:
            self.absent["tokens and probes"] = "no `model` and no checkpoints"
            return [], []
        segments = clips.segments[: settings.token_clips or None]
        stored = stored_clips(settings.shards, split, settings.token_clips) if split else None
        segment_songs = [segment.song.id for segment in segments]
        songs = segment_songs if stored is None else [*map(song_of, stored.clip_ids)]
        if len(set(songs)) < 2 or ("probes" in wanted and len(set(segment_songs)) < 2):
            self.absent["tokens and probes"] = "another song's vocal needs clips of at least two songs"
            return [], []
        sources = {name: replace(source, precision="fp32") for name, source in self.others.items()}
        if settings.has_model:
            main = replace(self.source, precision="fp32", stages=3 if settings.model or settings.fine else 2)
            sources = {"": main} | sources
        tables: list[Table] = []
        plots: list[Plot] = []
        for name, source in sources.items():
            # probes take long: of the first model alone
            found = self._tokens_of(source, clips, stored, songs, wanted if not plots else ["tokens"])
            tables += [replace(it, name=f"{it.name}: {name}") if name else it for it in found.tables]
            plots += found.plots
        return tables, plots

    def _tokens_of(
        self,
        source: ModelSource,
        clips: SelectedClips,
        stored: TokenBatch | None,
        songs: list[str],
        wanted: Sequence[str],
    ) -> Card:
        """Token table and probes of one model, computed once; ``wanted`` names which of the two."""
        settings, split = self.settings, self.settings.token_split
        segments = clips.segments[: settings.token_clips or None]
        model, sigma = self._model(source), settings.vocal_noise_sigma
        loaded, context_s = model.networks, float(model.window * GRID_S)
        identity = [
            TOKENS_VERSION,
            [network.sha256 for network in loaded],
            self.tokenizers.identities(),
            [segment.key for segment in segments],
            sigma,
            context_s,
            self.separated.identity if self.separated is not None else "",
            wanted,
        ]
        if stored is not None:
            identity += [stored.clip_ids, sha256_of_json({n: ids.tolist() for n, ids in stored.streams.items()})]
        file = self.output / "tokens" / f"{sha256_of_json(identity)[:16]}.json"
        if file.is_file():
            return load_card(file)
        networks: dict[str, TokenModel] = {network.role: network.model for network in loaded}
        conditions = [stream.name for model in networks.values() for stream in model.layout.conditions]
        music = [clips.load(segment) for segment in segments] if stored is None or "probes" in wanted else []
        batch = tokenize_clips(music, self.tokenizers, sigma, conditions, context_s) if music else None
        scored = batch if stored is None else stored
        tables, plots = [], []
        if scored is not None and "tokens" in wanted:
            origin = f"protocol with segments of {clips.duration_s:g} s, tokenized in {context_s:g} s of the song, "
            origin += f"noise on the vocal: sigma {sigma:g}"
            if stored is not None:
                origin = f"split {split} of {settings.shards}, tokens as stored"
            about = f"{len(scored)} clips of {scored.duration_s:g} s from {len(set(songs))} songs: {origin}; fp32"
            pool = self.pool if self.device.type == "cpu" else SerialPool()
            tables.append(token_table(networks, scored, songs, [about], pool, source))
        if batch is not None and "probes" in wanted:
            separated = None if self.separated is None else self.separated.mono
            plots = probe_plots(networks, music, batch, self.tokenizers, sigma, separated, context_s)
        card = Card("tokens", {}, tables, plots)
        write_json(file, card.as_dict())
        return card

    def _facts(self) -> dict[str, Any]:
        settings, sampling, identities = self.settings, self.settings.sampling, self.tokenizers.identities()
        facts: dict[str, Any] = {
            "hafm_lightning": __version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "seed": settings.seed,
            "clips at once": settings.batch_clips,
            "sampling": f"guidance {sampling.guidance:g}, temperature {sampling.temperature:g}, top-k {sampling.top_k}",
            "tokenizers": {name: f"{it['kind']} {it['sha256'][:12]}" for name, it in identities.items()},
        }
        if self.pool.processes > 1:
            facts["processes"] = self.pool.processes
        if settings.has_model:
            checkpoints = filter(None, (settings.semantic, settings.coarse, settings.fine))
            facts["model"] = settings.model or ", ".join(checkpoints)
        if self.others:
            facts["models compared"] = settings.models
        if self.separated is not None:
            facts["separated vocals"] = self.separated.identity
        return facts
