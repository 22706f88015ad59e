"""Prepare, train, generate and evaluate on synthesised songs, on a CPU without downloads.

The demo prints and runs the commands that a researcher would type, with the configurations of experiments/quickstart.
An interrupted demo continues with the first step that is not finished:

1. prepare: synthesise the toy band, train the tokenizers, write the shards
2. plan: time a few training steps of each stage, and choose how many fit into --minutes
3. fit: train the three stages side by side
4. export: write one model folder
5. evaluate: generate for one vocal of every held-out song, score with controls, write the card with training curves
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from hafm_lightning.audio import read_audio
from hafm_lightning.cli import DONE
from hafm_lightning.cli import main as run_command
from hafm_lightning.cli.demo.fits import Fit, lanes, run_fits
from hafm_lightning.cli.fit.configs import FOLDER, shipped_folder
from hafm_lightning.cli.fit.runs import best_checkpoint, newest_run
from hafm_lightning.cli.fit.training import StageCLI
from hafm_lightning.cli.parser import PROGRAM, Parser, check_writable
from hafm_lightning.configuration.settings import read_settings
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.card import PAGE_FILE, Card, markdown
from hafm_lightning.evaluation.card.page import write_card
from hafm_lightning.evaluation.card.pictures import log_mel_picture
from hafm_lightning.evaluation.evaluate import evaluate
from hafm_lightning.evaluation.settings import EvaluateSettings
from hafm_lightning.files import write_json
from hafm_lightning.preparation.pipeline import PreparationConfig, read_config
from hafm_lightning.processes.locks import LOCK_NAME, held
from hafm_lightning.processes.pool import usable_cores
from hafm_lightning.untrusted import checked, read_json

STAGES = ("semantic", "coarse", "fine")
SHARE = {"semantic": 0.3, "coarse": 0.5, "fine": 0.2}
"""Shares of the training time where stages train one after the other: the coarse stage has most to learn."""
MINUTES = 9.0
OTHER_MINUTES = 4.5
"""Duration of everything but training on 2 cores."""
LEAST_TRAINING_MINUTES = 1.5
VALIDATIONS = 4
TIMED_STEPS, UNTIMED_STEPS = 6, 2
WARMUP_STEPS = 40
"""Optimizer steps over which the learning rate rises, or a tenth of all where that is less."""
VALIDATION_SHARE = 0.1
"""Share of a stage's time that its validations take."""
CARD_CONFIG = "demo"


@dataclass(frozen=True)
class Plan:
    """How long each stage trains: its steps, and the times from which they were computed."""

    minutes: float
    steps: dict[str, int]
    seconds_a_step: dict[str, float]


class Places:
    """Folders of the demo: its configurations, and ``work``, ``model`` and ``card`` in the output folder."""

    def __init__(self, experiments: Path, out: Path) -> None:
        self.experiments, self.out = experiments, out
        self.work, self.model, self.card = (out / name for name in ("work", "model", "card"))

    def config(self, name: str) -> Path:
        """A configuration; RequestError where it is missing."""
        path = self.experiments / f"{name}.yaml"
        if not path.is_file():
            raise RequestError(f"{path} does not exist\nname a folder that holds the demo's files: --experiments DIR")
        return path


def main(argv: Sequence[str]) -> int:
    """Run or continue the demo."""
    parser = Parser("demo", __doc__)
    minutes_help = f"approximate time in all; longer training sounds better (default: {MINUTES:g})"
    parser.add_argument("--minutes", type=float, default=MINUTES, help=minutes_help)
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="output folder (default: demo)")
    parser.add_argument(
        "--experiments",
        type=Path,
        metavar="DIR",
        help="folder of the configurations (default: experiments/quickstart here, or else those of the installation)",
    )
    parser.add_argument("--fresh", action="store_true", help="train again, even if an earlier demo's model exists")
    arguments = parser.parse_args(argv)
    if not arguments.minutes > 0:
        raise RequestError(f"--minutes must be above 0, got {arguments.minutes:g}")
    check_writable(arguments.out)
    places = Places(arguments.experiments or quickstart_folder(), arguments.out)
    for name in ("prepare", *STAGES, CARD_CONFIG):
        places.config(name)
    with held(places.out / LOCK_NAME, f"{places.out}", "wait for it, or choose another folder: --out DIR", erase=True):
        return run(places, arguments.minutes, arguments.fresh)


def quickstart_folder() -> Path:
    """The quickstart's configurations: those below the working directory, which may have been changed, come first."""
    here = Path(FOLDER) / "quickstart"
    return here if here.is_dir() else shipped_folder() / "quickstart"


def run(places: Places, minutes: float, fresh: bool) -> int:
    """Every step that is not done."""
    began = time.monotonic()
    preparation = read_config(places.config("prepare"))
    step("prepare", "--config", str(places.config("prepare")))
    plan = make_plan(places, minutes, fresh)
    queues, threads = schedule()
    run_fits([[fit(places, stage, plan) for stage in queue] for queue in queues], threads)
    export(places, {stage: best_checkpoint(run_root(places, stage)) for stage in STAGES})
    card = make_card(places, preparation)
    facts = {
        "training steps": plan.steps,
        "minutes asked for": plan.minutes,
        "seconds of this run": round(time.monotonic() - began, 1),
    }
    write_card(replace(card, title="A band for a voice: the demo", facts=facts | card.facts), places.card)
    print(f"\n{markdown(card)}\nlisten: {places.card / PAGE_FILE}\nmodel:  {places.model}")
    print(f"your voice: python -m hafm_lightning generate --vocal VOICE.wav --model {places.model} --out take")
    return DONE


def step(*arguments: str) -> None:
    """Run one command of this program, showing it."""
    print(f"\n$ python -m hafm_lightning {' '.join(arguments)}", flush=True)
    code = run_command(arguments)
    if code != DONE:
        raise SystemExit(code)


def run_root(places: Places, stage: str) -> Path:
    """Folder of a stage's runs."""
    return places.work / "runs" / stage


def make_plan(places: Places, minutes: float, fresh: bool) -> Plan:
    """The plan of an interrupted or finished demo of the same length, or a new one (which clears older runs)."""
    path = places.work / "plan.json"
    if path.is_file() and not fresh:
        advice = "remove it, or begin with --fresh"
        plan = checked(read_json(path, what="the demo's plan", advice=advice), Plan, path, advice)
        if set(plan.steps) != set(STAGES) or min(plan.steps.values()) < 1:
            raise RequestError(f"{path} is damaged (steps {plan.steps}); {advice}")
        if plan.minutes == minutes:
            return plan
    for folder in (places.work, places.card):
        shutil.rmtree(folder, ignore_errors=True)
    queues, threads = schedule()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    seconds = {stage: seconds_a_step(places, stage) for stage in STAGES}
    torch.set_num_threads(threads_before)
    training_s = 60 * max(minutes - OTHER_MINUTES, LEAST_TRAINING_MINUTES) * (1 - VALIDATION_SHARE)
    steps = {}
    for queue in queues:
        for stage in queue:
            stage_s = training_s * SHARE[stage] / sum(SHARE[other] for other in queue)
            count = max(VALIDATIONS, int(stage_s / seconds[stage]))
            steps[stage] = count - count % VALIDATIONS
    plan = Plan(minutes, {stage: steps[stage] for stage in STAGES}, seconds)
    write_json(path, asdict(plan))
    print("\ntraining steps in the time: " + ", ".join(f"{stage} {n}" for stage, n in plan.steps.items()))
    return plan


def fit_arguments(places: Places, stage: str, steps: int) -> list[str]:
    """The command line of a stage's fit after ``fit``."""
    every = max(1, steps // VALIDATIONS)
    return [
        *("--config", str(places.config(stage))),
        *("--trainer.max_steps", str(steps), "--model.init_args.optimizer.total_steps", str(steps)),
        *("--model.init_args.optimizer.warmup_steps", str(min(WARMUP_STEPS, steps // 10))),
        *("--trainer.val_check_interval", str(every), "--checkpoints.every_steps", str(every)),
        *("--trainer.default_root_dir", str(run_root(places, stage))),
    ]


def seconds_a_step(places: Places, stage: str) -> float:
    """Time of a training step on this machine, from a few of them."""
    cli = StageCLI("fit", fit_arguments(places, stage, 1000))
    data, module = cli.datamodule, cli.model
    data.setup("fit")
    batches = chain.from_iterable(iter(data.train_dataloader, None))  # repeats a small corpus
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    times = []
    for _ in range(UNTIMED_STEPS + TIMED_STEPS):
        began = time.perf_counter()
        loss = module.training_loss(next(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return sorted(times[UNTIMED_STEPS:])[TIMED_STEPS // 2]


def schedule() -> tuple[list[list[str]], int]:
    """The stages in queues that train at the same time, and the threads of each queue."""
    queues = lanes(SHARE, usable_cores())
    return queues, max(1, usable_cores() // len(queues))


def fit(places: Places, stage: str, plan: Plan) -> Fit:
    """The training run of a stage, continued from its newest checkpoint if there is one."""
    return Fit(
        name=stage,
        arguments=("fit", *fit_arguments(places, stage, plan.steps[stage]), "--ckpt_path", "auto"),
        steps=plan.steps[stage],
        root=run_root(places, stage),
        log=places.work / f"{stage}.log",
        done=places.work / f"{stage}.done",
    )


def export(places: Places, checkpoints: dict[str, Path]) -> None:
    """Write the model folder, unless it is complete."""
    done = places.work / "model.done"
    if done.is_file() and places.model.is_dir():
        return
    files = [text for stage in STAGES for text in (f"--{stage}", str(checkpoints[stage]))]
    sampling = read_settings(EvaluateSettings, ["--config", str(places.config(CARD_CONFIG))]).sampling
    chosen = {"guidance": sampling.guidance, "temperature": sampling.temperature, "top-k": sampling.top_k}
    files += [text for name, value in chosen.items() if value is not None for text in (f"--{name}", str(value))]
    step("export", *files, "--out", str(places.model), "--overwrite", "--data", "the toy band", "--license", "MIT")
    done.touch()


def make_card(places: Places, preparation: PreparationConfig) -> Card:
    """The card of the exported model, with a spectrogram and the curves of training."""
    (corpus,) = preparation.corpora
    paths: dict[str, Any] = {
        "output": str(places.card),
        "root": str(corpus.path),
        "tokenizers": str(Path(preparation.root) / "tokenizers"),
        "shards": str(preparation.root),
        "model": str(places.model),
    }
    print(f"\n$ {PROGRAM} evaluate --config {places.config(CARD_CONFIG)}", flush=True)
    settings = read_settings(EvaluateSettings, ["--config", str(places.config(CARD_CONFIG))])
    card = evaluate(replace(settings, **paths))
    pictures = {}
    for player in [player for table in card.tables for player in table.players][:1]:
        sounds = {name: read_audio(places.card / player.sounds[name]) for name in ("vocal", "generated", "truth")}
        log_mel_picture(sounds, places.card / "spectrogram.png")
        pictures[f"{player.clip_id}: log-mel spectrograms"] = "spectrogram.png"
    runs = [run for stage in STAGES if (run := newest_run(run_root(places, stage))) is not None]
    code = run_command(["curves", *map(str, runs), "--out", str(places.card / "curves")])
    if code != DONE:
        raise RuntimeError(f"curves ended with exit code {code}")
    for path in sorted((places.card / "curves").glob("*.png")):
        pictures[f"Loss and accuracy of the run {path.stem}"] = f"curves/{path.name}"
    return replace(card, pictures=pictures)
