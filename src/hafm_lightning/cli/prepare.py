"""``prepare``: songs to shards of tokens; and ``prepare --verify ROOT``: check every byte of prepared shards."""

from __future__ import annotations

from collections.abc import Sequence

from hafm_lightning.cli.parser import PROGRAM, Parser
from hafm_lightning.configuration.settings import HELP, parse_settings
from hafm_lightning.errors import RequestError

DESCRIPTION = (
    "Turn songs into shards of tokens; a stopped run continues where it stopped. "
    "With --verify ROOT and no other option: read every byte of prepared shards and report what is wrong."
)


def main(argv: Sequence[str]) -> int:
    """Prepare or verify; 1 when ``--verify`` found something wrong, else 0."""
    if any(argument.partition("=")[0] == "--verify" for argument in argv):
        return verify(argv)
    if not argv:
        raise RequestError("prepare needs either --config FILE (and --key value for changes) or --verify ROOT")
    from hafm_lightning.preparation.configuration import PreparationConfig

    # --settings is the older name of --help
    arguments = [HELP[1] if argument == "--settings" else argument for argument in argv]
    settings = parse_settings(PreparationConfig, arguments, f"{PROGRAM} prepare", DESCRIPTION)
    from hafm_lightning.preparation.pipeline import prepare

    print(prepare(settings).summary())
    return 0


def verify(argv: Sequence[str]) -> int:
    """Check prepared shards; 1 when something is wrong."""
    parser = Parser("prepare", DESCRIPTION, hint="--verify ROOT takes no other option")
    parser.add_argument("--verify", metavar="ROOT", help="folder of prepared shards")
    root = parser.parse_args(argv).verify
    from hafm_lightning.preparation.verification import verify_root

    findings = verify_root(root)
    print(findings.summary())
    return 1 if findings.problems else 0
