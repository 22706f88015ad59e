"""The question to an audio chat model, and a strict parser of its answer.

The answer is one JSON object: each criterion with choice (``A``, ``B`` or ``tie``), confidence (1 to 5) and reason. The
parser accepts this alone, with a Markdown code fence around it at most. Everything else is a failure with a reason: an
answer that must be guessed at is no measurement.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from hafm_lightning.listening.judge.base import (
    HIGHEST_CONFIDENCE,
    LOWEST_CONFIDENCE,
    Answer,
    Failed,
    Opinion,
    Preference,
)

LONGEST_ANSWER, LONGEST_REASON = 8000, 500
"""Characters of an answer, and of a reason."""
CHOICES: dict[str, Preference] = {"A": "first", "B": "second", "tie": "tie"}
"""What the model may write -> what it prefers; ``A`` is played first."""
FIELDS = ("choice", "confidence", "reason")

EMPTY = "the answer is empty"
TOO_LONG = f"the answer is longer than {LONGEST_ANSWER} characters"
PROSE = "the answer is prose, not a JSON object"
TRUNCATED = "the answer is truncated"
NOT_JSON = "the answer is not valid JSON"
WRONG_KEYS = "the answer lacks a key, or has a key that was not asked for"
WRONG_CHOICE = "a choice is not A, B or tie"
WRONG_CONFIDENCE = "a confidence is not a number from 1 to 5"
WRONG_REASON = f"a reason is not a text of 1 to {LONGEST_REASON} characters"

_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```", flags=re.DOTALL)
_ASPECTS = {
    "rhythm": "whose beat and onsets agree better with the singing",
    "harmony": "whose chords and key agree better with the singing",
    "overall": "which accompaniment fits the singing better in all",
}


class _Refused(ValueError):
    """The answer is no answer; the text is one of the reasons above."""


def question(criteria: Sequence[str]) -> str:
    """What the model is asked after the three sounds."""
    aspects = "\n".join(f"- {criterion}: {_ASPECTS[criterion]}" for criterion in criteria)
    return (
        "vocal.wav is a singing voice. A.wav and B.wav are the same voice with two different accompaniments. Which "
        "accompaniment matches the vocal better? Judge by:\n"
        f"{aspects}\n"
        f"{form(criteria)}"
    )


def form(criteria: Sequence[str]) -> str:
    """The form of the answer."""
    entry = '{"choice": "A" or "B" or "tie", "confidence": 1 to 5, "reason": "one short sentence"}'
    entries = ", ".join(f'"{criterion}": {entry}' for criterion in criteria)
    return f"Answer with one JSON object and nothing else:\n{{{entries}}}"


def again(failure: Failed, criteria: Sequence[str]) -> str:
    """The request to write an answer again that could not be used."""
    return f"Your answer cannot be used: {failure.reason}. Keep your judgement and write it again. {form(criteria)}"


def parse_answer(text: str, criteria: Sequence[str], *, complete: bool = True) -> Answer | Failed:
    """An answer from a model's text.

    Args:
        text: What the model wrote.
        criteria: Keys of the answer.
        complete: Whether the model ended by itself; a text that was cut off and cannot be used is ``TRUNCATED``.
    """
    try:
        return Answer({criterion: _opinion(entry) for criterion, entry in _object(text, criteria).items()})
    except _Refused as error:
        reason = str(error)
        if not complete and reason != TOO_LONG:
            reason = TRUNCATED
        return Failed(reason, text[:LONGEST_ANSWER])


def _object(text: str, criteria: Sequence[str]) -> dict[str, Any]:
    """The JSON object, with the criteria in the study's order."""
    if len(text) > LONGEST_ANSWER:
        raise _Refused(TOO_LONG)
    text = text.strip()
    if not text:
        raise _Refused(EMPTY)
    fenced = _FENCE.fullmatch(text)
    if fenced is not None:
        text = fenced[1].strip()
    if not text.startswith("{"):
        raise _Refused(PROSE)
    try:
        content = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_refuse_constant)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _Refused(NOT_JSON) from error
    except _Refused:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise _Refused(NOT_JSON) from error
    if content.keys() != set(criteria):
        raise _Refused(WRONG_KEYS)
    return {criterion: content[criterion] for criterion in criteria}


def _opinion(entry: Any) -> Opinion:
    if not isinstance(entry, dict) or entry.keys() != set(FIELDS):
        raise _Refused(WRONG_KEYS)
    choice, confidence, reason = (entry[name] for name in FIELDS)
    if not isinstance(choice, str) or choice not in CHOICES:
        raise _Refused(WRONG_CHOICE)
    if isinstance(confidence, bool) or not isinstance(confidence, int | float):
        raise _Refused(WRONG_CONFIDENCE)
    if not LOWEST_CONFIDENCE <= confidence <= HIGHEST_CONFIDENCE:
        raise _Refused(WRONG_CONFIDENCE)
    if not isinstance(reason, str) or not 0 < len(reason.strip()) <= LONGEST_REASON:
        raise _Refused(WRONG_REASON)
    return Opinion(CHOICES[choice], float(confidence), " ".join(reason.split()))


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _Refused(WRONG_KEYS)
    return content


def _refuse_constant(name: str) -> Any:
    raise _Refused(NOT_JSON)
