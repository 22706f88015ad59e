"""Settings from files and options: as dataclasses and back, with every mistake named."""

from dataclasses import dataclass, field

import pytest
import yaml

from hafm_lightning.configuration.settings import as_plain, build, explain, parse_settings, read_settings
from hafm_lightning.errors import RequestError


@dataclass(frozen=True)
class Inner:
    number: float = 0.5
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Other:
    flag: bool = False


@dataclass(frozen=True)
class Outer:
    size: int
    one: Inner | Other = field(default_factory=Inner)
    maybe: Inner | None = None
    table: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}")


def test_values_become_dataclasses_and_back():
    values = {"size": 3, "one": {"kind": "Other", "flag": True}, "maybe": {"names": ["a"]}, "table": {"k": 1}}
    built = build(Outer, values)
    assert built == Outer(3, Other(True), Inner(names=("a",)), {"k": 1})
    assert as_plain(built, all_kinds=False) == {
        "size": 3,
        "one": {"kind": "Other", "flag": True},
        "maybe": {"number": 0.5, "names": ["a"]},
        "table": {"k": 1},
    }
    assert as_plain(built) == {
        "kind": "Outer",
        "size": 3,
        "one": {"kind": "Other", "flag": True},
        "maybe": {"kind": "Inner", "number": 0.5, "names": ["a"]},
        "table": {"k": 1},
    }
    assert build(Outer, {"size": 1, "maybe": None}).maybe is None
    assert build(Outer, {"size": 1, "one": {"kind": "Inner", "number": 2}}).one == Inner(2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing key size"),
        ({"size": True}, "'size' must be int, got True"),
        ({"size": 1.5}, "'size' must be int, got 1.5"),
        ({"size": None}, "'size' must be int, got None"),
        ({"size": -1}, "size is -1"),
        ({"sice": 1}, "unknown key 'sice'\nwhere: \ndid you mean 'size'?"),
        ({"zzz": 1}, "unknown key 'zzz'\nwhere: \nknown here: maybe, one, size, table"),
        ({"size": 1, "one": {"kind": "Inne"}}, "'one.kind' cannot be 'Inne'\nwhere: \ndid you mean 'Inner'?"),
        ({"size": 1, "one": 5}, "'one.kind' is missing"),
        ({"size": 1, "one": {"kind": "Inner", "names": "ab"}}, "'one.names' must be a list of str, got 'ab'"),
        ({"size": 1, "one": {"kind": "Inner", "names": [1]}}, "'one.names.0' must be str, got 1"),
        ({"size": 1, "maybe": {"number": "x"}}, "'maybe.number' must be float, got 'x'"),
        ({"size": 1, "table": 3}, "'table' must be key: value pairs, got 3"),
        ([], "must be settings (key: value), got []"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(RequestError) as caught:
        build(Outer, values)
    assert message in str(caught.value)


@dataclass(frozen=True)
class Example:
    """Anything.

    Attributes:
        a: Numbers.
        c: One more, or a text.
        texts: Words.
    """

    a: dict[str, int]
    c: int = 0
    texts: tuple[str, ...] = ()


def test_files_that_are_no_configuration_are_refused(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        read_settings(Example, ["--config", str(tmp_path / "none.yaml")])
    for content in (b"- 1\n- 2\n", b"", b"a: [1\n", b"a: ${nothing}\n", b"\xff\xfe\x00"):
        (tmp_path / "bad.yaml").write_bytes(content)
        with pytest.raises(RequestError, match=r"bad\.yaml"):
            read_settings(Example, ["--config", str(tmp_path / "bad.yaml")])


def test_options_files_and_references(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text("a: {b: 1}\nc: ${a.b}\ntexts: [x, y]\n")
    (tmp_path / "more.yaml").write_text("a: {b: 8}\n")
    given = ["--config", "good.yaml"]
    assert read_settings(Example, [*given, "a.b=7", "texts.1=z"]) == Example({"b": 7}, 7, ("x", "z"))
    assert read_settings(Example, [*given, "--a.b", "7", "--texts.1=3"]) == Example({"b": 7}, 7, ("x", "3"))
    assert read_settings(Example, [*given, "--config=more.yaml", "--texts+", "z"]) == Example(
        {"b": 8}, 8, ("x", "y", "z")
    )
    assert read_settings(Example, ["--a.b=7", *given]) == Example({"b": 1}, 1, ("x", "y")), "the last one wins"
    for argument in ("novalue", "=3"):
        with pytest.raises(RequestError, match=f"unexpected argument '{argument}'"):
            read_settings(Example, [*given, argument])
    with pytest.raises(RequestError, match="name one with --config"):
        read_settings(Example, ["c=3"])


def test_another_kind_leaves_the_keys_of_the_first_behind(tmp_path):
    (tmp_path / "a.yaml").write_text("size: 1\none: {kind: Inner, number: 2}\n")
    given = ["--config", str(tmp_path / "a.yaml")]
    assert read_settings(Outer, [*given, "--one.kind", "Other", "--one.flag", "true"]).one == Other(True)
    assert read_settings(Outer, [*given, "one={kind: Other}"]).one == Other()
    with pytest.raises(RequestError, match=r"unknown key 'one.number'"):
        read_settings(Outer, [*given, "one={kind: Other, number: 2}"])


def test_help_and_the_printed_configuration(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("size: 1\none: {kind: Other}\ntable: {x: 1}\n")
    given = ["--config", str(tmp_path / "a.yaml"), "--maybe.number", "3"]
    with pytest.raises(SystemExit):
        parse_settings(Outer, [*given, "--print_config"], "program", "What it does.")
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert yaml.safe_load((tmp_path / "printed.yaml").read_text())["one"] == {"kind": "Other", "flag": False}
    assert read_settings(Outer, ["--config", str(tmp_path / "printed.yaml")]) == read_settings(Outer, given)
    text = explain(Example, "program", "What it does.")
    for words in ("program --config FILE", "What it does.", "--texts", "One more, or a text.", "default: 0"):
        assert words in text
    assert "one with kind: Inner" in explain(Outer, "program", "What it does.")
