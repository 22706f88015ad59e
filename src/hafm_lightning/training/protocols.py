"""Protocols of data modules, callbacks, loggers and stages beside Lightning's hooks; callers use ``isinstance``."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer


@runtime_checkable
class ChecksRequest(Protocol):
    """A data module or callback that refuses a run before its folder is made and its loggers begin."""

    def check_request(self, command: str, trainer: Trainer, module: LightningModule) -> None:
        """Raise RequestError if ``command`` (``fit``, ``validate``, ``test``, ``predict``) cannot work."""


@runtime_checkable
class UsesRunFolder(Protocol):
    """A logger that writes to the run folder."""

    def use_run_folder(self, folder: Path) -> None:
        """Write below ``folder``; called before anything is logged."""


@runtime_checkable
class HasClock(Protocol):
    """A logger that counts the seconds of training."""

    def start_clock(self) -> None:
        """Start to count; called when training begins."""


@runtime_checkable
class TokenSource(Protocol):
    """A data module or stage that knows which tokenizers made its tokens."""

    @property
    def tokenizers(self) -> Mapping[str, Mapping[str, Any]]:
        """Identities of the tokenizers, ``semantic`` and ``acoustic``; empty if unknown."""

    @property
    def tokenizers_folder(self) -> Path | str | None:
        """Their folder, where there is one."""


@runtime_checkable
class ShardSource(Protocol):
    """A data module that reads shards, which may not exist yet; then it knows no tokenizers either."""

    @property
    def manifests(self) -> Mapping[str, Any]:
        """Split -> manifest (:class:`~hafm_lightning.shards.manifest.Manifest`) of the splits opened so far."""


@runtime_checkable
class DividesBatches(Protocol):
    """A data module that divides a step over processes and batches, in a continued run perhaps other than before."""

    batches_for_each: Fraction
    """Batches of this run that hold the clips of one batch of the checkpoint that it continues."""


@runtime_checkable
class CountsFlops(Protocol):
    """A LightningModule that knows what a step costs."""

    def flops_per_step(self, batch: Any) -> float:
        """FLOPs that training on ``batch`` needs on one process."""


@runtime_checkable
class KeepsSeed(Protocol):
    """A callback that continues with the seed of the checkpoint, or with that of the configuration."""

    keeps_seed: bool
