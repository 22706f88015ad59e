"""``completion SHELL``: a script with which the shell completes commands, options and files after ``hafm``.

The script is made once, by shtab, from the parsers of all commands, so that the Tab key starts no Python. After an
update of this package it is made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from hafm_lightning.cli import available, find
from hafm_lightning.cli.parser import SCRIPT, Parser, ParserMade, only_parsers
from hafm_lightning.errors import RequestError

SHELLS = ("bash", "zsh", "tcsh")
INSTALLING = """\
bash: hafm completion bash > ~/.local/share/bash-completion/completions/hafm
zsh:  hafm completion zsh > DIR/_hafm, where DIR is a folder of $fpath
tcsh: hafm completion tcsh > ~/.hafm.tcsh, and `source ~/.hafm.tcsh` in ~/.tcshrc
Making the script takes half a minute; a new shell reads it."""
LIGHTNING = ("fit", "validate", "test", "predict")
FOLDERS, FILES = ("DIR",), ("FILE", "CKPT", "RUN", "CONFIG", "JSON")
"""Words in the name of an option's value that ask for a folder or for a file."""


def main(argv: Sequence[str]) -> int:
    """Print the script."""
    description = f"Print a script that completes commands and options of {SCRIPT}.\n\n{INSTALLING}"
    parser = Parser("completion", description)
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")
    shell = parser.parse_args(argv).shell
    try:
        import shtab
    except ImportError as error:
        raise RequestError("completion needs the package shtab\nfix: pip install shtab") from error
    print(shtab.complete(whole_parser(), shell=shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser with every command, its options and sub-commands; it completes, and parses nothing."""
    root = argparse.ArgumentParser(prog=SCRIPT)
    root.add_argument("--version", action="store_true", help="print the version")
    commands = root.add_subparsers()
    fit = made_by("fit", [])
    for name, (_, text) in available().items():
        one = commands.add_parser(name, help=text)
        if name == "listen":
            from hafm_lightning.cli.listen import SUBCOMMANDS

            steps = one.add_subparsers()
            for step, meaning in SUBCOMMANDS.items():
                add_options(steps.add_parser(step, help=meaning), actions_of(f"listen {step}"))
        elif name in LIGHTNING:
            add_options(one, [*fit._actions, *short_keys()])
        else:
            add_options(one, actions_of(name))
    return root


def actions_of(command: str) -> list[argparse.Action]:
    """Options of a command (or of ``listen STEP``) other than those of LightningCLI."""
    from hafm_lightning.configuration.settings import parser_for

    name, *step = command.split()
    settings = settings_of(command)
    if settings is not None:
        flags = argparse.ArgumentParser(add_help=False)
        for flag in {"prepare": ("--verify",), "evaluate": ("--details", "--tune-sampling")}.get(command, ()):
            flags.add_argument(flag, action="store_true")
        return [*parser_for(settings, command, "")._actions, *flags._actions]
    return list(made_by(name, step)._actions)


def settings_of(command: str) -> type | None:
    """The dataclass of a command that is configured by YAML."""
    if command == "prepare":
        from hafm_lightning.preparation.configuration import PreparationConfig

        return PreparationConfig
    if command == "evaluate":
        from hafm_lightning.evaluation.settings import EvaluateSettings

        return EvaluateSettings
    if command == "listen build":
        from hafm_lightning.listening.trials.settings import ListenSettings

        return ListenSettings
    return None


def made_by(command: str, arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser that a command makes."""
    try:
        with only_parsers():
            if command in LIGHTNING:
                from hafm_lightning.cli.fit.training import StageCLI, quiet_lightning

                with quiet_lightning():
                    StageCLI(command, [], build="none")
            find(command)(list(arguments))
    except ParserMade as made:
        return made.parser
    raise AssertionError(f"{command} made no parser")


def short_keys() -> list[argparse.Action]:
    """The keys of the short help of `fit`: those of model and data are options of classes that a file names."""
    from hafm_lightning.cli.fit.command import KEYS

    parser = argparse.ArgumentParser(add_help=False)
    for keys in KEYS.values():
        for key, meaning in keys.items():
            option, _, value = key.partition(" ")
            parser.add_argument(option, metavar=value or None, help=meaning.replace("%", "%%"))
    return list(parser._actions)


def add_options(parser: argparse.ArgumentParser, actions: Iterable[argparse.Action]) -> None:
    """Add the options of other parsers, each once: names, help and choices, files where the value is one."""
    import shtab

    known = set(parser._option_string_actions)
    for action in actions:
        names = [name for name in action.option_strings if name not in known]
        if action.help == argparse.SUPPRESS or (action.option_strings and not names):
            continue
        known |= set(names)
        text = " ".join(str(action.help or "").replace("%", "%%").split())
        metavar = action.metavar if isinstance(action.metavar, str) else str(action.dest).upper()
        if action.option_strings and action.nargs == 0:
            parser.add_argument(*names, action="store_true", help=text)
            continue
        choices = [str(choice) for choice in action.choices] if action.choices else None
        added = parser.add_argument(
            *(names or [action.dest]), nargs=None if names else "?", choices=choices, metavar=metavar, help=text
        )
        if any(word in metavar for word in FOLDERS):
            added.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif any(word in metavar for word in FILES) or not action.option_strings:
            added.complete = shtab.FILE  # type: ignore[attr-defined]
