"""From YAML to settings: values become dataclasses, and mistakes are named."""

from dataclasses import dataclass, field

import pytest

from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.settings import as_plain, build, read_yaml


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
    built = build(Outer, values, "")
    assert built == Outer(3, Other(True), Inner(names=("a",)), {"k": 1})
    assert as_plain(built) == {
        "kind": "Outer",
        "size": 3,
        "one": {"kind": "Other", "flag": True},
        "maybe": {"kind": "Inner", "number": 0.5, "names": ["a"]},
        "table": {"k": 1},
    }
    assert build(Outer, {"size": 1, "maybe": None}, "").maybe is None
    assert build(Outer, {"size": 1, "one": {"kind": "Inner", "number": 2}}, "").one == Inner(2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing key size"),
        ({"size": True}, "size: expected int, got True"),
        ({"size": 1.5}, "size: expected int, got 1.5"),
        ({"size": -1}, "size is -1"),
        ({"sice": 1}, "sice: unknown key; did you mean 'size'?"),
        ({"zzz": 1}, "zzz: unknown key; known keys: size, one, maybe, table"),
        ({"size": 1, "one": {"kind": "Inne"}}, "one.kind: got 'Inne'; did you mean 'Inner'?"),
        ({"size": 1, "one": 5}, "one.kind: got 'nothing'"),
        ({"size": 1, "one": {"kind": "Inner", "names": "ab"}}, "one.names: expected a list, got 'ab'"),
        ({"size": 1, "one": {"kind": "Inner", "names": [1]}}, "one.names.0: expected str, got 1"),
        ({"size": 1, "maybe": {"number": "x"}}, "maybe.number: expected float, got 'x'"),
        ({"size": 1, "table": 3}, "table: expected key: value pairs, got 3"),
        ([], "expected settings"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(RequestError) as caught:
        build(Outer, values, "")
    assert message in str(caught.value)


def test_files_that_are_no_configuration_are_refused(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")
    for content in (b"- 1\n- 2\n", b"", b"a: [1\n", b"a: ${nothing}\n", b"\xff\xfe\x00"):
        (tmp_path / "bad.yaml").write_bytes(content)
        with pytest.raises(RequestError, match=r"bad\.yaml"):
            read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "good.yaml").write_text("a: {b: 1}\nc: ${a.b}\nlist: [x, y]\n")
    assert read_yaml(tmp_path / "good.yaml", ["a.b=7", "list.1=z"]) == {"a": {"b": 7}, "c": 7, "list": ["x", "z"]}
    for override in ("novalue", "=3"):
        with pytest.raises(RequestError, match="is not an override"):
            read_yaml(tmp_path / "good.yaml", [override])
