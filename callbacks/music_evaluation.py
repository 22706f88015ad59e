"""Music at each validation epoch: the stage in training accompanies held-out vocals, and the result is measured.

For vocal-active segments of MUSDB18's test songs (33 x 3 s as in the paper, by default), the stage writes its target
from true conditions; the target is decoded. Logged are

``music/fad_<embedding>``
    Frechet audio distance of the decoded clips to the true accompaniments. A stage without sound (a semantic one
    without later checkpoints) logs ``music/semantic_centroid_frechet`` instead, which is no FAD.
``music/fad_<embedding>_codec``
    The same distance of the true accompaniments through the codec with as many codebooks: the lower bound.
``music/fad_vggish_paper``
    The paper's value for as many codebooks (2.10 for 4, 1.71 for 8), a level line; only in its protocol (33 clips of
    3 s, HuBERT and EnCodec). ``protocol.json`` says how the paper's protocol differs.
``music/accuracy``, ``music/accuracy_top10``, ``music/loss``, each also per codebook
    Teacher-forced token metrics on the same clips.
``music/clips``, ``music/failed``, ``music/seconds``
    Clips over all processes; those whose sound was not finite (counted as silence); seconds that this took.

Choices:

* Processes share the clips, and all numbers are summed states: they are the same on 1 and on N processes.
* Each clip has a seed of its own, and the run's generators are restored: losses with and without this callback are
  equal bit for bit.
* Weights & Biases gets sounds and spectrograms; the same files are written to ``<log folder>/music/``, with
  ``protocol.json``: segments, embeddings with their hashes, sampling and seed.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torchmetrics import SumMetric

from hafm_lightning.callbacks.music_sources import (
    PAPER_PROTOCOL,
    available,
    checkpoints_beside,
    paper_fad,
)
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.distances.frechet import FrechetAudioDistance
from hafm_lightning.evaluation.embeddings import EmbeddingSource
from hafm_lightning.evaluation.protocol.set_scores import embedding_rows
from hafm_lightning.evaluation.segments import SegmentSettings, select_segments
from hafm_lightning.evaluation.stage import (
    PROTOCOL_FILE,
    SOUNDS,
    StageMaterial,
    Waveforms,
    centroid_rows,
    check_later_stages,
    codes_for,
    decode_clips,
    read_material,
    write_protocol,
    write_sounds,
    write_target,
)
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.token_scores import score, score_names, summarise
from hafm_lightning.progress import progress
from hafm_lightning.stages import Stage, load_stage
from hafm_lightning.tokenizers import load_tokenizers
from hafm_lightning.tokens import INSTRUMENTAL_COARSE, INSTRUMENTAL_FINE, INSTRUMENTAL_SEMANTIC
from hafm_lightning.training.protocols import TokenSource
from hafm_lightning.training.token_means import TokenMeans


class MusicEvaluation(Callback):
    """Generate, decode and measure at each validation epoch.

    Args:
        root: Folder with ``test`` in the layout of MUSDB18-HQ; None measures nothing.
        optional: Measure nothing, with one line, where ``root`` does not exist; it is refused otherwise.
        split: ``test`` or ``train``.
        clips: Segments over all processes.
        duration_s: Length of a segment in seconds.
        every_n_validations: Measure at every n-th validation epoch, from the first on.
        embeddings: Embeddings that FAD is computed with. Where published weights cannot be downloaded, ``logmel`` takes
            their place, with one line.
        sampling: Guidance and sampling; the defaults are the paper's.
        seed: Draws the segments and, with each clip's number, its tokens.
        tokenizers: Folder of the tokenizers; by default the one beside the shards.
        heard_through: How a semantic stage gets sound: ``auto`` takes the newest coarse and fine checkpoints of the
            runs beside this one (``logs/coarse`` beside ``logs/semantic``) where there are any,
            ``named`` only ``coarse`` and ``fine`` below.
        coarse: Checkpoint that writes coarse tokens for a semantic stage, so that it has sound.
        fine: Checkpoint for the fine tokens after these; without one, 4 codebooks are decoded.
        vocal_noise_sigma: Noise on the vocals before they are tokenized (preparation's sigma); 0 for clean vocals.
        batch_clips: Clips generated at once.
        audio_clips: Clips whose sound and spectrograms are kept at each measurement; 0 for none.
        gate_db: See :class:`~hafm_lightning.evaluation.segments.SegmentSettings`.
        active: See there.
    """

    def __init__(
        self,
        root: str | None,
        optional: bool = False,
        split: str = "test",
        clips: int = 33,
        duration_s: float = 3.0,
        every_n_validations: int = 1,
        embeddings: list[EmbeddingSource] | None = None,
        sampling: SamplingOptions = SamplingOptions(),
        seed: int = 0,
        tokenizers: str | None = None,
        heard_through: Literal["auto", "named"] = "auto",
        coarse: str | None = None,
        fine: str | None = None,
        vocal_noise_sigma: float = 0.0,
        batch_clips: int = 16,
        audio_clips: int = 3,
        gate_db: float = -30.0,
        active: float = 0.7,
    ) -> None:
        if clips < 1 or every_n_validations < 1 or batch_clips < 1 or audio_clips < 0:
            raise RequestError(
                "MusicEvaluation: clips, every_n_validations and batch_clips start at 1, audio_clips at 0; "
                f"got {clips}, {every_n_validations}, {batch_clips} and {audio_clips}"
            )
        if optional and root is not None and not Path(root).expanduser().is_dir():
            self._absent, root = root, None
        else:
            self._absent = ""
        self.root, self.heard_through = root, heard_through
        self.segments = SegmentSettings(
            root or "", split, duration_s, clips=clips, gate_db=gate_db, active=active, seed=seed
        )
        self.every_n_validations = every_n_validations
        self.sources = [EmbeddingSource()] if embeddings is None else embeddings
        self.sampling, self.seed = sampling, seed
        self.tokenizers_folder = tokenizers
        self.later_paths = {name: path for name, path in (("coarse", coarse), ("fine", fine)) if path is not None}
        self.vocal_noise_sigma = vocal_noise_sigma
        self.batch_clips, self.audio_clips = batch_clips, audio_clips
        self.validations = 0
        self._material: StageMaterial | None = None
        self._warned = False

    def check_request(self, command: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse folders and files that do not exist, before anything of the run is written."""
        if self.root is not None and not Path(self.root).expanduser().is_dir():
            raise RequestError(
                f"MusicEvaluation: `root` {self.root} does not exist\n"
                "give the folder of MUSDB18-HQ (the shipped configurations take MUSDB18_HQ from the environment; unset "
                "it to measure no music)"
            )
        for name, path in self.later_paths.items():
            if self.root is not None and not Path(path).is_file():
                raise RequestError(f"MusicEvaluation: the checkpoint `{name}` {path} does not exist")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read and tokenize the clips, so that a wrong path ends the run before training."""
        if self.root is None:
            reason = "its `root` is not set (the shipped configurations take it from MUSDB18_HQ in the environment)"
            if self._absent:
                reason = f"its `root` {self._absent} does not exist (looked for in {Path.cwd()})"
            rank_zero_info(f"MusicEvaluation measures no music: {reason}")
        else:
            self._prepare(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, at every n-th validation outside the sanity check."""
        if trainer.sanity_checking or self.root is None:
            return
        self.validations += 1
        if (self.validations - 1) % self.every_n_validations:
            return
        material = self._prepare(trainer, pl_module)
        with isolate_rng(), torch.inference_mode():
            values = self._measure(trainer, _stage_of(pl_module), material)
        for name, value in values.items():
            pl_module.log(f"music/{name}", value, sync_dist=False, prog_bar=name.startswith("fad"))

    def state_dict(self) -> dict[str, Any]:
        """Number of validations, so that a resumed run measures at the same ones."""
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.validations = int(state_dict["validations"])

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> StageMaterial:
        if self._material is None:
            with isolate_rng(), torch.inference_mode():
                self._material = self._read(trainer, _stage_of(pl_module))
        return self._material

    def _read(self, trainer: pl.Trainer, stage: Stage) -> StageMaterial:
        data = getattr(trainer, "datamodule", None)  # Lightning has none outside its own loops
        beside_shards = data.tokenizers_folder if isinstance(data, TokenSource) else None
        folder = self.tokenizers_folder or beside_shards or stage.tokenizers_folder
        if folder is None:
            raise RequestError("MusicEvaluation: no tokenizers beside the data; name their folder in `tokenizers`")
        tokenizers = load_tokenizers(folder, device=stage.device)
        if stage.tokenizers and tokenizers.identities() != stage.tokenizers:
            raise RequestError(
                f"MusicEvaluation: the training data was made with a different tokenizer than those in {folder}; "
                "name the folder beside the shards in `tokenizers`"
            )
        later = self._later_stages(trainer, stage)
        selection = select_segments(self.segments)
        if trainer.is_global_zero and (selection.missing or selection.problems):
            warnings.warn(
                f"MusicEvaluation: {len(selection.segments)} of {self.segments.clips} clips from {selection.songs} "
                f"songs; {len(selection.problems)} songs could not be read"
                + "".join(f"\n  {problem}" for problem in selection.problems[:3]),
                stacklevel=2,
            )
        material = read_material(
            selection,
            tokenizers,
            [other.model for other in later.values()],
            available(self.sources),
            conditions=[s.name for part in (stage, *later.values()) for s in part.model.layout.conditions],
            seed=self.seed,
            rank=trainer.global_rank,
            world=trainer.world_size,
            noise_sigma=self.vocal_noise_sigma,
            device=stage.device,
        )
        music = music_folder(trainer)
        if trainer.is_global_zero:
            more = {"sampling": asdict(self.sampling), "seed": self.seed, "vocal_noise_sigma": self.vocal_noise_sigma}
            more |= {"heard_through": self.later_paths, "paper": PAPER_PROTOCOL}
            write_protocol(music / PROTOCOL_FILE, selection, material, more)
        return material

    def _later_stages(self, trainer: pl.Trainer, stage: Stage) -> dict[str, Stage]:
        """The stages that a semantic stage is decoded through: those named, else those of the runs beside this one."""
        if self.later_paths or self.heard_through != "auto" or stage.target != INSTRUMENTAL_SEMANTIC.name:
            later = {name: load_stage(path, device=stage.device) for name, path in self.later_paths.items()}
            check_later_stages(stage, later)
            return later
        paths: dict[str, str] = trainer.strategy.broadcast(checkpoints_beside(Path(trainer.default_root_dir)))
        later = {}
        for name, path in paths.items():
            try:
                one = load_stage(path, device=stage.device)
                check_later_stages(stage, {**later, name: one})
            except RequestError as error:
                rank_zero_info(f"MusicEvaluation leaves {path} out: {str(error).splitlines()[0]}")
                break
            later[name], self.later_paths[name] = one, path
        if later:
            rank_zero_info(f"MusicEvaluation decodes this stage through {' and '.join(self.later_paths.values())}")
        return later

    def _measure(self, trainer: pl.Trainer, stage: Stage, material: StageMaterial) -> dict[str, float]:
        started = time.perf_counter()
        was_training = stage.training
        stage.eval()
        target = stage.model.layout.target
        device = stage.device if stage.device.type == "cuda" else torch.device("cpu")
        means, failures = TokenMeans(score_names(target.codebooks)).to(device), SumMetric().to(device)
        centroids = material.tokenizers.semantic.centroids
        if target.name != INSTRUMENTAL_SEMANTIC.name or material.later:
            widths = {f"fad_{e.name}{end}": e.dimensions for e in material.embeddings for end in ("", "_codec")}
        else:
            widths = {"semantic_centroid_frechet": centroids.shape[1]}
        distances = {
            name: FrechetAudioDistance(width, name=f"music/{name}", warn=not self._warned).to(device)
            for name, width in widths.items()
        }
        self._warned = True  # of few rows: once a run, not once a validation
        waveforms: Waveforms = []
        failed, batch = 0, material.batch
        if batch is not None:
            write = partial(write_target, sampling=self.sampling, seeds=material.seeds, batch_clips=self.batch_clips)
            with progress("Music evaluation", total=len(batch), unit="clips") as bar:
                written = write(stage.model, batch, on_clips=bar.advance)
            for start in range(0, len(batch), self.batch_clips):
                part = batch.rows(range(start, min(start + self.batch_clips, len(batch)))).to(stage.device)
                means.update(summarise(score(stage.model, part), 0, target.codebooks), len(part))
            codes = codes_for(target.name, written, batch, material.later, write)
            rows = {}  # metric -> rows to measure, true rows
            if codes is None:
                pair = (centroid_rows(centroids, written), centroid_rows(centroids, batch[target.name]))
                rows["semantic_centroid_frechet"] = pair
            else:
                waveforms, failed = decode_clips(material.tokenizers.acoustic, codes)
                for embedding in material.embeddings:
                    true, ceiling = material.reference_rows(embedding, codes.shape[1])
                    generated = embedding_rows(embedding, waveforms, material.rate_hz)
                    rows |= {f"fad_{embedding.name}": (generated, true), f"fad_{embedding.name}_codec": (ceiling, true)}
            for name, (measured, true) in rows.items():
                distances[name].update(torch.from_numpy(measured))
                distances[name].update(torch.from_numpy(true), real=True)
        failures.update(float(failed))
        values = {name: float(metric.compute()) for name, metric in distances.items()}
        values |= self._paper_values(material, stage)
        values |= {name: float(value) for name, value in means.compute().items()}
        values |= {"clips": float(material.total), "failed": float(failures.compute())}
        self._keep_sound(trainer, material, waveforms)
        stage.train(was_training)
        # the slowest process decides: every one reports the same number
        seconds = trainer.strategy.reduce(torch.tensor(time.perf_counter() - started, device=device), reduce_op="max")
        return values | {"seconds": float(seconds)}

    def _paper_values(self, material: StageMaterial, stage: Stage) -> dict[str, float]:
        """The paper's FAD where this run measures in its protocol."""
        last = material.later[-1].layout.target.name if material.later else stage.model.layout.target.name
        codebooks = {INSTRUMENTAL_COARSE.name: 4, INSTRUMENTAL_FINE.name: 8}.get(last, 0)
        identities = material.tokenizers.identities()
        values = {
            f"fad_{e.name}_paper": paper_fad(e.name, codebooks, material.total, self.segments.duration_s, identities)
            for e in material.embeddings
        }
        return {name: value for name, value in values.items() if value is not None}

    def _keep_sound(self, trainer: pl.Trainer, material: StageMaterial, waveforms: Waveforms) -> None:
        folder = music_folder(trainer)
        if not trainer.is_global_zero or not self.audio_clips or not waveforms:
            return
        step = folder / f"step-{trainer.global_step:08d}"
        written = write_sounds(material.clips[: self.audio_clips], waveforms[: self.audio_clips], step)
        for logger in trainer.loggers:
            if not isinstance(logger, WandbLogger):
                continue
            import wandb

            # media in a table would lie in a cache of this machine, and be lost where another one sends the run
            media: dict[str, Any] = {
                f"music/{name}": [wandb.Audio(f"{stem}.{name}.wav", caption=clip_id) for clip_id, stem in written]
                for name in SOUNDS
            }
            media["music/spectrograms"] = [wandb.Image(f"{stem}.png", caption=clip_id) for clip_id, stem in written]
            logger.experiment.log({**media, "trainer/global_step": trainer.global_step})


def music_folder(trainer: pl.Trainer) -> Path:
    """The folder of sounds and protocol; every process has to call this, since the log folder is broadcast."""
    return Path(trainer.log_dir or trainer.default_root_dir) / "music"


def _stage_of(module: pl.LightningModule) -> Stage:
    if not isinstance(module, Stage):
        raise RequestError(f"MusicEvaluation: expected one of this project's stages, got {type(module).__name__}")
    return module
