"""``listen remove``: delete the votes of listeners or judges, as when a listener asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hafm_lightning.cli.listen.report import VOTES_FILE
from hafm_lightning.cli.parser import Parser
from hafm_lightning.errors import RequestError
from hafm_lightning.listening.serve.listeners import Listeners
from hafm_lightning.listening.study import Study
from hafm_lightning.listening.votes import VoteStore


def main(argv: Sequence[str]) -> int:
    """Delete votes and print how many.

    Raises:
        RequestError: The study or the database is missing or damaged, or a listener is not in it; then nothing is
            deleted.
    """
    parser = Parser(
        "listen remove",
        "Delete everything that listeners have answered and heard, from the database and from its bytes. Their links "
        "and invitations stay closed. This cannot be undone; copies and exported lines are not touched. The admin page "
        "and `listen report` list the ids. A running server need not be stopped.",
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of the study")
    parser.add_argument(
        "--listener", nargs="+", required=True, metavar="ID", help="ids of listeners, or judge:NAME for a judge"
    )
    parser.add_argument("--votes", type=Path, metavar="FILE", help=f"the database (default: STUDY/{VOTES_FILE})")
    arguments = parser.parse_args(argv)
    study = Study.load(arguments.study)
    path = arguments.votes or arguments.study / VOTES_FILE
    with VoteStore.open(path, study.study_id, must_exist=True) as store:
        listeners = Listeners(path)
        try:
            joined = {listener.voter for listener in listeners.all()}
            voters = {vote.voter for vote in store.votes()} | {failure.voter for failure in store.failures()}
            unknown = sorted(set(arguments.listener) - joined - voters)
            if unknown:
                raise RequestError(f"{path}: no listener or judge {', '.join(unknown)[:200]}; nothing was deleted")
            for voter in dict.fromkeys(arguments.listener):
                if voter in joined:
                    listeners.withdraw(voter)  # first: a running server takes no vote of theirs after it
                print(f"{voter}: {store.remove(voter)} votes deleted")
        finally:
            listeners.close()
    return 0
