"""The three stages as LightningModules: one behaviour, three layouts.

A :class:`Stage` trains a plain :class:`~hafm_lightning.modeling.token_model.TokenModel`: loss, token metrics, guidance
dropout, optimizer, and the description in its checkpoints. Everything optional is a callback.

Logged, for ``train``, ``val`` and ``test`` (``*`` is the split; ``q0``.. are codebooks of the target):

``*/loss``, ``*/accuracy``, ``*/accuracy_top10``
    Cross-entropy in nats, mean over codebooks; share of true tokens that rank first, and within the first ten.
``*/loss_q0``, ``*/accuracy_q0``, ``*/accuracy_top10_q0`` ...
    The same for each codebook, where there is more than one.
``val/loss_null``, ``val/conditioning_gain``
    Loss with null conditions, and loss_null - loss, in nats.
``val/loss_other``, ``val/other_song_gap``
    Loss with **all** conditions of another song, and loss_other - loss: above 0 where the stage follows its conditions.
``val/other_vocal_gap``
    The same with the **vocal** of another song and the other conditions true: above 0 where the stage follows the
    vocal itself. Not logged by a stage without the vocal (fine).
    The pairs of songs are fixed (``modeling/token_scores.py``); with one song there is no such metric.

Source: HAFM (arXiv 2604.09054), sections 3.2 (stages), 3.4 (architecture) and 3.5 (training).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor

from hafm_lightning.checkpoint_format import (
    CHECKPOINT_FORMAT,
    METADATA_KEY,
    check_continues,
    check_weights,
    checked_metadata,
    read_checkpoint,
    role_of,
    weights_of,
)
from hafm_lightning.errors import RequestError
from hafm_lightning.kernels import Kernels, for_training
from hafm_lightning.modeling.conditioning import drop_at_random
from hafm_lightning.modeling.layout import Conditioning, Pattern
from hafm_lightning.modeling.relative_position import PrefixMask, RelativePositionKind
from hafm_lightning.modeling.token_model import TokenModel, TokenModelConfig
from hafm_lightning.modeling.token_scores import (
    TokenScores,
    has_other_song,
    other_song,
    score,
    score_names,
    summarise,
    token_cross_entropy,
    vocal_conditions,
    without_conditions,
)
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.optimizer import OptimizerConfig, adamw, follow_settings
from hafm_lightning.shards.manifest import stream_description
from hafm_lightning.tokenizers.compatibility import check_same_tokenizers
from hafm_lightning.tokens import TokenBatch
from hafm_lightning.training.internals import NotesMoves, finishes_step, writes_row
from hafm_lightning.training.protocols import ShardSource, TokenSource
from hafm_lightning.training.step_weights import StepWeights, check_training
from hafm_lightning.training.token_means import TokenMeans
from hafm_lightning.untrusted import checked

__all__ = ["STAGES", "CoarseStage", "FineStage", "SemanticStage", "Stage", "load_stage"]


class Stage(NotesMoves, pl.LightningModule):
    """One stage in training.

    A subclass names the stream that it writes (``target``), its usual conditions (``default_conditions``) and its place
    in the chain (``role``). Override :meth:`training_loss` to train on another loss: a subclass of one of the three
    keeps its role, so that its checkpoints are generated with, exported and evaluated as those of the three.

    Args:
        pattern: ``flattened`` (the paper), ``delay``, ``parallel`` or ``nonautoregressive``.
        conditioning: ``prefix`` (the paper) or ``aligned`` (recommended).
        relative_position: ``time`` or ``index`` (the paper to the letter); they differ with a prefix.
        backbone: Size of the Transformer.
        conditions: Names of the condition streams, in order; default: the paper's for this stage.
        prefix_mask: ``causal`` (the paper) or ``bidirectional`` among the conditions of a prefix.
        look_ahead_s: For ``aligned``: seconds of the conditions ahead of a frame that it depends on.
        look_behind_s: For ``aligned``: seconds that the conditions' convolution reaches back.
        guidance_dropout: Probability with which all conditions of a training clip become null tokens; a style does so
            by itself too.
        optimizer: AdamW settings.
        kernels: ``auto`` takes those of the device (:mod:`hafm_lightning.kernels`), ``none`` PyTorch's operations: the
            same results, slower.
    """

    target: ClassVar[str]
    default_conditions: ClassVar[tuple[str, ...]]
    role: ClassVar[str]

    def __init__(
        self,
        pattern: Pattern = "flattened",
        conditioning: Conditioning = "prefix",
        relative_position: RelativePositionKind = "time",
        backbone: BackboneConfig = BackboneConfig(),
        conditions: list[str] | None = None,
        prefix_mask: PrefixMask = "causal",
        look_ahead_s: float = 0.3,
        look_behind_s: float = 0.3,
        guidance_dropout: float = 0.1,
        optimizer: OptimizerConfig = OptimizerConfig(),
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        if not 0 <= guidance_dropout < 1:
            raise RequestError(f"guidance_dropout must be in [0, 1), got {guidance_dropout}")
        config = TokenModelConfig(
            conditions=self.default_conditions if conditions is None else tuple(conditions),
            target=self.target,
            pattern=pattern,
            conditioning=conditioning,
            relative_position=relative_position,
            prefix_mask=prefix_mask,
            look_ahead_s=look_ahead_s,
            look_behind_s=look_behind_s,
            backbone=backbone,
        )
        self.model = TokenModel(config)
        self.kernels = kernels
        for_training(self.model, kernels)
        self.guidance_dropout = guidance_dropout
        self.optimizer_config = optimizer
        self.tokenizers: dict[str, Any] = {}
        self.tokenizers_folder: str | None = None
        self.styles: list[str] = []
        self.vocal_noise_sigma: float | None = None
        self.duration_s: float | None = None
        names = score_names(self.model.layout.target.codebooks)
        names += ["loss_null", "loss_other", "conditioning_gain", "other_song_gap", "other_vocal_gap"]
        self.train_means, self.evaluation_means = TokenMeans(names), TokenMeans(names)
        self._step_weights = StepWeights()
        self._measures = False
        self._scores: dict[str, Tensor] = {}

    def on_moved(self) -> None:
        """Choose the kernels of the network's new device."""
        for_training(self.model, self.kernels)

    def forward(self, batch: TokenBatch | Mapping[str, Tensor], codebook: int | None = None) -> Tensor:
        """Logits ``[B, K, T, V]`` of the true target with its true conditions.

        With ``nonautoregressive`` and a ``codebook`` those of one, ``[B, 1, T, V]``.
        """
        streams = batch.streams if isinstance(batch, TokenBatch) else batch
        return self.model(streams, codebook)  # type: ignore[no-any-return]

    # --- training ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take over tokenizers and styles from the data; drop an unfinished step of an earlier fit."""
        if stage == "fit":
            check_training(self.trainer)
        self._step_weights = StepWeights()
        for means in (self.train_means, self.evaluation_means):
            means.reset()
        self.adopt(getattr(self.trainer, "datamodule", None))

    def adopt(self, data: Any) -> None:
        """Take over tokenizers and styles from a data module after its setup; RequestError for other tokenizers."""
        if not isinstance(data, TokenSource) or not data.tokenizers:
            return
        check_same_tokenizers(self.tokenizers, data.tokenizers)
        self.tokenizers = dict(data.tokenizers)
        self.tokenizers_folder = str(data.tokenizers_folder) if data.tokenizers_folder is not None else None
        manifests = data.manifests if isinstance(data, ShardSource) else {}
        self.styles = next((list(manifest.styles) for manifest in manifests.values()), [])
        sigmas = (manifest.preparation.get("noise_sigma") for manifest in manifests.values())
        self.vocal_noise_sigma = next((float(sigma) for sigma in sigmas if sigma is not None), None)

    def training_loss(self, batch: TokenBatch) -> Tensor:
        """The loss of a training step, a mean over the batch's clips; needs no Trainer.

        It is the cross-entropy with guidance dropout, mean over codebooks; with ``nonautoregressive`` of one random
        codebook.
        """
        layout, streams, targets = self.model.layout, batch.streams, batch[self.model.layout.target.name]
        if self.guidance_dropout and layout.conditions:
            streams = drop_at_random(streams, layout.conditions, self.guidance_dropout)
        codebook = 0
        if layout.pattern == "nonautoregressive":
            codebook = int(torch.randint(layout.target.codebooks, ()))
            logits, targets = self.model(streams, codebook), targets[:, codebook : codebook + 1]
        else:
            logits = self.model(streams)
        if not self._measures:  # ranks cost about as much as the loss: only in the steps that are written
            return token_cross_entropy(logits, targets).mean()
        scores = TokenScores.of(logits, targets)
        self._scores = summarise(scores, first_codebook=codebook, total=layout.target.codebooks)
        return scores.cross_entropy.mean()

    def training_step(self, batch: TokenBatch, batch_index: int) -> Tensor:
        """:meth:`training_loss`; optimized and logged is its mean over the clips of an optimizer step.

        In the steps that are written, the logged mean is over all processes.
        """
        del batch_index
        if self.duration_s is None:
            self.duration_s = batch.duration_s
        self._measures = bool(self.trainer.fast_dev_run) or writes_row(self.trainer)  # type: ignore[attr-defined]
        loss = self.training_loss(batch)
        means, scores = self.train_means, self._scores
        means.update({**scores, "loss": loss}, len(batch))
        if finishes_step(self.trainer):
            values = means.compute() if self._measures else {"loss": means.on_this_process("loss")}
            self.log("train/loss", values.pop("loss"), prog_bar=True, batch_size=len(batch))
            if scores:  # NaN for a codebook that no batch was trained on: an absent score would keep its last value
                names = score_names(self.model.layout.target.codebooks)[1:]
                rows = {f"train/{name}": values.get(name, math.nan) for name in names}
                self.log_dict(rows, batch_size=len(batch))
            means.reset()
        self._measures, self._scores = False, {}
        return self._step_weights.weigh(loss, len(batch), self.trainer)

    def on_after_backward(self) -> None:
        """Give the gradient of a finished step its scale."""
        self._step_weights.finish(self.parameters())

    def predict_step(self, batch: TokenBatch, batch_index: int) -> dict[str, Any]:
        """Per clip: id, cross-entropy with true and with null conditions (``predict`` writes them)."""
        del batch_index
        true = score(self.model, batch).clip_losses
        null = score(self.model, batch, without_conditions(batch, self.model.layout.conditions)).clip_losses
        return {"clip_ids": batch.clip_ids, "loss": true.cpu(), "loss_null": null.cpu()}

    def validation_step(self, batch: TokenBatch, batch_index: int) -> None:
        """Loss and accuracy with true conditions, loss with null ones and those of another song."""
        del batch_index
        conditions = self.model.layout.conditions
        values = summarise(score(self.model, batch), first_codebook=0, total=self.model.layout.target.codebooks)
        if conditions:
            null = score(self.model, batch, without_conditions(batch, conditions)).cross_entropy.mean()
            values |= {"loss_null": null, "conditioning_gain": null - values["loss"]}
            if has_other_song(batch):
                other = score(self.model, batch, other_song(batch, conditions)).cross_entropy.mean()
                values |= {"loss_other": other, "other_song_gap": other - values["loss"]}
                if vocal := vocal_conditions(conditions):
                    if len(vocal) < len(conditions):
                        other = score(self.model, batch, other_song(batch, vocal)).cross_entropy.mean()
                    values["other_vocal_gap"] = other - values["loss"]
        self.evaluation_means.update(values, len(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the means over the clips of all processes."""
        split = "test" if self.trainer.testing else "val"
        for name, value in self.evaluation_means.compute().items():  # equal on all processes
            self.log(f"{split}/{name}", value, prog_bar=name == "loss", sync_dist=True)
        self.evaluation_means.reset()

    test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

    def flops_per_step(self, batch: TokenBatch) -> float:
        """FLOPs of training on ``batch`` on one process: forward, and twice as many backward."""
        return 3 * self.model.config.forward_flops(len(batch), batch[self.model.layout.target.name].shape[-1])

    def configure_optimizers(self) -> Any:
        """AdamW over all parameters, with the schedule as a function of the step alone."""
        return adamw(self.parameters(), self.optimizer_config)

    def on_train_start(self) -> None:
        """Set an optimizer that a checkpoint has brought back to the settings of this run."""
        if self.trainer.global_step and self.has_own_optimizer():
            schedule = next((config.scheduler for config in self.trainer.lr_scheduler_configs), None)
            for optimizer in self.trainer.optimizers:
                follow_settings(optimizer, schedule, self.optimizer_config, self.trainer.global_step)

    @classmethod
    def has_own_optimizer(cls) -> bool:
        """Whether the optimizer is that of ``optimizer_config``: no subclass has made another one."""
        return cls.configure_optimizers is Stage.configure_optimizers

    # --- checkpoints ------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """The description of this stage in its checkpoints: plain values only."""
        layout = self.model.layout
        return {
            "format": CHECKPOINT_FORMAT,
            "stage": type(self).__name__,
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "role": getattr(self, "role", None),
            "model": self.model.config.as_dict(),
            "guidance_dropout": self.guidance_dropout,
            "optimizer": asdict(self.optimizer_config),
            "streams": {stream.name: stream_description(stream) for stream in (*layout.conditions, layout.target)},
            "tokenizers": self.tokenizers,
            "tokenizers_folder": self.tokenizers_folder,
            "styles": self.styles,
            "vocal_noise_sigma": self.vocal_noise_sigma,
            "duration_s": self.duration_s,
        }

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = None, **settings: Any
    ) -> Stage:
        """The stage in a checkpoint, as :func:`load_stage` reads it: the file says how it was built.

        Raises:
            RequestError: As :func:`load_stage`; another class of stage; or settings, which the file holds already.
        """
        if settings:
            raise RequestError(
                f"{cls.__name__}.load_from_checkpoint takes a path and map_location, not {', '.join(settings)}: the "
                "checkpoint says how its stage was built\nuse hafm_lightning.stages.load_stage(path, device=...)"
            )
        device = map_location if isinstance(map_location, torch.device | str) else "cpu"
        return load_stage(checkpoint_path, device=device, kind=None if cls is Stage else cls)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add :meth:`metadata`."""
        checkpoint[METADATA_KEY] = self.metadata()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another stage or layout before any weight is copied."""
        saved = checked_metadata(checkpoint, "the checkpoint")
        check_continues(saved, self.metadata())
        check_weights(weights_of(checkpoint["state_dict"]), weights_of(self.state_dict()), "the checkpoint")
        self.duration_s = saved["duration_s"]


class SemanticStage(Stage):
    """Vocal semantic tokens -> instrumental semantic tokens (38.6 M parameters at the paper's size)."""

    target = "instrumental_semantic"
    default_conditions = ("vocal_semantic",)
    role = "semantic"


class CoarseStage(Stage):
    """Vocal and instrumental semantic tokens -> acoustic codebooks 0-3 (42.5 M parameters at the paper's size)."""

    target = "instrumental_coarse"
    default_conditions = ("vocal_semantic", "instrumental_semantic")
    role = "coarse"


class FineStage(Stage):
    """Acoustic codebooks 0-3 -> acoustic codebooks 4-7 (44.1 M parameters at the paper's size)."""

    target = "instrumental_fine"
    default_conditions = ("instrumental_coarse",)
    role = "fine"


STAGES: Mapping[str, type[Stage]] = {kind.__name__: kind for kind in (SemanticStage, CoarseStage, FineStage)}


def load_stage(path: str | Path, *, device: torch.device | str = "cpu", kind: type[Stage] | None = None) -> Stage:
    """The stage in a local ``.ckpt`` file, in eval mode; only data is read.

    A subclass of one of the three stages is loaded as that stage: same network, same weights, without what the subclass
    adds. ``kind`` names the class to build instead; its constructor must take the arguments of a stage.

    Raises:
        RequestError: The file is a URL, missing, unreadable, not a stage of this project, or of a newer format.
    """
    checkpoint = read_checkpoint(path)
    saved = checked_metadata(checkpoint, str(path))
    known = {stage.role: stage for stage in STAGES.values()}
    if kind is None and role_of(saved) not in known:
        raise RequestError(f"{path}: unknown stage {saved['stage']!r}; known: {', '.join(STAGES)}")
    if kind is not None and kind.target != saved["model"].get("target"):
        raise RequestError(f"{path}: holds a {saved['stage']}, not a {kind.__name__}")
    built = known[str(role_of(saved))] if kind is None else kind
    settings = dict(saved["model"])
    target = settings.pop("target", None)
    try:
        config = TokenModelConfig.from_dict(saved["model"])
        stage = built(
            **settings | {"backbone": config.backbone, "conditions": list(config.conditions)},
            guidance_dropout=saved["guidance_dropout"],
            optimizer=checked(saved["optimizer"], OptimizerConfig, str(path), "train it again"),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise RequestError(f"{path}: the description of its stage cannot be used ({error})") from error
    written = stage.model.layout.target.name
    if written != target:
        raise RequestError(f"{path}: a {saved['stage']} writes {written!r}, the file says {target!r}")
    stage.tokenizers, stage.duration_s = saved["tokenizers"], saved["duration_s"]
    stage.tokenizers_folder, stage.styles = saved["tokenizers_folder"], list(saved.get("styles", ()))
    stage.vocal_noise_sigma = saved.get("vocal_noise_sigma")
    subclass = kind is None and built.__name__ != saved["stage"]  # it may have more than its network
    weights, expected = (weights_of(state, subclass) for state in (checkpoint["state_dict"], stage.state_dict()))
    check_weights(weights, expected, str(path))
    stage.load_state_dict(weights, strict=False)
    return stage.to(device).eval()
