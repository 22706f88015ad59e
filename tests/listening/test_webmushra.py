"""The export follows webMUSHRA's format, has every sound, and is as blind as the study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import SYSTEMS, make_tiny_study

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.webmushra import CHOICES, LISTENER, export_webmushra, page_id, webmushra_config

NEEDED = {
    "consent": {"id", "name", "content", "mustConsent"},
    "volume": {"id", "name", "content", "stimulus", "defaultVolume"},
    "paired_comparison": {"id", "name", "content", "unforced", "showWaveform", "enableLooping", "reference", "stimuli"},
    "finish": {"name", "content", "showResults", "writeResults", "questionnaire"},
}
"""Keys of a page by its type, after webMUSHRA's doc/experimenter.md."""


def exported(tmp_path: Path) -> tuple[Any, Any, Path, dict[str, Any]]:
    study, key = make_tiny_study(tmp_path / "study", clips=2)
    root = tmp_path / "webMUSHRA"
    config = export_webmushra(study, root)
    assert config == root / "configs" / f"{study.study_id}.yaml"
    return study, key, root, yaml.safe_load(config.read_text())


def pages_of(content: Any) -> list[dict[str, Any]]:
    """Every page, through the lists inside of lists that webMUSHRA walks."""
    if isinstance(content, dict):
        return [content]
    return [] if content == "random" else [page for part in content for page in pages_of(part)]


def test_every_page_is_one_of_webmushras(tmp_path: Path) -> None:
    study, _, _, config = exported(tmp_path)
    assert config["testId"] == study.study_id
    assert config["bufferSize"] in (256, 512, 1024, 2048, 4096, 8192, 16384)
    pages = pages_of(config["pages"])
    assert [page["type"] for page in (*pages[:2], pages[-1])] == ["consent", "volume", "finish"]
    for page in pages:
        assert set(page) - {"type", "popupContent"} == NEEDED[page["type"]]
    assert pages[-1]["questionnaire"][0]["name"] == LISTENER


def test_the_configuration_is_in_the_yaml_that_webmushras_parser_reads(tmp_path: Path) -> None:
    """It takes a list that begins on the line of another dash (``- - random``), and folded lines, for plain text."""
    study, _, root, config = exported(tmp_path)
    lines = (root / "configs" / f"{study.study_id}.yaml").read_text().splitlines()
    assert config == webmushra_config(study)
    for line in lines:
        start, _, value = line.strip().partition(" ")
        assert start == "-" or (start.endswith(":") and start[:-1].isalpha()), line
        assert not value or not isinstance(json.loads(value), dict | list), line


def test_trials_come_in_random_order_and_their_criteria_together(tmp_path: Path) -> None:
    study, _, _, config = exported(tmp_path)
    word, *trials = config["pages"][2]
    assert word == "random"
    assert [[page["id"] for page in trial] for trial in trials] == [
        [page_id(trial.id, criterion) for criterion in study.criteria] for trial in study.trials
    ]


def test_a_page_plays_the_three_sounds_of_its_trial(tmp_path: Path) -> None:
    study, _, root, config = exported(tmp_path)
    for trial, pages in zip(study.trials, config["pages"][2][1:], strict=True):
        for page in pages:
            # webMUSHRA answers "correct" for the reference: side A
            assert (root / page["reference"]).read_bytes() == (study.folder / trial.a).read_bytes()
            (other,) = page["stimuli"].values()
            assert (root / other).read_bytes() == (study.folder / trial.b).read_bytes()
            vocal = page["content"].partition('src="')[2].partition('"')[0]
            assert (root / vocal).read_bytes() == (study.folder / trial.vocal).read_bytes()
    assert CHOICES == {"correct": "A", "incorrect": "B", "undecided": "tie"}


def test_nothing_names_a_system(tmp_path: Path) -> None:
    study, key, root, config = exported(tmp_path)
    names = [str(path.relative_to(root)) for path in root.rglob("*")]
    assert config["pages"][2].pop(0) == "random"  # the keyword
    text = "\n".join([*names, yaml.safe_dump(config)])
    secrets = {*SYSTEMS, "silence", *(entry.clip for entry in key.assignments.values()), "key.json", str(study.folder)}
    assert not [word for word in secrets if word in text]
    assert len({path.stat().st_size for path in root.rglob("*.wav")}) == 1


def test_a_question_cannot_bring_html_of_its_own(tmp_path: Path) -> None:
    study, _ = make_tiny_study(tmp_path / "study", clips=1)
    object.__setattr__(study, "question", "<script>x</script> & which?")
    config = export_webmushra(study, tmp_path / "out").read_text()
    assert "<script>" not in config
    assert "&lt;script&gt;x&lt;/script&gt; &amp; which?" in config


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    study, _ = make_tiny_study(tmp_path / "study", clips=1)
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be written"):
        export_webmushra(study, tmp_path / "file")
