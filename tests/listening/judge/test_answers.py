"""Exactly the form that was asked for is accepted; everything else has a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_audio_chat import CRITERIA, answer_text

from hafm_lightning.listening.judge import answers
from hafm_lightning.listening.judge.answers import again, parse_answer, question
from hafm_lightning.listening.judge.base import Answer, Failed, Opinion


def changed(**changes: Any) -> str:
    content = json.loads(answer_text())
    content["harmony"] |= changes
    return json.dumps(content)


@pytest.mark.parametrize(
    "text",
    [
        answer_text(),
        f"\n  {answer_text()}\n",
        f"```json\n{answer_text()}\n```",
        f"```\n{answer_text()}\n```\n",
        json.dumps(json.loads(answer_text()), indent=2),
    ],
)
def test_the_form_is_accepted_with_a_code_fence_or_without(text: str) -> None:
    opinion = Opinion("first", 4.0, "the bass follows the voice")
    assert parse_answer(text, CRITERIA) == Answer(dict.fromkeys(CRITERIA, opinion))


@pytest.mark.parametrize(("written", "meant"), [("A", "first"), ("B", "second"), ("tie", "tie")])
def test_a_is_what_was_played_first(written: str, meant: str) -> None:
    answer = parse_answer(answer_text(written, 2.5), ("overall", "rhythm", "harmony"))
    assert isinstance(answer, Answer)
    assert [(o.choice, o.confidence) for o in answer.opinions.values()] == [(meant, 2.5)] * 3
    assert list(answer.opinions) == ["overall", "rhythm", "harmony"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", answers.EMPTY),
        ("I prefer A, since its bass follows the voice.", answers.PROSE),
        (f"Here is my answer: {answer_text()}", answers.PROSE),
        (f"```json\n{answer_text()}\n```\nI hope this helps.", answers.PROSE),
        ("[1, 2]", answers.PROSE),
        (f"{answer_text()} {answer_text()}", answers.NOT_JSON),
        (f"{answer_text()} I hope this helps.", answers.NOT_JSON),
        (answer_text()[:-1], answers.NOT_JSON),
        (changed(confidence=float("nan")), answers.NOT_JSON),
        (changed(confidence=1).replace('"confidence": 1,', f'"confidence": 1{"0" * 5000},'), answers.NOT_JSON),
        ('{"rhythm": ' * 1200 + "1" + "}" * 1200, answers.TOO_LONG),
        ('{"a":' * 1500, answers.NOT_JSON),
        (answer_text(criteria=("rhythm", "overall")), answers.WRONG_KEYS),
        (answer_text(criteria=(*CRITERIA, "timbre")), answers.WRONG_KEYS),
        (changed(certainty=3), answers.WRONG_KEYS),
        (answer_text()[:-1] + ', "overall": {}}', answers.WRONG_KEYS),
        (json.dumps(dict.fromkeys(CRITERIA, "A")), answers.WRONG_KEYS),
        (changed(choice="C"), answers.WRONG_CHOICE),
        (changed(choice="a"), answers.WRONG_CHOICE),
        (changed(choice=["A"]), answers.WRONG_CHOICE),
        (changed(confidence=0), answers.WRONG_CONFIDENCE),
        (changed(confidence=5.1), answers.WRONG_CONFIDENCE),
        (changed(confidence=10**400), answers.WRONG_CONFIDENCE),
        (changed(confidence="4"), answers.WRONG_CONFIDENCE),
        (changed(confidence=True), answers.WRONG_CONFIDENCE),
        (changed(confidence=None), answers.WRONG_CONFIDENCE),
        (changed(reason=""), answers.WRONG_REASON),
        (changed(reason=3), answers.WRONG_REASON),
        (changed(reason="x" * 501), answers.WRONG_REASON),
    ],
)
def test_anything_else_is_a_failure_with_its_reason(text: str, reason: str) -> None:
    assert parse_answer(text, CRITERIA) == Failed(reason, text[:8000])


def test_an_answer_that_was_cut_off_is_called_truncated() -> None:
    cut = answer_text()[:60]
    assert parse_answer(cut, CRITERIA, complete=False) == Failed(answers.TRUNCATED, cut)
    assert isinstance(parse_answer(answer_text(), CRITERIA, complete=False), Answer)


def test_the_question_names_the_criteria_of_the_study_alone() -> None:
    text = question(("harmony",))
    assert '"harmony"' in text
    assert "rhythm" not in text
    assert "overall" not in text
    assert answers.PROSE in again(Failed(answers.PROSE), CRITERIA)
