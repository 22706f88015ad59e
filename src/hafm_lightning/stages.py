"""The three stages as LightningModules: one behaviour, three layouts.

A :class:`Stage` is the training coat of a plain :class:`~hafm_lightning.modeling.token_model.TokenModel`: loss, token
metrics, guidance dropout, optimizer, and what its checkpoints say of themselves. Lightning owns the loop, precision
and devices. Everything optional (audio metrics, dashboards, probes) is a callback.

Logged, for ``train``, ``val`` and ``test`` (``*`` is the split; ``q0``.. are codebooks of the target):

``*/loss``, ``*/accuracy``, ``*/accuracy_top10``
    Cross-entropy in nats, mean over codebooks; how often the true token ranks first, and within the first ten.
``*/loss_q0``, ``*/accuracy_q0``, ``*/accuracy_top10_q0`` ...
    The same for each codebook, where there is more than one.
``val/loss_null``, ``val/conditioning_gain``
    Loss with null conditions, and loss_null - loss: what the conditions are worth, in nats.
``val/loss_other``, ``val/other_clip_gap``
    Loss with the conditions of another clip of the batch, and loss_other - loss: above 0 where the stage listens. It
    depends on which clips share a batch.

The optimizer is in ``optimizer.py`` and ``optimizer_step.py``, the file format in ``checkpoint_format.py``.

Source: HAFM (arXiv 2604.09054), sections 3.3 and 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from hafm_lightning.checkpoint_format import (
    CHECKPOINT_FORMAT,
    METADATA_KEY,
    checked_metadata,
    describe_difference,
    read_checkpoint,
)
from hafm_lightning.errors import RequestError
from hafm_lightning.kernels import Kernels, for_training
from hafm_lightning.modeling.conditioning import drop_at_random, null_conditions
from hafm_lightning.modeling.layout import Conditioning, Pattern
from hafm_lightning.modeling.relative_position import PrefixMask, RelativePositionKind
from hafm_lightning.modeling.token_model import TokenModel, TokenModelConfig
from hafm_lightning.modeling.token_scores import (
    StepMeans,
    TokenScores,
    other_clips,
    score_names,
    summarise,
    token_cross_entropy,
)
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.optimizer import OptimizerConfig, adamw
from hafm_lightning.optimizer_step import StepWeights, check_training
from hafm_lightning.tokens import TokenBatch


class Stage(pl.LightningModule):
    """One stage in training.

    The class says what is written (``target``) and, unless told otherwise, from what (``default_conditions``).

    Args:
        pattern: ``flattened`` (the paper), ``delay``, ``parallel`` or ``nonautoregressive``.
        conditioning: ``prefix`` (the paper) or ``aligned`` (recommended).
        relative_position: ``time`` or ``index`` (the paper to the letter); they differ with a prefix.
        backbone: Size of the Transformer.
        conditions: Names of the condition streams, in order; default: the paper's for this stage.
        prefix_mask: ``causal`` (the paper) or ``bidirectional`` among the conditions of a prefix.
        look_ahead_s: For ``aligned``: seconds of the conditions heard ahead.
        look_behind_s: For ``aligned``: seconds that the conditions' convolution reaches back.
        guidance_dropout: Probability with which all conditions of a training clip become null tokens; a style does so
            by itself too.
        optimizer: AdamW settings.
        kernels: ``auto`` takes what is made for the device (:mod:`hafm_lightning.kernels`), ``none`` PyTorch's
            operations: the same results, slower.
    """

    target: ClassVar[str]
    default_conditions: ClassVar[tuple[str, ...]]

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
        self.duration_s: float | None = None
        names = score_names(self.model.layout.target.codebooks)
        names += ["loss_null", "loss_other", "conditioning_gain", "other_clip_gap"]
        # math.nan stands in for NaN: left to itself, the metric drops a NaN loss from the mean
        self.means = nn.ModuleDict(
            {
                split: nn.ModuleDict(
                    {name: MeanMetric(math.nan, sync_on_compute=True).set_dtype(torch.float64) for name in names}
                )
                for split in ("val", "test")
            }
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stage:
        super()._apply(fn, recurse)  # moves the module, perhaps to a device with other kernels
        for_training(self.model, self.kernels)
        return self

    # --- training ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take over what the data says of itself."""
        self._step_means = StepMeans(self.model.layout.target.codebooks)  # both forget half a step of an earlier fit
        self._step_weights = StepWeights()
        self.adopt(getattr(self.trainer, "datamodule", None))

    def adopt(self, data: Any) -> None:
        """Take over tokenizers and names of styles from a data module that was set up.

        Raises:
            RequestError: The stage was trained on tokens of other tokenizers.
        """
        identities = getattr(data, "tokenizers", None)
        if not identities:
            return
        if self.tokenizers and self.tokenizers != identities:
            raise RequestError(
                "this checkpoint was trained on tokens of other tokenizers than the data's; "
                + describe_difference(self.tokenizers, identities)
            )
        self.tokenizers = dict(identities)
        folder = getattr(data, "tokenizers_folder", None)
        self.tokenizers_folder = str(folder) if folder is not None else None
        self.styles = next((list(m.styles) for m in getattr(data, "manifests", {}).values()), [])

    def training_forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor, int]:
        """What a training step computes before its loss: guidance dropout, then the network.

        Returns:
            Logits ``[B, K', T, V]``, their true ids ``[B, K', T]``, and the first of the ``K'`` codebooks: all
            of the target, or with ``nonautoregressive`` one drawn at random.
        """
        layout, streams = self.model.layout, batch.streams
        if self.guidance_dropout and layout.conditions:
            streams = drop_at_random(streams, layout.conditions, self.guidance_dropout)
        targets = batch[layout.target.name]
        if layout.pattern != "nonautoregressive":
            return self.model(streams), targets, 0
        codebook = int(torch.randint(layout.target.codebooks, ()))
        return self.model(streams, codebook), targets[:, codebook : codebook + 1], codebook

    def training_loss(self, batch: TokenBatch) -> Tensor:
        """The loss of a training step; needs no Trainer."""
        logits, targets, _ = self.training_forward(batch)
        return token_cross_entropy(logits, targets).mean()

    def training_step(self, batch: TokenBatch, batch_index: int) -> Tensor:
        """Mean cross-entropy over codebooks, with guidance dropout; a step descends the mean over all its clips.

        Logged are the same means over the clips of an optimizer step: over its accumulated batches and, in the steps
        that are written, over all processes.
        """
        del batch_index
        if self.duration_s is None:
            self.duration_s = batch.duration_s
        logits, targets, first_codebook = self.training_forward(batch)
        logged = self._is_logged_step()
        if logged:
            scores = TokenScores.of(logits, targets)
            loss = scores.cross_entropy.mean()
            values = summarise(scores, first_codebook=first_codebook, total=self.model.layout.target.codebooks)
        else:
            loss = token_cross_entropy(logits, targets).mean()
            values = {"loss": loss.detach()}
        self._step_means.add(values, len(batch))
        if not self.trainer.fit_loop._should_accumulate():
            means = self._step_means.take(partial(self.trainer.strategy.reduce, reduce_op="sum") if logged else None)
            self.log("train/loss", means.pop("loss"), prog_bar=True, batch_size=len(batch))
            self.log_dict({f"train/{name}": value for name, value in means.items()}, batch_size=len(batch))
        return self._step_weights.weigh(loss, len(batch), self.trainer)

    def on_after_backward(self) -> None:
        """Give the gradient of a finished step its scale."""
        self._step_weights.finish(self.parameters())

    def _is_logged_step(self) -> bool:
        """Whether Lightning writes a row after the optimizer step that this batch belongs to."""
        every, step = self.trainer.log_every_n_steps, self.trainer.fit_loop.epoch_loop._batches_that_stepped + 1  # type: ignore[attr-defined]
        return bool(self.trainer.fast_dev_run) or (every > 0 and step % every == 0)  # type: ignore[attr-defined]

    def validation_step(self, batch: TokenBatch, batch_index: int) -> None:
        """Loss and accuracy with true, null and another clip's conditions."""
        del batch_index
        self._evaluate("val", batch)

    def test_step(self, batch: TokenBatch, batch_index: int) -> None:
        """As validation, under ``test/``."""
        del batch_index
        self._evaluate("test", batch)

    def predict_step(self, batch: TokenBatch, batch_index: int) -> dict[str, Any]:
        """Per clip: id, cross-entropy with true and null conditions, and accuracy (``predict`` writes them)."""
        del batch_index
        true = self.clip_losses(batch)
        null = self.clip_losses(batch, null_conditions(batch.streams, self.model.layout.conditions))
        return {"clip_ids": batch.clip_ids, "loss": true.cpu(), "loss_null": null.cpu()}

    def _evaluate(self, split: str, batch: TokenBatch) -> None:
        layout = self.model.layout
        targets = batch[layout.target.name]
        scores = TokenScores.of(self.model(batch.streams), targets)
        values = summarise(scores, first_codebook=0, total=layout.target.codebooks)
        absent: tuple[str, ...] = ()
        if layout.conditions:
            null = self._cross_entropy(null_conditions(batch.streams, layout.conditions), targets)
            values |= {"loss_null": null, "conditioning_gain": null - values["loss"]}
            other = other_clips(batch, [s.name for s in layout.conditions])
            if other is not None:
                wrong = self._cross_entropy(other, targets)
                values |= {"loss_other": wrong, "other_clip_gap": wrong - values["loss"]}
            elif self.trainer.world_size > 1:
                absent = ("loss_other", "other_clip_gap")  # logged all the same: a rank's sums wait for those of all
        means = cast(nn.ModuleDict, self.means[split])
        for name in (*values, *absent):
            metric = cast(MeanMetric, means[name])
            if name in values:
                metric.update(values[name].double(), weight=float(len(batch)))
            else:
                metric.update(0.0, weight=0.0)
            self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True, prog_bar=name == "loss")

    def _cross_entropy(self, streams: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        return token_cross_entropy(self.model(streams), targets).mean()

    def clip_losses(self, batch: TokenBatch, streams: Mapping[str, Tensor] | None = None) -> Tensor:
        """Mean cross-entropy of each clip in nats, ``[B]``; ``streams`` replaces the batch's own, say by nulls."""
        targets = batch[self.model.layout.target.name]
        logits = self.model(batch.streams if streams is None else streams)
        return token_cross_entropy(logits, targets).mean((1, 2))

    def flops_per_step(self, batch: TokenBatch) -> float:
        """FLOPs of training on ``batch`` on one process: forward, and twice as many backward."""
        return 3 * self.model.config.forward_flops(len(batch), batch[self.model.layout.target.name].shape[-1])

    def configure_optimizers(self) -> Any:
        """AdamW over all parameters, with the schedule as a function of the step alone."""
        if self._trainer is not None:
            check_training(self.trainer)
        return adamw(self.parameters(), self.optimizer_config)

    # --- checkpoints ------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says of itself: plain values only."""
        layout = self.model.layout
        return {
            "format": CHECKPOINT_FORMAT,
            "stage": type(self).__name__,
            "model": self.model.config.as_dict(),
            "guidance_dropout": self.guidance_dropout,
            "optimizer": asdict(self.optimizer_config),
            "streams": {
                s.name: {"rate_hz": s.rate_hz, "codebooks": s.codebooks, "vocabulary": s.vocabulary}
                for s in (*layout.conditions, layout.target)
            },
            "tokenizers": self.tokenizers,
            "tokenizers_folder": self.tokenizers_folder,
            "styles": self.styles,
            "duration_s": self.duration_s,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add :meth:`metadata`."""
        checkpoint[METADATA_KEY] = self.metadata()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another stage or layout before any weight is copied."""
        saved = checked_metadata(checkpoint, "the checkpoint")
        mine = self.metadata()
        if saved["stage"] != mine["stage"]:
            raise RequestError(
                f"the checkpoint holds a {saved['stage']}, this run trains a {mine['stage']}; "
                "give the checkpoint of the same stage to --ckpt_path"
            )
        if saved["model"] != mine["model"]:
            raise RequestError(
                "the checkpoint's network differs from this run's: "
                + describe_difference(saved["model"], mine["model"])
            )
        if saved["tokenizers"] and self.tokenizers and saved["tokenizers"] != self.tokenizers:
            raise RequestError(
                "the checkpoint was trained on tokens of other tokenizers than the data's: "
                + describe_difference(saved["tokenizers"], self.tokenizers)
            )
        self.duration_s = saved["duration_s"]


class SemanticStage(Stage):
    """Vocal semantic tokens -> instrumental semantic tokens (38.6 M parameters at the paper's size)."""

    target = "instrumental_semantic"
    default_conditions = ("vocal_semantic",)


class CoarseStage(Stage):
    """Vocal and instrumental semantic tokens -> acoustic codebooks 0-3 (42.5 M parameters at the paper's size)."""

    target = "instrumental_coarse"
    default_conditions = ("vocal_semantic", "instrumental_semantic")


class FineStage(Stage):
    """Acoustic codebooks 0-3 -> acoustic codebooks 4-7 (44.1 M parameters at the paper's size)."""

    target = "instrumental_fine"
    default_conditions = ("instrumental_coarse",)


STAGES: Mapping[str, type[Stage]] = {kind.__name__: kind for kind in (SemanticStage, CoarseStage, FineStage)}


def load_stage(path: str | Path, *, device: torch.device | str = "cpu") -> Stage:
    """The stage in a checkpoint, in eval mode.

    Args:
        path: A local ``.ckpt`` file. Only data is read: pickled code is refused, and so are URLs.
        device: Where to put it.

    Raises:
        RequestError: The file is missing, unreadable, not a stage of this project, or of a newer format.
    """
    checkpoint = read_checkpoint(path)
    saved = checked_metadata(checkpoint, str(path))
    kind = STAGES.get(saved["stage"])
    if kind is None:
        raise RequestError(f"{path}: unknown stage {saved['stage']!r}; known: {', '.join(STAGES)}")
    settings = dict(saved["model"])
    target = settings.pop("target", None)
    try:
        stage = kind(
            **settings | {"backbone": BackboneConfig(**settings["backbone"])},
            guidance_dropout=saved["guidance_dropout"],
            optimizer=OptimizerConfig(**saved["optimizer"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise RequestError(f"{path}: the description of its stage cannot be used ({error})") from error
    if stage.model.layout.target.name != target:
        raise RequestError(
            f"{path}: a {saved['stage']} writes {stage.model.layout.target.name!r}, the file says {target!r}"
        )
    stage.tokenizers, stage.duration_s = saved["tokenizers"], saved["duration_s"]
    stage.tokenizers_folder, stage.styles = saved["tokenizers_folder"], list(saved.get("styles", ()))
    state = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("means.")}
    expected = {name: value for name, value in stage.state_dict().items() if not name.startswith("means.")}
    odd = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            n for n, value in state.items() if n in expected and getattr(value, "shape", None) != expected[n].shape
        ],
    }
    if any(odd.values()):
        raise RequestError(
            f"{path}: weights do not fit; " + ", ".join(f"{how} {names[:3]}" for how, names in odd.items() if names)
        )
    stage.load_state_dict(state, strict=False)  # the metrics' sums begin anew
    return stage.to(device).eval()
