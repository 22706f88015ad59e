"""Votes from the results of webMUSHRA: the other way of :mod:`~hafm_lightning.listening.webmushra`."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.study import Study
from hafm_lightning.listening.vote import Choice, Vote
from hafm_lightning.listening.webmushra import CHOICES, LISTENER, page_id

STUDY, PAGE, ANSWER, TIME = "session_test_id", "trial_id", "choice_answer", "choice_time"
"""Columns of ``paired_comparison.csv``; the time is in milliseconds."""
UNANSWERED = "unknown"
"""In the column of the answer where a page was left without one."""
LARGEST_FILE_BYTES = 256 << 20


def read_webmushra(study: Study, path: Path) -> list[Vote]:
    """The votes in a ``paired_comparison.csv``; a trial that was not answered by every criterion is left out.

    webMUSHRA shuffles the sides for each listener and does not store the order, so the presentation is always ``AB``.
    The file names listeners by what they typed, and holds the rows of one listener together. Where a name answers
    a page again, another person begins: ``ann``, ``ann (2)``.

    Raises:
        RequestError: The file cannot be read, lacks a column, or holds answers to another study or page.
    """
    pages = {page_id(t.id, criterion): (t.id, criterion) for t in study.trials for criterion in study.criteria}
    choices: dict[tuple[str, str], dict[str, Choice]] = defaultdict(dict)
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    people: Counter[str] = Counter()  # name -> earlier people of this name
    seen: dict[str, set[tuple[str, int]]] = defaultdict(set)
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise RequestError(f"{path}: is larger than {LARGEST_FILE_BYTES >> 20} MiB")
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = {STUDY, LISTENER, PAGE, ANSWER} - set(rows.fieldnames or ())
            if missing:
                raise RequestError(
                    f"{path}: has no column {', '.join(sorted(missing))}; it is not of this study's export"
                )
            for row in rows:
                place = f"{path}, line {rows.line_num}"
                if row[STUDY] != study.study_id:
                    raise RequestError(f"{place}: an answer to study {str(row[STUDY])[:40]!r}, not {study.study_id}")
                if row[PAGE] not in pages or row[ANSWER] not in (*CHOICES, UNANSWERED):
                    raise RequestError(
                        f"{place}: unknown page {str(row[PAGE])[:40]!r} or answer {str(row[ANSWER])[:40]!r}"
                    )
                trial, criterion = pages[row[PAGE]]
                name = str(row[LISTENER] or "").strip() or "unnamed"
                if (row[PAGE], people[name]) in seen[name]:
                    people[name] += 1
                seen[name].add((row[PAGE], people[name]))
                if row[ANSWER] == UNANSWERED:
                    continue
                voter = name if not people[name] else f"{name} ({people[name] + 1})"
                choices[voter, trial][criterion] = CHOICES[row[ANSWER]]
                seconds[voter, trial] += _seconds(row.get(TIME))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path}: cannot be read as webMUSHRA's results ({error})") from error
    return [
        Vote(voter, trial, "AB", answered, seconds=seconds[voter, trial] or None)
        for (voter, trial), answered in choices.items()
        if set(answered) == set(study.criteria)
    ]


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, min(float(text or 0) / 1000, 86_400.0))
    except ValueError:
        return 0.0
