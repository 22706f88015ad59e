"""Type hints taken apart: the classes, elements, values and scalars that each allows."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from hafm_lightning.configuration.signatures import Group, choices_of, kinds_of, parameters_of


class Colour(enum.Enum):
    RED = 1


@dataclass
class First:
    size: int


@dataclass
class Second:
    name: str = ""


class Plain:
    def __init__(self, width: int) -> None: ...


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, {"scalars": (int,)}),
        (None, {"scalars": (None,)}),
        (Path, {"scalars": (Path,)}),
        (Colour, {"scalars": (Colour,)}),
        (Literal["a", "b"], {"scalars": (Literal["a", "b"],)}),
        (First, {"classes": (First,)}),
        (Group(Plain), {"classes": (Plain,)}),
        (Annotated[First, "a note"], {"classes": (First,)}),
        (list[First], {"elements": (First,)}),
        (tuple[int, ...], {"elements": (int,)}),
        (Sequence, {"elements": (Any,)}),
        (dict[str, First], {"values": (First,)}),
        (dict, {"values": (Any,)}),
        (Any, {"open": True}),
        (
            First | list[Second] | dict[str, int] | float,
            {"classes": (First,), "elements": (Second,), "values": (int,), "scalars": (float,)},
        ),
    ],
)
def test_a_type_hint_is_taken_apart(hint, expected):
    kinds = kinds_of(hint)
    assert kinds._asdict() == {"classes": (), "elements": (), "values": (), "scalars": (), "open": False, **expected}
    assert kinds.has_text == (bool(kinds.scalars) and hint is not None)


def test_several_dataclasses_are_choices_by_name():
    assert choices_of(First | Second) == {"First": First, "Second": Second}
    for hint in (First, First | None, First | int | Plain, Any, Group(First)):
        assert choices_of(hint) == {}


def test_the_parameters_of_a_class_have_their_types():
    assert parameters_of(First) == {"size": int}
    assert parameters_of(Second) == {"name": str}
