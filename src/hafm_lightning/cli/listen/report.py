"""``listen report``: tables, intervals and verdicts from the votes of listeners or judges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hafm_lightning.cli.parser import Parser, check_writable, whole
from hafm_lightning.errors import RequestError
from hafm_lightning.listening.report.output import log_to_wandb, markdown, write_report
from hafm_lightning.listening.report.report import build_report
from hafm_lightning.listening.study import KEY_FILE, Key, Study
from hafm_lightning.listening.vote import Failure, Vote
from hafm_lightning.listening.votes import VoteStore

VOTES_FILE = "votes.sqlite"


def main(argv: Sequence[str]) -> int:
    """Write report.json, report.md and report.html, and print the tables.

    Raises:
        RequestError: Study, key or votes are missing, damaged or do not belong together, or the folder of the report
            cannot be written.
    """
    parser = Parser(
        "listen report",
        "Write what the votes on a study show: wins, preferences with intervals and tests, strengths, "
        "agreement, controls. The gate (ground truth against random pairing) is printed first.",
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of the study")
    parser.add_argument(
        "--votes", type=Path, nargs="+", metavar="FILE", help=f"databases of votes (default: STUDY/{VOTES_FILE})"
    )
    parser.add_argument("--key", type=Path, help=f"the key of the study (default: STUDY/{KEY_FILE})")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the report (default: STUDY/report)")
    parser.add_argument("--voters", nargs="+", metavar="NAME", help="report on these voters only")
    parser.add_argument(
        "--most-failed",
        type=float,
        metavar="SHARE",
        help="leave out voters who fail more than this share of the silence controls (default: leave nobody out)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the bootstrap (%(default)s)")
    parser.add_argument("--wandb-project", default="", metavar="NAME", help="also log the tables to this W&B project")
    arguments = parser.parse_args(argv)
    if arguments.most_failed is not None and not 0 <= arguments.most_failed <= 1:
        parser.error(f"--most-failed is a share from 0 to 1, got {arguments.most_failed}")
    study = Study.load(arguments.study)
    key = Key.load(arguments.key or arguments.study / KEY_FILE, study)
    votes, failures = votes_of(study, arguments.votes or [arguments.study / VOTES_FILE])
    if arguments.voters is not None:
        unknown = set(arguments.voters) - {vote.voter for vote in votes} - {failure.voter for failure in failures}
        if unknown:
            raise RequestError(f"--voters: no votes of {', '.join(sorted(unknown))}")
        votes = [vote for vote in votes if vote.voter in arguments.voters]
        failures = [failure for failure in failures if failure.voter in arguments.voters]
    if not votes and not failures:
        raise RequestError(f"there are no votes on {arguments.study} yet\ncollect them with `listen serve` or `judge`")
    output = arguments.output or arguments.study / "report"
    check_writable(output, "--output")
    report = build_report(study, key, votes, failures, most_failed=arguments.most_failed, seed=arguments.seed)
    paths = write_report(report, output)
    print(markdown(report))
    if arguments.wandb_project:
        print(log_to_wandb(report, output, arguments.wandb_project))
    print("\n".join(map(str, paths)))
    return 0


def votes_of(study: Study, files: Sequence[Path]) -> tuple[list[Vote], list[Failure]]:
    """The votes and failures of several databases; a vote that stands in two of them counts once.

    Raises:
        RequestError: A file is missing, damaged or holds votes on another study, or two contradict each other.
    """
    votes: dict[tuple[str, str, str], Vote] = {}
    failures: dict[tuple[str, str, str], Failure] = {}
    for file in files:
        with VoteStore.open(file, study.study_id, must_exist=True) as store:
            for vote in store.votes():
                earlier = votes.setdefault((vote.voter, vote.trial, vote.presentation), vote)
                if not earlier.same_answer(vote):
                    raise RequestError(
                        f"{file}: {vote.voter} votes otherwise on trial {vote.trial} than in another file"
                    )
            failures |= {(f.voter, f.trial, f.presentation): f for f in store.failures()}
    return list(votes.values()), [failure for place, failure in failures.items() if place not in votes]
