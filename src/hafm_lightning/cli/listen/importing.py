"""``listen import``: add votes that were exported as lines, or collected by webMUSHRA, to a database of votes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hafm_lightning.cli.listen.report import VOTES_FILE
from hafm_lightning.cli.parser import Parser
from hafm_lightning.listening.study import Study
from hafm_lightning.listening.votes import VoteStore
from hafm_lightning.listening.webmushra_votes import read_webmushra


def main(argv: Sequence[str]) -> int:
    """Add the votes and print how many are new.

    Raises:
        RequestError: The study, the database or a file is missing or damaged, or they do not belong together. The votes
            of files before that one stay.
    """
    parser = Parser(
        "listen import",
        "Add votes to the database of a study. Votes that it holds already are not added twice.",
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of the study")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="votes as JSON lines, or webMUSHRA's .csv")
    parser.add_argument("--votes", type=Path, help=f"the database (default: STUDY/{VOTES_FILE})")
    arguments = parser.parse_args(argv)
    study = Study.load(arguments.study)
    with VoteStore.for_study(arguments.votes or arguments.study / VOTES_FILE, study) as store:
        for file in arguments.files:
            if file.suffix.lower() == ".csv":
                new = sum(store.add(vote) for vote in read_webmushra(study, file))
            else:
                new = store.import_lines(file)
            print(f"{file}: {new} new votes")
    return 0
