"""The tables of the reference say what the code does: keys, defaults, and a meaning for each."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

import pytest
from shown import DOCS

pytest.importorskip("sphinx", reason="needs the extra docs")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    path = DOCS / "extensions" / "generated_reference.py"
    spec = importlib.util.spec_from_file_location("generated_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generated_reference"] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Inner:
    """Inside.

    Attributes:
        width: How ``wide``.
    """

    width: int = 3


@dataclass(frozen=True)
class Outer:
    """Outside.

    Attributes:
        name: A name.
        kind: See :class:`~a.b.C`.
    """

    name: str
    inner: Inner = field(default_factory=Inner)
    kind: Literal["one", "two"] = "one"


class Plain:
    """A class that is no dataclass."""

    def __init__(self, root: str, seed: int | None = None, inner: Inner = Inner(7)) -> None:
        """Store it.

        Args:
            root: A folder.
            seed: A seed.
        """


class Unexplained:
    """A class that explains half of it.

    Args:
        root: A folder.
    """

    def __init__(self, root: str, seed: int = 0) -> None:
        pass


def test_dataclasses_are_opened_with_dotted_keys(reference: ModuleType) -> None:
    assert [tuple(row) for row in reference.keys_of(Outer, "model.")] == [
        ("model.name", "str", "required", "A name."),
        ("model.inner.width", "int", "3", "How ``wide``."),
        ("model.kind", "one | two", "one", "See a.b.C."),
    ]


def test_arguments_of_a_class_have_their_defaults(reference: ModuleType) -> None:
    assert [tuple(row)[:3] for row in reference.keys_of(Plain)] == [
        ("root", "str", "required"),
        ("seed", "int | null", "null"),
        ("inner.width", "int", "7"),
    ]


def test_a_key_without_a_meaning_is_an_error(reference: ModuleType) -> None:
    with pytest.raises(Exception, match="does not explain 'seed'"):
        list(reference.keys_of(Unexplained))
