"""Settings of the preparation: the shipped files parse to what they say, and every key is documented."""

import dataclasses
import json
import re
import typing

import yaml

from hafm_lightning.configuration.settings import as_plain, explain
from hafm_lightning.configuration.signatures import choices_of, kinds_of
from hafm_lightning.preparation.configuration import PreparationConfig, read_config
from hafm_lightning.preparation.tokenizer_training import Encodec, Hubert, Offline
from hafm_lightning.songs.corpora import SongFolder, ToyBand


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
    """Every setting stands in the file, so that nothing has to be looked up elsewhere, and each with the value read."""
    path = repository / "experiments" / "prepare.yaml"
    written = yaml.safe_load(path.read_text())
    assert as_plain(read_config(path), all_kinds=False) == json.loads(json.dumps(written))


def documented(kind: type) -> typing.Iterator[tuple[str, str]]:
    """Field and the text that its dataclass's docstring gives it, of a dataclass and those inside it."""
    texts = dict(re.findall(r"^ {8}(\w+): (.+)$", kind.__doc__ or "", flags=re.MULTILINE))
    for field in dataclasses.fields(kind):
        yield f"{kind.__name__}.{field.name}", texts.get(field.name, "")
        hint = typing.get_type_hints(kind)[field.name]
        for part in (hint, *kinds_of(hint).elements):
            for inner in choices_of(part).values() or kinds_of(part).classes:
                yield from documented(inner)


def test_every_setting_has_a_meaning_that_the_help_shows():
    meanings = dict(documented(PreparationConfig))
    assert len(meanings) > 60
    text = " ".join(explain(PreparationConfig, "prepare", "").split())
    for key, meaning in meanings.items():
        assert meaning, f"{key} is not explained in its dataclass's docstring"
        assert meaning.split(".")[0][:25] in text, key
    for option, default in (
        ("--clips.hop_s", "10.0"),
        ("--filters.leakage_max", "0.3"),
        ("--separation.parameters.n_fft", "null"),
        ("--styles", "False"),
    ):
        assert re.search(rf"{option} [^()]*(\([^()]*\)[^()]*)*\(type: [^()]*, default: {default}\)", text), option
    assert re.search(r"--root ROOT Output folder\. \(required, type: str\)", text)
    assert "corpora with kind: ToyBand" in text
