"""Batches of tokens from shards on disk, in an order that does not depend on stops and restarts.

:class:`TokenShards` is the data module of every stage: it opens the splits that ``prepare`` wrote, refuses what does
not fit before the first step, and distributes clips to processes and loader workers.

Choices:

* All ids are checked once, when a split is opened (about 0.2 s for the paper's 0.7 GB), never per batch.
* The checkpoint holds the number of finished batches and all that the order depends on. A run that would continue
  differently (other data, other batches) is refused by name; ``allow_changes`` permits it. With ``global_batch_size``
  a run may continue on another number of processes, or with other accumulation: its next step has the same clips.
"""

from __future__ import annotations

import hashlib
import math
import signal
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from hafm_lightning.data_modules.clip_batches import ClipBatches, check_manifests, check_split
from hafm_lightning.data_modules.sampling import EvaluationOrder, RepeatedOrder, TrainingOrder, crop_choices
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.token_scores import other_song_clips, song_of
from hafm_lightning.shards import Manifest, open_shards
from hafm_lightning.tokenizers.compatibility import check_same_tokenizers
from hafm_lightning.tokens import TokenBatch
from hafm_lightning.training.batch_division import check_sizes, divide

SPLIT_OF = {"fit": "train", "validate": "validation", "test": "test", "predict": "test"}
"""Split that each of Lightning's functions reads; fitting reads ``validation`` too, unless it is switched off."""
STATE_VERSION = 1
"""Version of what :meth:`TokenShards.state_dict` stores."""


class TokenShards(LightningDataModule):
    """Training, validation and test batches of the shards under ``root``."""

    def __init__(
        self,
        root: str,
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        crop_s: float | None = None,
        seed: int = 0,
        workers: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        streams: list[str] | None = None,
        cache_dir: str | None = None,
        allow_changes: bool = False,
        global_batch_size: int | None = None,
    ) -> None:
        """Store the request; files are opened by :meth:`setup`.

        Args:
            root: Folder (or remote address) that ``prepare`` wrote, with ``train/``, ``validation/``, ``test/``.
            batch_size: Training clips of a batch on one process. Either this or ``global_batch_size`` is given.
            eval_batch_size: Clips of a validation or test batch; by default those of a training batch.
            crop_s: Length of random crops in seconds, a multiple of 0.04; by default whole clips.
            seed: Of the order of clips and the places of crops.
            workers: Loader processes; 0 loads in the training process, which is the fastest for shards on a local
                disk. Never changes the batches.
            shuffle: Whether each training epoch has a new order of clips.
            drop_last: Whether training leaves out the clips that do not fill a last batch.
            streams: Streams to deliver; by default all that the shards hold.
            cache_dir: Folder for copies of the shards of a remote root.
            allow_changes: Whether to continue a checkpoint of other data, batch size or number of processes, although
                the uninterrupted run would have continued differently. On the command line, ``--allow_changes true``
                sets it for every data module.
            global_batch_size: Training clips of a step, over all processes and all batches whose gradients are
                accumulated; it must divide by both. So a run takes the same steps on 1, 2 or 4 devices.
        """
        super().__init__()
        check_sizes(batch_size, global_batch_size)
        if (eval_batch_size is not None and eval_batch_size < 1) or workers < 0:
            raise RequestError(
                f"data.eval_batch_size is {eval_batch_size}, data.workers {workers}\n"
                "batch sizes start at 1 and workers at 0"
            )
        self.root, self.cache_dir, self.streams = root, cache_dir, streams
        self.batch_size, self.global_batch_size, self.eval_batch_size = batch_size, global_batch_size, eval_batch_size
        self.division = divide(batch_size, global_batch_size, None)
        self.batches_for_each = Fraction(1)
        self.crop_s, self.shuffle, self.drop_last = crop_s, shuffle, drop_last
        self.seed, self.workers, self.allow_changes = seed, workers, allow_changes
        self._splits: dict[str, ClipBatches] = {}
        self._position: tuple[int, int] | None = None

    @property
    def manifests(self) -> dict[str, Manifest]:
        """Split -> manifest of the splits that were opened."""
        return {split: clips.reader.manifest for split, clips in self._splits.items()}

    @property
    def tokenizers(self) -> dict[str, dict[str, Any]]:
        """Identities of the tokenizers that made the shards, ``semantic`` and ``acoustic``."""
        if not self._splits:
            return open_shards(self.root, "train", self.cache_dir).manifest.tokenizers
        return next(iter(self.manifests.values())).tokenizers

    @property
    def tokenizers_folder(self) -> Path | None:
        """The folder with those tokenizers, where ``root`` is local and holds it."""
        if "://" in self.root:
            return None
        folder = Path(self.root).expanduser().resolve() / "tokenizers"
        return folder if folder.is_dir() else None

    def setup(self, stage: str) -> None:
        """Open and check the splits that ``stage`` (fit, validate, test, predict) needs; RequestError by name."""
        self._check(stage, self.trainer, None if self.trainer is None else self.trainer.lightning_module)

    def check_request(self, command: str, trainer: Trainer, module: LightningModule) -> None:
        """As :meth:`setup`, before anything of the run is written; called by the command line interface."""
        self._check(command, trainer, module)

    def _check(self, command: str, trainer: Trainer | None, module: LightningModule | None) -> None:
        if command == "fit":
            self.division = divide(self.batch_size, self.global_batch_size, trainer)
        self._open(SPLIT_OF[command])
        if command == "fit" and (trainer is None or trainer.limit_val_batches != 0):
            self._open("validation")
        check_manifests(self.manifests, self.root)
        model = getattr(module, "model", None)
        needed = (*model.layout.conditions, model.layout.target) if isinstance(model, TokenModel) else ()
        for split, clips in self._splits.items():
            given = [stream.name for stream in clips.streams]
            missing = [stream.name for stream in needed if stream.name not in given]
            if missing:
                raise RequestError(
                    f"{type(module).__name__} needs the stream {', '.join(map(repr, missing))}, which split {split!r} "
                    f"of {self.root} does not give\n"
                    f"it gives {', '.join(given)}: prepare shards with it, or change model.conditions or data.streams"
                )
        if command == "fit":
            self._order()

    def _open(self, split: str) -> ClipBatches:
        if split not in self._splits:
            reader = open_shards(self.root, split, self.cache_dir)
            if not len(reader):
                raise RequestError(
                    f"split {split!r} of {self.root} holds no clips\n"
                    "the preparation's quality filter may have dropped them all: read its report"
                )
            check_split(reader)
            self._splits[split] = ClipBatches(reader, self.crop_s, self.streams)
        return self._splits[split]

    def _place(self, split: str) -> dict[str, Any]:
        """What the orders of all splits depend on."""
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        choices = crop_choices(self._open(split).reader.manifest.duration_s, self.crop_s)
        return {"seed": self.seed, "rank": rank, "world": world, "choices": choices}

    @property
    def _overfits(self) -> bool:
        """Whether every epoch shall have the same few batches (``trainer.overfit_batches``)."""
        return self.trainer is not None and bool(self.trainer.overfit_batches)  # type: ignore[attr-defined]

    def _order(self) -> TrainingOrder:
        clips, share = len(self._open("train")), self.division
        settings: dict[str, Any] = {"shuffle": self.shuffle, "drop_last": self.drop_last, "repeated": self._overfits}
        settings |= self._place("train") | {"world": share.processes}
        order = TrainingOrder(clips, share.batch_size, per_step=share.accumulated if share.is_global else 1, **settings)
        if not len(order):
            parts = share.processes * (share.accumulated if share.is_global else 1)
            name, most = ("global_batch_size", parts) if share.is_global else ("batch_size", 1)
            raise RequestError(
                f"split 'train' of {self.root} has {clips} clips, fewer than one step takes "
                f"({share.batch_size} a process, {share.processes} processes)\n"
                f"use --data.{name} {max(clips // parts, 1) * most} or smaller, or --data.drop_last false"
            )
        return order

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Batches of this process; continues where a loaded checkpoint stopped."""
        order = self._order()
        if self.trainer is not None:
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            order.set_epoch(progress.processed)
        if self._position is not None:
            order.resume(*self._position)
            self._position = None
        return self._loader("train", order)

    def _evaluation_loader(self, split: str, paired: bool) -> DataLoader[TokenBatch]:
        names = self._open(split).reader.clip_ids
        others = other_song_clips(names) if paired and len({song_of(name) for name in names}) > 1 else None
        size = self.division.batch_size if self.eval_batch_size is None else self.eval_batch_size
        order = EvaluationOrder(len(names), size, others=others, **self._place(split))
        return self._loader(split, order)

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        """Each clip of ``validation`` once over all processes, with one of another song."""
        return self._evaluation_loader("validation", paired=True)

    def test_dataloader(self) -> DataLoader[TokenBatch]:
        """Each clip of ``test`` once over all processes, with one of another song."""
        return self._evaluation_loader("test", paired=True)

    def predict_dataloader(self) -> DataLoader[TokenBatch]:
        """Each clip of ``test`` once over all processes."""
        return self._evaluation_loader("test", paired=False)

    def _loader(self, split: str, order: TrainingOrder | EvaluationOrder) -> DataLoader[TokenBatch]:
        return DataLoader(
            self._open(split),
            batch_size=None,
            sampler=RepeatedOrder(order) if self._overfits else order,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            worker_init_fn=leave_signals_to_the_run,
            generator=torch.Generator().manual_seed(self.seed),  # the global one is for training
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; copies from page-locked memory overlap with the previous step."""
        if isinstance(batch, TokenBatch):
            return batch.to(device, non_blocking=device.type == "cuda")
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """Position in the training data, and all that the order depends on."""
        if self.trainer is None or "train" not in self._splits:
            return {}
        epoch, batches = self._next_batch()
        share = self.division
        sizes = {"batch_size": share.batch_size, "processes": share.processes, "accumulated": share.accumulated}
        return {"version": STATE_VERSION, "epoch": epoch, "batches": batches, **sizes, **self._order_depends_on()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a checkpoint's position; RequestError if the uninterrupted run would take other batches."""
        check_same_tokenizers(
            state.get("tokenizers") or {},
            self._tokenizer_hashes(),
            other=f"the shards in {self.root}",
            advice="use the shards that it was trained on, or prepare these songs with its tokenizers",
        )
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        settings, accumulated = self._order_depends_on(), int(state.get("accumulated", 1))
        if "global_batch_size" in settings and "global_batch_size" not in state:
            clips = int(state.get("batch_size", 0)) * int(state.get("processes", 0)) * accumulated
            state = state | {"global_batch_size": clips}
        changed = [f"{key} {state.get(key)} -> {now}" for key, now in settings.items() if state.get(key) != now]
        if (changed or state.get("version") != STATE_VERSION) and not self.allow_changes:
            raise RequestError(
                f"the checkpoint cannot be continued exactly; changed: {', '.join(changed) or 'the state version'}\n"
                "set it back, or continue with the changes: --allow_changes true"
            )
        # a checkpoint is one of a finished step: its batches are whole steps, but at the end of an epoch
        self.batches_for_each = (
            Fraction(self.division.accumulated, accumulated) if self.division.is_global else Fraction(1)
        )
        batches = math.ceil(int(state["batches"]) * self.batches_for_each)
        self._position = (int(state["epoch"]), min(batches, len(self._order())))

    def _next_batch(self) -> tuple[int, int]:
        """Epoch and index of the first training batch that no finished step has used."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epoch: Any = loop.epoch_progress.current
        batch: Any = loop.epoch_loop.batch_progress
        if epoch.processed == epoch.ready:  # between two epochs
            return epoch.processed, 0
        if epoch.started < epoch.ready:  # the epoch is about to begin; the counters of batches are the last one's
            return epoch.ready - 1, 0
        if batch.is_last_batch and batch.current.processed == batch.current.ready:
            return epoch.ready, 0
        return epoch.ready - 1, batch.current.processed

    def _order_depends_on(self) -> dict[str, Any]:
        manifest = self._open("train").reader.manifest
        contents = hashlib.sha256("\n".join(shard.sha256 for shard in manifest.shards).encode()).hexdigest()
        share = self.division
        sizes = {"batch_size": share.batch_size, "processes": share.processes}
        return {
            "shards": contents[:16],
            "clips": manifest.clips,
            **({"global_batch_size": share.clips} if share.is_global else sizes),
            "seed": self.seed,
            "crop_s": self.crop_s,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "tokenizers": self._tokenizer_hashes(),
        }

    def _tokenizer_hashes(self) -> dict[str, str]:
        return {name: str(identity.get("sha256", "")) for name, identity in self.tokenizers.items()}


def leave_signals_to_the_run(worker: int) -> None:
    """Ignore Ctrl-C and SIGHUP, which the terminal sends to a loader worker too: the run needs it until it is saved."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
