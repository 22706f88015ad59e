"""``fit``, ``validate``, ``test``, ``predict``: LightningCLI over any stage and any data module.

The configuration names classes (``class_path``) and their settings; options override them (``--data.root X``). What
every run needs is added here rather than in every file:

* exact resume, the guard against NaN, atomic checkpoints, graceful stop, and the CSV log;
* ``use_distributed_sampler: false``, since the data modules divide the clips between processes, without padding;
* a run folder of its own for every fit (:mod:`hafm_lightning.cli.fit.runs`), and ``--ckpt_path auto``.

Checkpoints, the metrics of the training itself and W&B have their keys in the configuration (``checkpoints``,
``dashboard``, ``trainer.logger``). Callbacks are imported by their paths, as those in the YAML are: the core does not
import the linked folders.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from omegaconf.errors import OmegaConfBaseException

from hafm_lightning.checkpoint_format import read_checkpoint
from hafm_lightning.cli.fit.errors import ParserStop, StageParser, explain
from hafm_lightning.cli.fit.run_claim import claim, claimed_run, joined_run
from hafm_lightning.cli.fit.runs import AUTO, BEST, best_checkpoint, is_first, say
from hafm_lightning.configuration.keys import KeyCheck
from hafm_lightning.configuration.origins import Origins, config_files, options_of
from hafm_lightning.configuration.settings import interpolation_error
from hafm_lightning.configuration.signatures import Group
from hafm_lightning.errors import RequestError
from hafm_lightning.files import write_atomic
from hafm_lightning.stages import Stage
from hafm_lightning.training.protocols import ChecksRequest, ShardSource, UsesRunFolder
from hafm_lightning.training.step_weights import check_precision, check_training

CHECKPOINTS_CALLBACK = "hafm_lightning.callbacks.Checkpoints"
DASHBOARD_CALLBACK = "hafm_lightning.callbacks.Dashboard"
ALWAYS = ("hafm_lightning.callbacks.ExactResume", "hafm_lightning.callbacks.NonFiniteGuard")
CHECKPOINT_IO = "hafm_lightning.callbacks.AtomicCheckpointIO"
PROGRESS_BAR = "hafm_lightning.callbacks.StepProgress"
CSV_LOG = "hafm_lightning.callbacks.CsvLog"
DEFAULT_SEED = 0
CONFIG_NAME = "config.yaml"
REFERENCE = re.compile(r"\$\{([a-zA-Z][\w.\[\]]*)\}")
"""A ``${...}`` on the command line that names a key."""


def class_at(path: str) -> Any:
    """The class behind a dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


class SavedConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run folder and gives it to the loggers.

    ``fit --config`` with that file starts the same run again in a new folder: the file names the folder of all runs.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing yet: data or checkpoint may still be refused, and the file of an earlier run must not change then."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Once, on the first process; a run that continues writes it again."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file, and give its content to the loggers."""
        run = Path(trainer.default_root_dir)
        config = self.config.clone()
        config.trainer.default_root_dir = str(run.parent)
        if config.ckpt_path is not None and run.resolve() in Path(config.ckpt_path).resolve().parents:
            config.ckpt_path = None  # the run continued itself
        text = self.parser.dump(config, skip_none=False)
        write_atomic(run / CONFIG_NAME, text.encode())
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))


class StageCLI(LightningCLI):
    """LightningCLI for one command; :meth:`execute` runs it.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: The command line after the command.
        build: Whether to make the model, the data module and the trainer, or only to read the configuration.
        model_only: Whether to make the model and nothing else.
        holding: Keeps the run folder of a fit locked until it is closed. Without it the path of the run folder is only
            computed, and nothing that writes there can be executed.

    Raises:
        RequestError: The configuration or the command line is wrong, or the run is in use.
    """

    def __init__(
        self,
        command: str,
        arguments: Sequence[str],
        build: bool = True,
        model_only: bool = False,
        holding: contextlib.ExitStack | None = None,
    ) -> None:
        self.command, self.options = command, options_of(arguments)
        config_files(self.options)  # a missing or broken file is refused before its keys are read
        self.origins = Origins(self.options)
        self.build, self.model_only = build and not model_only, model_only
        self.root, self.holding = Path(), holding
        self.asked: str | None = None
        # ${...} are resolved after the last option; LightningCLI keeps all keys one section deeper than files do
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        within = [REFERENCE.sub(rf"${{{command}.\1}}", argument) for argument in arguments]
        super().__init__(
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SavedConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"use_distributed_sampler": False},
            seed_everything_default=DEFAULT_SEED,
            parser_class=StageParser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            args=[command, *within],
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # --- the configuration ------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only this command: building the parsers of the others takes seconds."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The keys beside ``model``, ``data`` and ``trainer``."""
        parser.add_lightning_class_args(class_at(CHECKPOINTS_CALLBACK), "checkpoints")
        parser.add_lightning_class_args(class_at(DASHBOARD_CALLBACK), "dashboard")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; mistakes are reported with file and line."""
        actions = parser._subcommands_action._name_parser_map[self.command]._actions  # type: ignore[union-attr]
        switches = [name for action in actions for name in action.option_strings]
        KeyCheck(self._sections(actions), switches).options(self.options)
        if not any(
            option.is_file or option.path[0] == "model" or option.name in switches[:2] for option in self.options
        ):
            raise RequestError("no configuration\nname one with --config, such as --config experiments/coarse.yaml")
        try:
            self.config = parser.parse_args(args)
        except ParserStop as stop:
            raise explain(stop.message, self.origins) from stop
        except OmegaConfBaseException as error:
            raise interpolation_error(error, self.origins, self.command) from error

    def _sections(self, actions: Sequence[Any]) -> dict[str, Any]:
        """The keys at the top of a configuration, with the classes whose parameters stand below them."""
        names = sorted({str(action.dest).partition(".")[0] for action in actions} - {"help", "config", "print_config"})
        return dict.fromkeys(names, Any) | {
            "model": pl.LightningModule,
            "data": pl.LightningDataModule,
            "trainer": Group(pl.Trainer),
            "checkpoints": Group(class_at(CHECKPOINTS_CALLBACK)),
            "dashboard": Group(class_at(DASHBOARD_CALLBACK)),
        }

    def _parse_ckpt_path(self) -> None:
        """Do not read settings from the checkpoint: one of another stage is refused."""

    def before_instantiate_classes(self) -> None:
        """Check that there is data; choose the run folder and the checkpoint."""
        config = self.config[self.command]
        if not self.build:
            return
        if config.get("data") is None:
            raise RequestError(
                "the configuration names no data\nadd `data: {class_path: hafm_lightning.data_modules.TokenShards, "
                "init_args: {root: FOLDER, batch_size: 8}}`"
            )
        files = config_files(self.options)
        default = Path("logs") / (files[0].stem if files else "run")
        self.root = Path(config.trainer.default_root_dir or default)
        asked = config.ckpt_path
        if asked is not None and "://" in str(asked):
            raise RequestError(f"--ckpt_path {asked}: checkpoints are read from local files only\ndownload it first")
        if self.command == "fit":
            self.asked = asked
            if self.holding is not None and is_first() and not config.trainer.fast_dev_run:
                claimed = self.holding.enter_context(claimed_run(self.root, asked))
            else:
                claimed = claim(self.root, asked)
            config.trainer.default_root_dir, config.ckpt_path = str(claimed.run), claimed.checkpoint
            return
        config.trainer.default_root_dir = str(self.root)
        if asked in (AUTO, "best"):
            config.ckpt_path = str(best_checkpoint(self.root))
        elif asked is None:
            say("no --ckpt_path: the weights are untrained (`--ckpt_path auto` takes the best)")
        elif not Path(asked).is_file():
            raise RequestError(f"--ckpt_path {asked}: no such file\n`--ckpt_path auto` finds {BEST} under {self.root}")

    # --- the objects ------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Make model, data and trainer; a ValueError of their constructors is a wrong request."""
        try:
            if self.model_only:
                config = self.config.clone()
                config[self.command]["data"] = config[self.command]["trainer"]["callbacks"] = None
                self.model = self.parser.instantiate_classes(config)[self.command]["model"]
            elif self.build:
                super().instantiate_classes()
        except ParserStop as stop:
            raise explain(stop.message, self.origins) from stop
        except (ValueError, MisconfigurationException) as error:
            reason = first_reason(error)
            if isinstance(reason, RequestError):
                raise reason from error
            lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
            raise RequestError("\n".join([*lines[:3], f"where: {self.origins.of(())}"])) from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        fitting = self.command == "fit"
        if fitting or str(config.get("precision")).startswith("transformer-engine"):  # which Lightning may not find
            check_precision(config.get("precision"))
        loggers = config.get("logger")
        if loggers is not False:
            given = loggers if isinstance(loggers, list) else [] if loggers in (None, True) else [loggers]
            for logger in given:
                if fitting and isinstance(logger, UsesRunFolder):
                    logger.use_run_folder(Path(config["default_root_dir"]))
            config["logger"] = [*given, class_at(CSV_LOG)(config["default_root_dir"])] if fitting else False
        plugins = config.get("plugins")
        given = plugins if isinstance(plugins, list) else [] if plugins is None else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in given):
            config["plugins"] = [*given, class_at(CHECKPOINT_IO)()]
        if config.get("enable_checkpointing") is False:
            callbacks = [c for c in callbacks if not isinstance(c, class_at(CHECKPOINTS_CALLBACK))]
        extra = [class_at(path)() for path in ALWAYS]
        chosen = config.get("callbacks") or []
        chosen = chosen if isinstance(chosen, list) else [chosen]
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in chosen):
            extra.append(class_at(PROGRESS_BAR)())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"You passed `Trainer\(accelerator='cpu', precision='16-mixed'\)`")
            trainer = super()._instantiate_trainer(config, [*extra, *callbacks])
        if str(config.get("precision")) in ("16", "16-mixed") and trainer.precision == "bf16-mixed":
            say("trainer.precision 16-mixed: Lightning has no float16 autocast on a CPU; this run takes bf16-mixed")
        return trainer

    # --- the work ---------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        """Wait for :meth:`execute`."""

    def check(self) -> None:
        """Check that data, callbacks and checkpoint fit, before a logger starts or a folder is created.

        Those that are :class:`~hafm_lightning.training.protocols.ChecksRequest` check themselves.

        Raises:
            RequestError: One of them does not fit.
        """
        for part in (self.datamodule, *self.trainer.callbacks):  # type: ignore[attr-defined]
            if isinstance(part, ChecksRequest):
                part.check_request(self.command, self.trainer, self.model)
        path = self.config[self.command].get("ckpt_path")
        if isinstance(self.model, Stage):
            if isinstance(self.datamodule, ShardSource) and self.datamodule.manifests:
                self.model.adopt(self.datamodule)
            if self.command == "fit":
                check_training(self.trainer)
            if path is not None:
                self.model.on_load_checkpoint(read_checkpoint(path, mapped=True))

    def execute(self) -> None:
        """Run the command."""
        assert self.subcommand is not None
        self.check()
        if self.command == "fit" and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._join()
        super()._run_subcommand(self.subcommand)

    def _join(self) -> None:
        """Continue from the same checkpoint as the first process, which alone writes to the run folder."""
        several = not is_first() or int(os.environ.get("WORLD_SIZE", "1")) > 1
        if several and self.trainer.num_devices * self.trainer.num_nodes == 1:
            raise RequestError(
                "several processes were started, but this run has one: all would train the same in one run folder\n"
                "set trainer.devices and trainer.num_nodes to what the launcher starts, or start one process"
            )
        if is_first():
            return
        checkpoint = joined_run(self.root, self.asked).checkpoint
        if checkpoint != self.config[self.command].ckpt_path:
            self.config[self.command].ckpt_path = self.config_init[self.command].ckpt_path = checkpoint
            self.check()

    def predict(self, **arguments: Any) -> None:
        """Predict, and write one row a clip to ``predictions.csv`` in the root folder (one file a process)."""
        batches = self.trainer.predict(**arguments) or []
        rank = self.trainer.global_rank
        path = self.root / (f"predictions-{rank}.csv" if self.trainer.world_size > 1 else "predictions.csv")
        rows = [row for batch in batches if isinstance(batch, dict) for row in rows_of(batch)]
        if not rows:
            raise RequestError("this model's predict_step returns no columns, so there is nothing to write")
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(path, table.getvalue().encode())
        print(path)


def rows_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """A batch of columns (lists or tensors of one length) as rows."""
    columns = {name: values.tolist() if hasattr(values, "tolist") else list(values) for name, values in batch.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def first_reason(error: BaseException) -> BaseException:
    """The error of a constructor, below those that the parser raised from it."""
    reason = error
    while isinstance(reason.__cause__ or reason.__context__, ValueError | MisconfigurationException):
        reason = reason.__cause__ or reason.__context__ or reason
        if isinstance(reason, RequestError):
            break
    return reason


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Show no notes of Lightning on devices and products while a request is checked."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def read_config(command: str, arguments: Sequence[str]) -> Namespace:
    """The resolved configuration of a command, without building anything.

    Raises:
        RequestError: The configuration or the command line is wrong.
    """
    config: Namespace = StageCLI(command, arguments, build=False).config[command]
    return config


def run(command: str, arguments: Sequence[str]) -> int:
    """Run one of LightningCLI's commands and return its exit code."""
    with contextlib.ExitStack() as holding:
        with quiet_lightning():
            cli = StageCLI(command, arguments, holding=holding)
        try:
            cli.execute()
        except MisconfigurationException as error:
            raise RequestError(str(error)) from error
        except SystemExit:
            if cli.trainer.interrupted and not cli.trainer.received_sigterm:  # Lightning turns Ctrl-C into exit code 1
                raise KeyboardInterrupt from None
            raise
    return 0


def fit(argv: Sequence[str]) -> int:
    """Train a stage."""
    return run("fit", argv)


def validate(argv: Sequence[str]) -> int:
    """Score a checkpoint on the validation clips."""
    return run("validate", argv)


def test(argv: Sequence[str]) -> int:
    """Score a checkpoint on the test clips."""
    return run("test", argv)


def predict(argv: Sequence[str]) -> int:
    """Write the loss of every test clip."""
    return run("predict", argv)
