"""``prepare``: songs to shards, resumably; and ``prepare --verify ROOT``: are the shards whole?"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

from hafm_lightning.cli.parser import PROGRAM, Parser
from hafm_lightning.errors import RequestError

DESCRIPTION = "Turn songs into shards of tokens; a stopped run continues where it was."
OVERRIDE_HINT = "settings are changed as key=value, without dashes: root=data/mine clips.hop_s=5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``prepare``."""
    parser.add_argument("--config", metavar="FILE", help="settings, for example experiments/prepare.yaml")
    parser.add_argument("--verify", metavar="ROOT", help="read every byte of prepared shards and report what is wrong")
    parser.add_argument("--settings", action="store_true", help="list every setting with its default and its meaning")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings to change, for example root=data/mine clips.hop_s=5"
    )


def run(args: argparse.Namespace) -> int:
    """Prepare or verify.

    Returns:
        0 when done; 1 when ``--verify`` found something wrong.

    Raises:
        RequestError: The request was wrong; the message says what to do.
    """
    if args.settings:
        print(all_settings())
        return 0
    if args.verify and args.config is None and not args.overrides:
        from hafm_lightning.preparation.verification import verify_root

        findings = verify_root(args.verify)
        print(findings.summary())
        return 1 if findings.problems else 0
    if args.config is None or args.verify:
        raise RequestError("prepare needs either --config FILE (with key=value overrides) or --verify ROOT")
    from hafm_lightning.preparation.pipeline import prepare, read_config

    print(prepare(read_config(args.config, args.overrides)).summary())
    return 0


def all_settings() -> str:
    """Every setting of the configuration, with its default and its meaning."""
    from hafm_lightning.preparation.configuration import PreparationConfig
    from hafm_lightning.preparation.settings import describe

    lines = []
    for key, default, meaning in describe(PreparationConfig):
        lines.append(f"{key}{f' = {default}' if default else ''}")
        lines += textwrap.wrap(meaning, width=110, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``prepare``: parse ``argv`` (without the command's name) and run."""
    parser = Parser(prog=f"{PROGRAM} prepare", description=DESCRIPTION, hint=OVERRIDE_HINT)
    add_arguments(parser)
    return run(parser.parse_args(argv))
