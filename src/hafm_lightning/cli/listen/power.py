"""``listen power``: how many trials and listeners a question needs."""

from __future__ import annotations

from collections.abc import Sequence

from hafm_lightning.cli.parser import Parser, whole
from hafm_lightning.listening.power import (
    MOST_TRIALS,
    Panel,
    Question,
    approximate_trials,
    detectable_share,
    power_of,
    trials_for,
)

SHARES = (0.75, 0.7, 0.65, 0.6, 0.55)


def main(argv: Sequence[str]) -> int:
    """Print a table.

    Raises:
        RequestError: A number is out of its range, or more trials are needed than can be counted.
    """
    parser = Parser(
        "listen power",
        "How many trials (votes on one pair of systems) show that one of them is preferred: exact power of "
        "the two-sided binomial test, which leaves ties out. With --clips also how many listeners give them.",
    )
    parser.add_argument("--share", type=float, nargs="+", default=SHARES, help="true shares of the better system")
    parser.add_argument("--power", type=float, default=0.8, help="probability to show it (%(default)s)")
    parser.add_argument("--alpha", type=float, default=0.05, help="level of the test (%(default)s)")
    parser.add_argument("--ties", type=float, default=0.0, help="share of votes that are ties (%(default)s)")
    parser.add_argument("--trials", type=whole(1, MOST_TRIALS), help="say instead what this many trials can show")
    parser.add_argument(
        "--clips", type=whole(1, MOST_TRIALS), help="clips of the study, each of which is heard by many listeners"
    )
    parser.add_argument(
        "--each", type=whole(0, MOST_TRIALS), default=0, help="of these, how many a listener hears (default: all)"
    )
    parser.add_argument(
        "--clip-correlation", type=float, default=0.1, help="correlation of votes on one clip (%(default)s)"
    )
    parser.add_argument(
        "--listener-correlation", type=float, default=0.05, help="correlation of votes of one listener (%(default)s)"
    )
    arguments = parser.parse_args(argv)
    questions = [Question(s, arguments.power, arguments.alpha, arguments.ties) for s in arguments.share]
    test = f"two-sided binomial test at {arguments.alpha:g}, {arguments.ties:.0%} ties"
    if arguments.trials is not None:
        print(f"{arguments.trials} trials, {test}")
        for question in questions:
            power = power_of(arguments.trials, question)
            print(f"  a true share of {question.share:.1%} is shown with probability {power:.2f}")
        share = detectable_share(arguments.trials, questions[0])
        least = "no share" if share is None else f"shares of {share:.1%} and more"
        print(f"  {least} with probability {arguments.power:g}")
        return 0
    panel = None
    if arguments.clips is not None:
        panel = Panel(arguments.clips, arguments.each, arguments.clip_correlation, arguments.listener_correlation)
    print(f"power {arguments.power:g}, {test}")
    columns = ["true share", "trials", "by normal approximation"]
    if panel is not None:
        columns.append(f"listeners, {panel.votes_each} of {panel.clips} clips each")
    rows = [columns]
    for question in questions:
        trials = trials_for(question)
        rows.append([f"{question.share:.1%}", str(trials), str(approximate_trials(question))])
        if panel is not None:
            listeners = panel.listeners_for(trials)
            rows[-1].append(
                f"none suffice: {panel.clips_for(trials)} clips at least" if listeners is None else str(listeners)
            )
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
