"""``fit``, ``validate``, ``test``, ``predict``: LightningCLI over any stage and any data module.

The configuration names classes (``class_path``) and their settings; options override them (``--data.root X``). This
module adds what every run needs:

* exact resume, the guard against NaN, atomic checkpoints, graceful stop, and the CSV log;
* ``use_distributed_sampler: false``, since the data modules divide the clips between processes, without padding;
* a run folder of its own for every fit (:mod:`hafm_lightning.cli.fit.runs`), and ``--ckpt_path auto``.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from omegaconf.errors import OmegaConfBaseException

from hafm_lightning.checkpoint_format import read_checkpoint
from hafm_lightning.cli import COMMANDS
from hafm_lightning.cli.fit.checks import (
    check_callbacks,
    check_intervals,
    check_limits,
    check_seed,
    comes_from_lightning,
)
from hafm_lightning.cli.fit.ending import ending
from hafm_lightning.cli.fit.errors import ParserStop, StageParser, explain
from hafm_lightning.cli.fit.runs import AUTO, BEST, best_checkpoint, claim, claimed_run, is_first, joined_run, say
from hafm_lightning.cli.fit.saved_config import SavedConfig, follow_changes
from hafm_lightning.cli.parser import PROGRAM, hand_over
from hafm_lightning.configuration.keys import KeyCheck
from hafm_lightning.configuration.origins import Origins, options_of, with_dashes
from hafm_lightning.configuration.settings import interpolation_error
from hafm_lightning.configuration.signatures import Group
from hafm_lightning.errors import RequestError
from hafm_lightning.files import write_atomic
from hafm_lightning.stages import Stage
from hafm_lightning.training.protocols import ChecksRequest, ShardSource, UsesRunFolder
from hafm_lightning.training.step_weights import check_precision, check_training

REFERENCE = re.compile(r"\$\{([a-zA-Z][\w.\[\]]*)\}")
"""A ``${...}`` on the command line that names a key."""


def callback_class(name: str) -> Any:
    """A callback, imported by its path as those in the YAML are: no room imports the linked folders."""
    return getattr(importlib.import_module("hafm_lightning.callbacks"), name)


class StageCLI(LightningCLI):
    """LightningCLI for one command; :meth:`execute` runs it.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: The command line after the command.
        build: The objects to make: model, data module and trainer; the model alone; or none.
        held: Keeps the run folder of a fit locked until it is closed; without it the fit cannot be executed.

    Raises:
        RequestError: The configuration or the command line is wrong, or the run is in use.
    """

    def __init__(
        self,
        command: str,
        arguments: Sequence[str],
        build: Literal["all", "model", "none"] = "all",
        held: contextlib.ExitStack | None = None,
    ) -> None:
        self.command, self.options = command, options_of(arguments)
        self.origins = Origins(self.options)
        self.build, self.held = build, held
        self.root = Path()
        self.ckpt_path: str | None = None
        self.draws_seed = False
        # ${...} are resolved after the last option; LightningCLI keeps all keys one section deeper than files do
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        description = f"{COMMANDS[command][1].capitalize()}."
        within = [REFERENCE.sub(rf"${{{command}.\1}}", argument) for argument in with_dashes(arguments)]
        super().__init__(
            save_config_callback=SavedConfig,
            trainer_defaults={"use_distributed_sampler": False},
            seed_everything_default=0,
            parser_class=StageParser,
            parser_kwargs={"parser_mode": "omegaconf+", "prog": PROGRAM, command: {"description": description}},
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
        for name in ("Checkpoints", "Dashboard"):
            parser.add_lightning_class_args(callback_class(name), name.lower())
        help_text = "Continue from a checkpoint although settings have changed that such a run does not follow exactly."
        parser.add_argument("--allow_changes", type=bool, default=False, help=help_text)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; mistakes are reported with file and line."""
        actions = parser._subcommands_action._name_parser_map[self.command]._actions  # type: ignore[union-attr]
        hand_over(parser._subcommands_action._name_parser_map[self.command])  # type: ignore[union-attr]
        switches = [name for action in actions for name in action.option_strings]
        for action in actions:
            if action.dest == "ckpt_path":  # Lightning's text names values that are refused here
                start = "the newest checkpoint of" if self.command == "fit" else "the best checkpoint of"
                action.help = f"A checkpoint file, or ``auto`` for {start} the newest run."
        names = sorted({str(action.dest).partition(".")[0] for action in actions} - {"help", "config", "print_config"})
        sections: dict[str, Any] = dict.fromkeys(names, Any) | {
            "model": pl.LightningModule,
            "data": pl.LightningDataModule,
            "trainer": Group(pl.Trainer),
            "checkpoints": Group(callback_class("Checkpoints")),
            "dashboard": Group(callback_class("Dashboard")),
        }
        check = KeyCheck(sections, switches)
        check.options(self.options)
        args = with_whole_numbers(args, check.whole_numbers)
        if not self.origins.files and not any(o.path[0] == "model" or o.name in ("-h", "--help") for o in self.options):
            raise RequestError("no configuration\nname one with --config, such as --config experiments/coarse.yaml")
        try:
            self.config = parser.parse_args(args)
        except ParserStop as stop:
            raise explain(stop.message, self.origins) from stop
        except OmegaConfBaseException as error:
            raise interpolation_error(error, self.origins, self.command) from error
        seed = self.config[self.command].seed_everything
        check_seed(seed)
        self.draws_seed = seed is True

    def _parse_ckpt_path(self) -> None:
        """Do not read settings from the checkpoint: one of another stage is refused."""

    def before_instantiate_classes(self) -> None:
        """Check that there is data; choose the run folder and the checkpoint."""
        config = self.config[self.command]
        if self.build != "all":
            return
        if config.get("data") is None:
            raise RequestError(
                "the configuration names no data\nadd `data: {class_path: hafm_lightning.data_modules.TokenShards, "
                "init_args: {root: FOLDER, batch_size: 8}}`"
            )
        default = Path("logs") / (self.origins.files[0].stem if self.origins.files else "run")
        self.root, self.ckpt_path = Path(config.trainer.default_root_dir or default), config.ckpt_path
        if "://" in str(self.ckpt_path):
            raise RequestError(f"--ckpt_path {self.ckpt_path}: only local files can be read\ndownload it first")
        if self.command == "fit":
            if self.held is not None and is_first() and not config.trainer.fast_dev_run:
                claimed = self.held.enter_context(claimed_run(self.root, self.ckpt_path))
            else:
                claimed = claim(self.root, self.ckpt_path)
            config.trainer.default_root_dir, config.ckpt_path = str(claimed.run), claimed.checkpoint
            return
        config.trainer.default_root_dir = str(self.root)
        if self.ckpt_path in (AUTO, "best"):
            config.ckpt_path = str(best_checkpoint(self.root))
        elif self.ckpt_path is None:
            say("no --ckpt_path: the weights are untrained (`--ckpt_path auto` takes the best)")
        elif not Path(self.ckpt_path).is_file():
            advice = f"`--ckpt_path auto` finds {BEST} under {self.root}"
            raise RequestError(f"--ckpt_path {self.ckpt_path}: no such file\n{advice}")

    # --- the objects ------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Make model, data and trainer; a ValueError of their constructors is a wrong request."""
        try:
            if self.build == "model":
                config = self.config.clone()
                config[self.command]["data"] = config[self.command]["trainer"]["callbacks"] = None
                self.model = self.parser.instantiate_classes(config)[self.command]["model"]
            elif self.build == "all":
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
        """Add what every run needs, unless the configuration names its own."""
        fitting, precision = self.command == "fit", str(config["precision"])
        check_intervals(config)
        if fitting or precision.startswith("transformer-engine"):  # which Lightning may not find
            check_precision(config["precision"])
        if config["logger"] is not False:
            loggers = [] if config["logger"] is True else as_list(config["logger"])
            for logger in loggers:
                if fitting and isinstance(logger, UsesRunFolder):
                    logger.use_run_folder(Path(config["default_root_dir"]))
            csv_log = callback_class("CsvLog")
            config["logger"] = [*loggers, csv_log(config["default_root_dir"])] if fitting else False
        config["plugins"] = plugins = as_list(config["plugins"])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(callback_class("AtomicCheckpointIO")())
        if config["enable_checkpointing"] is False:
            callbacks = [c for c in callbacks if not isinstance(c, callback_class("Checkpoints"))]
        always = [callback_class(name)() for name in ("ExactResume", "NonFiniteGuard")]
        if config["max_time"] is not None:  # Lightning's own timer counts the sessions before a resume too
            always.append(callback_class("SessionTimer")(config["max_time"]))
            config["max_time"] = None
        chosen = as_list(config["callbacks"])
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in chosen):
            always.append(callback_class("StepProgress")())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"You passed `Trainer\(accelerator='cpu', precision='16-mixed'\)`")
            trainer = super()._instantiate_trainer(config, [*always, *callbacks])
        if precision in ("16", "16-mixed") and trainer.precision == "bf16-mixed":
            say("trainer.precision 16-mixed: Lightning has no float16 autocast on a CPU; this run takes bf16-mixed")
        return trainer

    # --- the work ---------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        """Wait for :meth:`execute`."""

    def check(self) -> None:
        """Refuse data, callbacks or a checkpoint that do not fit, before a logger starts or a folder is created."""
        for part in (self.datamodule, *self.trainer.callbacks):  # type: ignore[attr-defined]
            if isinstance(part, ChecksRequest):
                part.check_request(self.command, self.trainer, self.model)
        check_limits(self.command, self.trainer)
        check_callbacks(self.trainer)
        path, stage = self.config[self.command].ckpt_path, self.model if isinstance(self.model, Stage) else None
        if stage is not None and isinstance(self.datamodule, ShardSource) and self.datamodule.manifests:
            stage.adopt(self.datamodule)
        if stage is not None and self.command == "fit":
            check_training(self.trainer)
        if path is None:
            return
        checkpoint = read_checkpoint(path, mapped=True)
        if stage is not None:
            stage.on_load_checkpoint(checkpoint)
        if self.command == "fit":
            follow_changes(
                self.trainer,
                self.model,
                self.datamodule,
                checkpoint,
                allowed=bool(self.config["fit"].allow_changes),
                draws_seed=self.draws_seed,
            )

    def execute(self) -> None:
        """Run the command."""
        self.check()
        if self.command == "fit" and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._join()
        super()._run_subcommand(self.command)
        if self.command == "fit" and is_first() and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._tell_the_end()

    def _tell_the_end(self) -> None:
        """Print the run folder, the best checkpoint and the next command."""
        kind = callback_class("Checkpoints")
        keeper = next((it for it in self.trainer.callbacks if isinstance(it, kind)), None)  # type: ignore[attr-defined]
        score = (keeper.monitor, keeper.best_score) if keeper is not None else (None, None)
        config = self.origins.files[0] if self.origins.files else None
        role = getattr(self.model, "role", None)
        print("\n".join(ending(Path(self.trainer.default_root_dir), config, role, *score)), flush=True)

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
        checkpoint = joined_run(self.root, self.ckpt_path).checkpoint
        if checkpoint != self.config[self.command].ckpt_path:
            self.config[self.command].ckpt_path = self.config_init[self.command].ckpt_path = checkpoint
            self.check()

    def predict(self, **arguments: Any) -> None:
        """Predict, and write one row a clip to ``predictions.csv`` in the root folder (one file a process)."""
        batches = self.trainer.predict(**arguments) or []
        name = f"predictions-{self.trainer.global_rank}.csv" if self.trainer.world_size > 1 else "predictions.csv"
        rows = [row for batch in batches if isinstance(batch, dict) for row in rows_of(batch)]
        if not rows:
            raise RequestError("this model's predict_step returns no columns, so there is nothing to write")
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.root / name, table.getvalue().encode())
        print(self.root / name)


def with_whole_numbers(arguments: Sequence[str], numbers: Mapping[str, tuple[str, str]]) -> list[str]:
    """Options for whole numbers with ``1e3`` written out, since the parser takes only digits there."""
    written = list(arguments)
    for place, (text, number) in numbers.items():
        name = place.rpartition(" ")[2]
        for index, argument in enumerate(written):
            if argument == f"{name}={text}":
                written[index] = f"{name}={number}"
            elif argument == text and index and written[index - 1] == name:
                written[index] = number
    return written


def as_list(value: Any) -> list[Any]:
    """The values of a setting that takes none, one or several."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def rows_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """A batch of columns (lists or tensors of one length) as rows."""
    columns = {name: values.tolist() if hasattr(values, "tolist") else list(values) for name, values in batch.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def first_reason(error: BaseException) -> BaseException:
    """The error of a constructor, below those that the parser raised from it."""
    while not isinstance(error, RequestError):
        reason = error.__cause__ or error.__context__
        if not isinstance(reason, ValueError | MisconfigurationException):
            break
        error = reason
    return error


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's notes on devices and products while a request is checked."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def read_config(command: str, arguments: Sequence[str]) -> Namespace:
    """The resolved configuration of a command, without building anything; RequestError if it is wrong."""
    config: Namespace = StageCLI(command, arguments, build="none").config[command]
    return config


def run(command: str, arguments: Sequence[str]) -> int:
    """Run one of LightningCLI's commands and return its exit code."""
    with contextlib.ExitStack() as held:
        with quiet_lightning():
            cli = StageCLI(command, arguments, held=held)
        try:
            cli.execute()
        except (MisconfigurationException, ValueError) as error:
            if isinstance(error, RequestError) or not (
                isinstance(error, MisconfigurationException) or comes_from_lightning(error)
            ):
                raise
            raise RequestError(str(error)) from error
        except SystemExit:
            if cli.trainer.interrupted and not cli.trainer.received_sigterm:  # Lightning turns Ctrl-C into exit code 1
                raise KeyboardInterrupt from None
            raise
    return 0
