"""Settings of the preparation: the shipped files parse, every key is documented, and mistakes are named."""

from dataclasses import dataclass, field

import pytest
import yaml

from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.configuration import PreparationConfig, read_config
from hafm_lightning.preparation.settings import as_plain, build, describe, read_yaml
from hafm_lightning.preparation.tokenizer_training import Encodec, Hubert, Offline
from hafm_lightning.songs import SongFolder, ToyBand


def test_the_papers_configuration_says_what_the_paper_says(repository):
    config = read_config(repository / "experiments" / "prepare.yaml")
    assert config.clips.duration_s == 10.0
    assert config.noise_sigma == 0.01
    assert isinstance(config.corpora[0], SongFolder)
    assert config.tokenizers.semantic == Hubert(layer=9)
    assert config.tokenizers.acoustic == Encodec()
    assert config.separation.model.endswith(".onnx")


def test_the_quickstart_needs_no_download(repository):
    config = read_config(repository / "experiments" / "quickstart" / "prepare.yaml", ["clips.hop_s=2", "root=/x"])
    assert isinstance(config.corpora[0], ToyBand)
    assert config.tokenizers.semantic == Offline()
    assert (config.clips.hop_s, config.root) == (2.0, "/x")


def test_the_papers_file_is_complete(repository):
    """Every setting stands in the file, so that nothing has to be looked up elsewhere."""
    text = (repository / "experiments" / "prepare.yaml").read_text()
    values = yaml.safe_load(text)
    in_comments = {"corpora.N.path", "corpora.N.split", "corpora.N.kind"}
    for key, _, _ in describe(PreparationConfig):
        if key.startswith("corpora.N"):
            names = {"allow_partial", "decoded", "vocals", "mixture"}
            names |= {"train_songs", "test_songs", "duration_s", "seed"}  # of kinds that the file only names
            if key in in_comments or key.rpartition(".")[2] in names:
                continue
            assert key.rpartition(".")[2] in values["corpora"][0], key
            continue
        place = values
        for part in key.split("."):
            assert part in place, f"experiments/prepare.yaml lacks {key}"
            place = place[part]


def test_every_setting_has_a_meaning():
    described = list(describe(PreparationConfig))
    assert len(described) > 60
    for key, _, meaning in described:
        assert meaning.strip(), f"{key} is not explained in its dataclass's docstring"
    by_key = {key: default for key, default, _ in described}
    assert by_key["clips.hop_s"] == "10.0"
    assert by_key["filters.leakage_max"] == "0.3"
    assert by_key["separation.parameters.n_fft"] == "null"
    assert by_key["root"] == "(required)"
    assert by_key["corpora.N.max_duration_s"] == "0.0"
    assert by_key["styles"] == "false"


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
