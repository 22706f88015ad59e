"""Training runs in processes of their own that can be killed at an exact point: helpers of the tests of exact resume.

The children are forked from a server that has imported everything already, so that one starts in a fraction of a
second. A kill is a real SIGKILL: nothing is flushed, no handler runs.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from torch import nn

import hafm_lightning.callbacks
import hafm_lightning.cli.fit.training
import hafm_lightning.data_modules  # noqa: F401
from hafm_lightning.cli import main
from hafm_lightning.tokens import TokenBatch

# Before Python 3.12 the server does not learn sys.path, and skips a module that it cannot find without a word.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["resume_child"])


class ToyStage(pl.LightningModule):
    """Learns something from the tokens, with dropout and a schedule, and writes down what each step saw."""

    def __init__(self, trace: str, learning_rate: float = 0.05) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Embedding(1024, 8), nn.Dropout(0.3), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1)
        )
        self.trace, self.learning_rate = trace, learning_rate

    def loss(self, batch: TokenBatch) -> torch.Tensor:
        tokens = batch["vocal_semantic"][:, 0]
        return (self.network(tokens).squeeze(-1) - tokens / 512).square().mean()

    def training_step(self, batch: TokenBatch, index: int) -> torch.Tensor:
        entry = {"step": self.global_step, "index": index, "clips": batch.clip_ids, "random": torch.rand(()).item()}
        with Path(f"{self.trace}-{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        loss = self.loss(batch)
        self.log("train/loss", loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: TokenBatch, index: int) -> None:
        torch.rand(17)  # validation may draw random numbers without shifting those of training
        self.log("val/loss", self.loss(batch).double(), batch_size=len(batch), sync_dist=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 5))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class OneBadProcess(ToyStage):
    """The loss of the second process becomes NaN at step 3."""

    def training_step(self, batch: TokenBatch, index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        return loss * torch.nan if self.global_rank == 1 and self.global_step == 3 else loss


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(pl.Callback):
    """Kills its process: at a training batch, a validation batch, or in the middle of writing a file."""

    def __init__(self, at: str, number: int) -> None:
        self.at, self.number, self.seen = at, number, 0

    def count(self, at: str) -> None:
        if at == self.at:
            self.seen += 1
            if self.seen == self.number:
                die()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        whole_save = torch.save

        def save(content: object, file: object) -> None:
            if self.at == "saving":
                self.seen += 1
                if self.seen == self.number:
                    file.write(b"PK\x03\x04 the beginning of a file")
                    file.flush()
                    die()
            whole_save(content, file)
            self.count("saved, not renamed")

        torch.save = save

    def on_train_batch_start(self, *_: object) -> None:
        self.count("batch start")

    def on_before_optimizer_step(self, *_: object) -> None:
        self.count("before step")

    def on_train_epoch_end(self, *_: object) -> None:
        self.count("epoch end")

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if not trainer.sanity_checking:
            self.count("validation")

    def on_validation_end(self, trainer: pl.Trainer, *_: object) -> None:
        if not trainer.sanity_checking:
            self.count("validation end")


class SignalSelf(pl.Callback):
    """Sends its own process a signal at a training or a validation batch."""

    def __init__(self, at: str, number: int, name: str = "SIGTERM") -> None:
        self.at, self.number, self.signal, self.seen = at, number, signal.Signals[name], 0

    def count(self, at: str) -> None:
        self.seen += int(at == self.at)
        if at == self.at and self.seen == self.number:
            os.kill(os.getpid(), self.signal)

    def on_train_batch_start(self, *_: object) -> None:
        self.count("batch start")

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if not trainer.sanity_checking:
            self.count("validation")


class Wait(pl.Callback):
    """Tells that a training batch begins, by a file, and waits there until its process is killed."""

    def __init__(self, number: int, file: str) -> None:
        self.number, self.file = number, Path(file)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.number:
            self.file.touch()
            time.sleep(120)


class Recorder(Logger):
    """A logger that remembers what it was told."""

    told: dict = {}
    name = version = None

    def log_hyperparams(self, params: dict, *_: object, **__: object) -> None:
        Recorder.told = params

    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        pass


class Report(pl.Callback):
    """Writes the metrics of a validation, and which clips each process saw in it."""

    def __init__(self, folder: str) -> None:
        self.folder, self.clips = Path(folder), []

    def on_validation_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: TokenBatch, *_) -> None:
        self.clips.append(batch.clip_ids)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps({"metrics": metrics, "clips": self.clips}))


def child(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """Run a command with its output in a file, and leave with its exit code."""
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    # Loader workers start as in a command: with a server of their own, which they would keep alive after a kill.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    torch.set_num_threads(1)
    try:
        code = main(arguments)
    except Exception:  # noqa: BLE001  (what Python would do at the end of a process)
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(arguments: list[str], log: Path, processes: int = 1, environment: dict[str, str] | None = None) -> list:
    """Start one run, of one or more processes (as Lightning's launcher would start them)."""
    port, running = free_port(), []
    for rank in range(processes):
        environment = dict(environment or {})
        if processes > 1:
            arguments = [*arguments, "--trainer.strategy", "ddp", "--trainer.devices", str(processes)]
            environment |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        process = SERVER.Process(target=child, args=(arguments, environment, f"{log}-{rank}.log"))
        process.start()
        running.append(process)
    return running


def finish(running: list, limit_s: float = 120, refused_s: float = 30) -> list[int]:
    """Wait for a run; when one of its processes dies, kill the others, as a cluster's launcher does.

    Where one has refused to run, the others come to that by themselves and have ``refused_s`` for it.
    """
    while any(process.is_alive() for process in running):
        running[0].join(0.05) if running[0].is_alive() else running[-1].join(0.05)
        codes = {process.exitcode for process in running} - {None, 0, 143}
        limit_s, refused_s = limit_s - 0.05, refused_s - (0.05 if codes else 0)
        if limit_s < 0 or (codes and (codes != {2} or refused_s < 0)):
            for process in running:
                process.kill()
    return [process.exitcode for process in running]
