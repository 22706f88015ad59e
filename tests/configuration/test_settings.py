"""Settings from files and options: as dataclasses and back, with every mistake of prepare and evaluate named."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from key_cases import PREPARATION, refusal

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


@dataclass(frozen=True)
class Number:
    """A number, as :class:`~numpy.float64`.

    Attributes:
        value: The number.
    """

    value: float


@dataclass(frozen=True)
class Several:
    several: tuple[Number, ...] = ()


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
    assert "each element of several\nA number, as numpy.float64" in explain(Several, "program", "What it does.")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("clips:", "clip:", 4, "unknown key 'clip'; did you mean 'clips'?"),
        ("hop_s:", "hop-s:", 5, "unknown key 'clips.hop-s'; did you mean 'hop_s'?"),
        ("hop_s:", "Hop_S:", 5, "unknown key 'clips.Hop_S'; did you mean 'hop_s'?"),
        ("path:", "pth:", 3, "unknown key 'corpora.0.pth'; did you mean 'path'?"),
        ("layer:", "layr:", 9, "unknown key 'tokenizers.semantic.layr'; did you mean 'layer'?"),
        ("n_fft:", "nfft:", 12, "unknown key 'separation.parameters.nfft'; did you mean 'n_fft'?"),
        ("Hubert", "hubert", 8, "'tokenizers.semantic.kind' cannot be 'hubert'; did you mean 'Hubert'?"),
        ("Hubert", "Offline", 9, "unknown key 'tokenizers.semantic.layer'"),
        ("{kind: ToyBand, ", "{", 3, "'corpora.0.kind' is missing"),
        ("hop_s: 5", "hop_s: five", 5, "'clips.hop_s' must be float, got 'five'"),
        ("hop_s: 5", "hop_s: -1.0", 5, "clips: hop_s is -1.0, must be a positive multiple of 0.04 s"),
        ("hop_s: 5", "hop_s: ${root}", 5, "'clips.hop_s' must be float, got 'out'"),
        ("root: out", "root: ${nope}", 1, "root: Interpolation key 'nope' not found"),
        ("root: out", "seed: 1", None, "missing key root"),
        ("root: out", "root: [}", 1, "configuration file p.yaml is not YAML: expected the node content, but found '}'"),
    ],
)
def test_prepare_names_file_and_line(tmp_path, monkeypatch, capsys, old, new, line, message):
    monkeypatch.chdir(tmp_path)
    assert PREPARATION.count(old) == 1
    Path("p.yaml").write_text(PREPARATION.replace(old, new))
    what, _, meant = message.partition("; ")
    told = refusal(capsys, "prepare", "--config", "p.yaml")
    where = f"p.yaml, line {line}" if line else "p.yaml"
    assert told.startswith(f"error: {what}\nwhere: {where}\n{meant}")


@pytest.mark.parametrize("dashes", ["", "--"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("clips.hop=5", "unknown key 'clips.hop'; did you mean 'hop_s'?"),
        ("clips={hop: 5}", "unknown key 'clips.hop'; did you mean 'hop_s'?"),
        ("corpora.0.pth=x", "unknown key 'corpora.0.pth'; did you mean 'path'?"),
        ("corpora.0.kind=ToyBnd", "'corpora.0.kind' cannot be 'ToyBnd'; did you mean 'ToyBand'?"),
        ("tokenizers.semantic.layr=3", "unknown key 'tokenizers.semantic.layr'; did you mean 'layer'?"),
        ("noise_sigma.x=3", "unknown key 'noise_sigma.x'; 'noise_sigma' takes a value and has no keys of its own"),
        ("noise_sigma=1e-3x", "'noise_sigma' must be float, got '1e-3x'"),
        ("clips=5", "'clips' must be settings (key: value), got 5"),
        ("clips.hop_s=-1", "clips: hop_s is -1.0, must be a positive multiple of 0.04 s"),
        ("root=${nope}", "root: Interpolation key 'nope' not found"),
        ("clips={hop_s: 1, hop_s: 2}", "key 'hop_s' is set twice; keep one of the two"),
    ],
)
def test_prepare_names_the_option(tmp_path, monkeypatch, capsys, dashes, option, message):
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(PREPARATION)
    what, _, meant = message.partition("; ")
    told = refusal(capsys, "prepare", "--config", "p.yaml", dashes + option)
    assert told.startswith(f"error: {what}\nwhere: command line: --{option.partition('=')[0]}\n{meant}")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("temperature:", "temprature:", 7, "unknown key 'sampling.temprature'; did you mean 'temperature'?"),
        ("duration_s:", "duration:", 4, "unknown key 'protocols.0.duration'; did you mean 'duration_s'?"),
        ("name: logmel", "nam: logmel", 8, "unknown key 'embeddings.0.nam'; did you mean 'name'?"),
        ("root: songs", "systems: [rndom]", 2, "systems: unknown rndom; choose from"),
    ],
)
def test_evaluate_names_file_and_line(tmp_path, monkeypatch, capsys, old, new, line, message):
    monkeypatch.chdir(tmp_path)
    text = (
        "output: out\nroot: songs\nprotocols:\n  - {name: p, duration_s: 3}\ntokenizers: t\n"
        "sampling:\n  temperature: 1\nembeddings: [{name: logmel}]\n"
    )
    assert text.count(old) == 1
    Path("e.yaml").write_text(text.replace(old, new) + ("root: songs\n" if "root" in old else ""))
    what, _, meant = message.partition("; ")
    told = refusal(capsys, "evaluate", "--config", "e.yaml")
    assert told.startswith(f"error: {what}")
    assert f"where: e.yaml, line {line}\n" in told
    assert meant in told
    Path("e.yaml").write_text(text.replace("name: logmel", "name: logmel, name: logmel"))
    assert "key 'embeddings.0.name' is set twice\nwhere: e.yaml, lines 8 and 8" in refusal(
        capsys, "evaluate", "--config", "e.yaml"
    )
