"""What data modules, callbacks, loggers and stages may offer each other, beside Lightning's hooks.

A class offers one of these by having its members; it need not name the protocol. Callers test with ``isinstance``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer


@runtime_checkable
class ChecksRequest(Protocol):
    """A data module or callback that refuses a run which cannot work, before a folder or logger begins."""

    def check_request(self, command: str, trainer: Trainer, module: LightningModule) -> None:
        """Raise RequestError if ``command`` (``fit``, ``validate``, ``test``, ``predict``) cannot work."""


@runtime_checkable
class UsesRunFolder(Protocol):
    """A logger that keeps its files in the run folder."""

    def use_run_folder(self, folder: Path) -> None:
        """Write below ``folder`` from now on; called before anything is logged."""


@runtime_checkable
class HasClock(Protocol):
    """A logger that counts the seconds of training."""

    def start_clock(self) -> None:
        """Count from now on; called when training begins."""


@runtime_checkable
class HasTokenizers(Protocol):
    """A data module or stage that knows which tokenizers made its tokens."""

    @property
    def tokenizers(self) -> Mapping[str, Mapping[str, Any]]:
        """Identities of the tokenizers, ``semantic`` and ``acoustic``; empty if unknown."""


@runtime_checkable
class TokenSource(HasTokenizers, Protocol):
    """A data module that may hold these tokenizers too."""

    @property
    def tokenizers_folder(self) -> Path | None:
        """Their folder, where there is one."""


@runtime_checkable
class ShardSource(Protocol):
    """A data module that reads shards; it may not have made them yet, and then knows no tokenizers either."""

    @property
    def manifests(self) -> Mapping[str, Any]:
        """Split -> manifest (:class:`~hafm_lightning.shards.manifest.Manifest`) of the splits opened so far."""


@runtime_checkable
class TrainsModel(Protocol):
    """A LightningModule around one network, such as a stage."""

    model: Any


@runtime_checkable
class WritesStream(Protocol):
    """A LightningModule that learns to write one token stream."""

    target: str


@runtime_checkable
class CountsFlops(Protocol):
    """A LightningModule that knows what a step costs."""

    def flops_per_step(self, batch: Any) -> float:
        """FLOPs that training on ``batch`` needs on one process."""
