"""Parts that do not belong together are refused, and the message names both parts and what differs."""

from __future__ import annotations

from typing import Any

import pytest

from hafm_lightning.audio import RESAMPLER
from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers.compatibility import (
    check_same_tokenizers,
    check_stages,
    describe_difference,
    tokenizer_difference,
)


def identities(acoustic: str = "b" * 64, resampler: str = RESAMPLER) -> dict[str, Any]:
    return {
        "semantic": {"kind": "hubert", "sha256": "a" * 64, "resampler": resampler},
        "acoustic": {"kind": "encodec", "sha256": acoustic, "resampler": resampler},
    }


def stage(conditions: list[str], target: str, **changes: Any) -> dict[str, Any]:
    return {"model": {"conditions": conditions, "target": target}, "tokenizers": identities(), "styles": []} | changes


def chain(**coarse: Any) -> dict[str, dict[str, Any]]:
    """Descriptions of two stages that belong together, but for the changes of the second."""
    return {
        "the semantic stage (s.ckpt)": stage(["vocal_semantic", "style"], "instrumental_semantic"),
        "the coarse stage (c.ckpt)": stage(["instrumental_semantic", "style"], "instrumental_coarse", **coarse),
    }


def test_differences_are_named_by_their_nested_keys() -> None:
    first = {"model": {"width": 8, "layers": 2}, "stage": "A", "only": 1}
    second = {"model": {"width": 9, "layers": 2}, "stage": "A"}
    assert describe_difference(first, second) == (
        "model.width: 8 in the checkpoint, 9 here; only: 1 in the checkpoint, None here"
    )
    many = {str(number): number for number in range(9)}
    assert describe_difference(many, {}, ("before", "after")).count("before") == 3
    assert describe_difference(first, first) == ""


def test_the_same_or_unknown_tokenizers_are_accepted() -> None:
    for trained, data in ((identities(), identities()), ({}, identities()), (identities(), {})):
        check_same_tokenizers(trained, data)
        assert tokenizer_difference("train", trained, "test", data, verb="prepared") is None


def test_different_tokenizers_are_refused_in_one_wording() -> None:
    with pytest.raises(RequestError) as refused:
        check_same_tokenizers(identities("c" * 64), identities(), advice="use the shards of the training")
    assert str(refused.value) == (
        "this checkpoint was trained with a different tokenizer than this data: "
        f"acoustic.sha256: '{'c' * 64}' in the first, '{'b' * 64}' in the second\nuse the shards of the training"
    )
    sentence = tokenizer_difference("train", identities("c" * 64), "test", identities(), verb="prepared")
    assert sentence is not None
    assert sentence.startswith("train was prepared with a different tokenizer than test: acoustic.sha256")


def test_stages_that_make_one_model_are_accepted() -> None:
    check_stages(chain(), None)
    check_stages(chain(), identities())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"conditions": ["instrumental_coarse"], "target": "instrumental_fine"}},
            r"the coarse stage \(c\.ckpt\) needs 'instrumental_coarse', which no stage before it writes",
        ),
        ({"tokenizers": {}}, r"the coarse stage \(c\.ckpt\) does not name the tokenizers of its data"),
        (
            {"tokenizers": identities("c" * 64)},
            r"the coarse stage \(c\.ckpt\) was trained with a different tokenizer than the semantic stage \(s\.ckpt\)",
        ),
        (
            {"styles": ["rock"]},
            r"the coarse stage \(c\.ckpt\) was trained with different styles than the semantic stage \(s\.ckpt\)",
        ),
    ],
)
def test_a_stage_that_does_not_continue_the_one_before_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_stages(chain(**changes), identities())


def test_styles_matter_only_to_stages_with_that_condition() -> None:
    model = {"conditions": ["instrumental_semantic"], "target": "instrumental_coarse"}
    check_stages(chain(model=model, styles=["rock"]), None)


def test_tokenizers_beside_the_stages_are_compared_too() -> None:
    with pytest.raises(RequestError, match=r"the semantic stage .* different tokenizer than the given tokenizers"):
        check_stages(chain(), identities("c" * 64))
    foreign = identities(resampler="linear")
    stages = {name: description | {"tokenizers": foreign} for name, description in chain().items()}
    with pytest.raises(RequestError, match=f"trained with resampler 'linear', .*'{RESAMPLER}'"):
        check_stages(stages, foreign)
