"""The parser of commands without a configuration: one spelling of options, and parsers without parsing."""

from __future__ import annotations

import pytest

from hafm_lightning.cli.parser import Parser, ParserMade, only_parsers
from hafm_lightning.errors import RequestError


def parser() -> Parser:
    made = Parser("try", "To try.")
    made.add_argument("--top-k", type=int)
    made.add_argument("--clip_s", type=float)
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        ["--top-k", "3", "--clip_s", "2"],
        ["--top_k", "3", "--clip-s", "2"],
        ["--top_k=3", "--clip-s=2"],
        ["--top-k=3", "--clip_s=2"],
    ],
)
def test_dashes_and_underscores_are_one(arguments: list[str]) -> None:
    """Keys of a configuration have underscores, options of other commands had to have dashes."""
    found = parser().parse_args(arguments)
    assert (found.top_k, found.clip_s) == (3, 2.0)
    known, rest = parser().parse_known_args([*arguments, "--model.look_ahead_s", "1"])
    assert (known.top_k, known.clip_s, rest) == (3, 2.0, ["--model.look_ahead_s", "1"])


def test_values_and_what_follows_two_dashes_stay_as_they_are() -> None:
    made = Parser("try", "To try.")
    made.add_argument("--some-name")
    made.add_argument("files", nargs="*")
    found = made.parse_args(["--some_name", "a_b", "--", "--some_name"])
    assert (found.some_name, found.files) == ("a_b", ["--some_name"])


def test_a_misspelt_option_is_still_refused() -> None:
    with pytest.raises(RequestError, match="did you mean '--top-k'"):
        parser().parse_args(["--top_kk", "3"])


def test_only_the_parser_is_made() -> None:
    made = parser()
    with only_parsers(), pytest.raises(ParserMade) as carried:
        made.parse_args(["--nonsense"])
    assert carried.value.parser is made
    assert made.parse_args([]).top_k is None
