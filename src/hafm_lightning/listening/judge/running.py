"""A judge over a whole study: both orders of every trial, shared out over devices by Lightning, each answer stored.

Each process takes every ``n``-th trial, and stores an answer before it asks for the next one. A run that was killed
goes on where it stopped: answers that are stored are not asked for again. Failures are kept too, and tried again only
if that is asked for, since a deterministic judge fails in the same way again.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from hafm_lightning.audio import read_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.listening.judge.base import (
    JUDGE_PREFIX,
    Answer,
    Judge,
    JudgeSource,
    Presented,
    Samples,
    note_start,
    vote_of,
)
from hafm_lightning.listening.study import Presentation, Study
from hafm_lightning.listening.vote import LONGEST_NAME, Failure, Vote
from hafm_lightning.listening.votes import VoteStore
from hafm_lightning.progress import ProgressBar, progress


@dataclass(frozen=True)
class Work:
    """A trial and the orders in which it is still to be judged."""

    trial: str
    presentations: tuple[Presentation, ...]


@dataclass(frozen=True)
class Outcome:
    """What a judge has answered.

    Attributes:
        voter: ``judge:<name>``.
        votes: All stored votes of the judge.
        failures: All stored failures of the judge.
        example: What the judge wrote in place of an answer in this run and process; empty without a failure.
    """

    voter: str
    votes: tuple[Vote, ...]
    failures: tuple[Failure, ...]
    example: str = ""

    @property
    def reasons(self) -> Mapping[str, int]:
        """Reason -> number of failures."""
        return Counter(failure.reason for failure in self.failures)


def judge_study(
    study: Study,
    source: JudgeSource,
    name: str,
    votes: Path,
    *,
    devices: int = 1,
    accelerator: str = "auto",
    strategy: str = "ddp",
    retry_failures: bool = False,
) -> Outcome | None:
    """Let a judge answer what it has not answered yet.

    Args:
        study: The study.
        source: Of the judge.
        name: Under which its votes are stored.
        votes: The database.
        devices: Number of processes, each with a device of its own.
        accelerator: As Lightning names it.
        strategy: Of Lightning, for several devices.
        retry_failures: Ask again where the judge failed before.

    Returns:
        All its answers; None in processes other than the first.

    Raises:
        RequestError: Votes of another judge have this name, a device is missing, or the judge cannot be loaded.
    """
    voter = f"{JUDGE_PREFIX}{name}"
    if not name or not voter.isprintable() or len(voter) > LONGEST_NAME:
        raise RequestError(f"--name {name[:40]!r}: expected 1 to {LONGEST_NAME - len(JUDGE_PREFIX)} characters")
    with VoteStore.for_study(votes, study) as store:
        work = remaining(study, store, voter, source.identity, retry_failures)
    module = _Judging(study, source, name, votes)
    trainer = _trainer(devices, accelerator, strategy)
    if work:
        module.work = work
        trainer.predict(module, return_predictions=False)
        trainer.strategy.barrier()  # the first process reports on the answers of all
        if not trainer.is_global_zero:
            return None
    with VoteStore.for_study(votes, study) as store:
        own_votes = tuple(vote for vote in store.votes() if vote.voter == voter)
        own_failures = tuple(failure for failure in store.failures() if failure.voter == voter)
    return Outcome(voter, own_votes, own_failures, module.example)


def remaining(study: Study, store: VoteStore, voter: str, identity: str, retry_failures: bool) -> list[Work]:
    """What a judge has not answered yet.

    Raises:
        RequestError: The votes under this name are of another judge.
    """
    answered: set[tuple[str, str]] = set()
    for vote in store.votes():
        if vote.voter != voter:
            continue
        if not vote.note.startswith(note_start(identity)):
            raise RequestError(
                f"{store.path}: the votes of {voter} are of another judge (another model, question or setting)\n"
                "give this judge a name of its own with --name"
            )
        answered.add((vote.trial, vote.presentation))
    if not retry_failures:
        answered |= {(f.trial, f.presentation) for f in store.failures() if f.voter == voter}
    orders: tuple[Presentation, ...] = get_args(Presentation)
    work = (Work(trial.id, tuple(o for o in orders if (trial.id, o) not in answered)) for trial in study.trials)
    return [entry for entry in work if entry.presentations]


def presented(sounds: tuple[Samples, Samples, Samples], rate_hz: int, presentation: Presentation) -> Presented:
    """A trial's vocal, A and B in the order in which they are played."""
    vocal, a, b = sounds
    first, second = (a, b) if presentation == "AB" else (b, a)
    return Presented(vocal, first, second, rate_hz)


class _Judging(pl.LightningModule):
    """Predicts by asking the judge; the judge is not a part of the module, since it may be any object."""

    def __init__(self, study: Study, source: JudgeSource, name: str, votes: Path) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer trials are left than devices
        self.study, self.source, self.judge_name, self.votes = study, source, name, votes
        self.work: Sequence[Work] = ()
        self.example = ""
        self._judge: Judge | None = None
        self._store: VoteStore | None = None
        self._bar: ProgressBar | None = None
        self._open = ExitStack()
        self._parent = 0

    def setup(self, stage: str) -> None:
        """Load the judge on the device of this process, and open the votes."""
        self._parent = os.getppid()
        self._judge = self.source.load(self.trainer.strategy.root_device)
        self._store = self._open.enter_context(VoteStore.for_study(self.votes, self.study))

    def predict_dataloader(self) -> DataLoader[Work]:
        """This process's share of the trials."""
        mine = self._mine()
        if self.trainer.is_global_zero:
            total = sum(len(work.presentations) for work in mine)
            share = f", device 1 of {self.trainer.world_size}" if self.trainer.world_size > 1 else ""
            self._bar = self._open.enter_context(progress(f"Judging{share}", total, "answers"))
        return DataLoader(mine, batch_size=None, shuffle=False)  # type: ignore[arg-type]

    def _mine(self) -> list[Work]:
        return list(self.work[self.trainer.global_rank :: self.trainer.world_size])

    def predict_step(self, work: Work, batch_index: int) -> int:
        """Ask for one trial, and store each answer when it comes; returns their number."""
        assert self._judge is not None
        assert self._store is not None
        if self.trainer.global_rank and os.getppid() != self._parent:
            # a run that continues would ask for the same trials
            raise RuntimeError("the first process was killed, so this one ends; its answers are stored")
        sounds, rate_hz = self._sounds(work.trial), self.study.rate_hz
        trials = [presented(sounds, rate_hz, order) for order in work.presentations]
        for order, answer in zip(work.presentations, self._judge.judge(trials), strict=True):
            if isinstance(answer, Answer):
                self._store.add(vote_of(answer, self.judge_name, self.source.identity, work.trial, order))
            else:
                self._store.add_failure(f"{JUDGE_PREFIX}{self.judge_name}", work.trial, order, answer.reason)
                self.example = self.example or answer.text
            if self._bar is not None:
                self._bar.advance()
        return len(trials)

    def _sounds(self, trial_id: str) -> tuple[Samples, Samples, Samples]:
        trial = self.study.trial(trial_id)
        vocal, a, b = (
            np.asarray(read_audio(self.study.folder / name, mono=True).samples[0], dtype=np.float32)
            for name in (trial.vocal, trial.a, trial.b)
        )
        return vocal, a, b

    def teardown(self, stage: str) -> None:
        """Close the votes."""
        self._open.close()

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """The batch as it is: it holds names, not tensors."""
        return batch


def _trainer(devices: int, accelerator: str, strategy: str) -> pl.Trainer:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"The 'predict_dataloader' does not have many workers")
            return pl.Trainer(
                accelerator=accelerator,
                devices=devices,
                strategy=strategy if devices > 1 else "auto",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RequestError(f"--devices {devices}, --accelerator {accelerator}: cannot be used ({reason})") from error
