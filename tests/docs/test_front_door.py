"""README, examples of sound, citation and templates: short, true to each other, and complete."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from shown import DOCS, PAGES, ROOT, TUTORIALS

from hafm_lightning import __version__

LONGEST_README = 130
LARGEST_SOUND_BYTES = 150_000
REPOSITORY = re.compile(r"github\.com/([\w.-]+/hafm_lightning)\b")
COLAB = re.compile(r"colab\.research\.google\.com/github/([\w.-]+/hafm_lightning)/blob/main/(\S+?\.ipynb)")


def tracked() -> list[Path]:
    """Text files of the checkout that may name the repository."""
    names = [*PAGES, ROOT / "setup.cfg", ROOT / "CITATION.cff", *(ROOT / ".github").rglob("*.yml")]
    return [*names, *(DOCS / "notebooks").glob("*.ipynb")]


def test_readme_is_read_in_a_minute() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < LONGEST_README
    first = text.split("\n\n")[1]
    assert first.count(".") <= 2, "one plain sentence"
    assert "git clone" in text.split("## ")[0]
    assert "no pretrained weights" in text


def test_the_address_of_the_repository_is_the_same_everywhere() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    match = REPOSITORY.search(config["metadata"]["url"])
    assert match
    named = {found for path in tracked() for found in REPOSITORY.findall(path.read_text(encoding="utf-8"))}
    colab = {found for path in tracked() for found in COLAB.findall(path.read_text(encoding="utf-8"))}
    assert named == {match[1]}
    assert colab == {(match[1], "docs/notebooks/vocal_to_mix.ipynb")}
    assert (DOCS / "notebooks" / "vocal_to_mix.ipynb").is_file()


@pytest.mark.parametrize("song", [1, 2, 3])
def test_each_example_is_three_sounds_of_one_clip(song: int) -> None:
    sounds = {}
    for name in ("vocal", "generated", "true"):
        path = DOCS / "audio" / f"song_{song}_{name}.ogg"
        assert path.stat().st_size < LARGEST_SOUND_BYTES
        sounds[name], rate = soundfile.read(path)
        assert len(sounds[name]) == 10 * rate
        assert np.sqrt(np.mean(sounds[name] ** 2)) > 0.01, "not silence"
    correlation = np.corrcoef(sounds["generated"], sounds["true"])[0, 1]
    assert abs(correlation) < 0.9, "the generated accompaniment is not the true one"


def test_every_sound_of_the_site_exists() -> None:
    sources = [(page, name) for page in PAGES for name in re.findall(r'src="_static/([^"]+)"', page.read_text("utf-8"))]
    assert len(sources) == 9
    for page, name in sources:
        assert (DOCS / "audio" / name).is_file(), f"{page} plays {name}"


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set()
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for entry in [line for line in block.splitlines() if line and not line.startswith(":")]:
                found = list(page.parent.glob(f"{entry}.md"))
                assert found, f"{page} lists {entry}"
                listed |= {path.relative_to(DOCS) for path in found}
    pages = {path.relative_to(DOCS) for path in DOCS.rglob("*.md") if "_build" not in path.parts}
    assert pages - listed == {Path("index.md")}


def test_the_tutorials_are_those_that_the_first_page_promises() -> None:
    assert {page.stem for page in TUTORIALS} == {
        *("hear_it", "train_on_a_gpu", "change_one_thing", "your_own_loss", "your_own_codec"),
        *("listening_study", "read_the_card"),
    }


def test_every_cell_of_the_comparison_has_its_evidence() -> None:
    text = (DOCS / "explanation" / "features.md").read_text(encoding="utf-8")
    head, _, *rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    others = [name.strip() for name in head[2:]]
    assert others == ["audiocraft", "stable-audio-tools", "litgpt", "vocos", "stream-music-gen"]
    assert len(rows) >= 15
    for row in rows:
        assert len(row) == len(head), row[0]
        for name, cell in zip(others, row[2:], strict=True):
            linked = re.search(rf"\(https://github\.com/[\w-]+/{name}/(blob|tree)/[0-9a-f]{{12}}/", cell)
            assert linked or cell.strip().startswith(("not found", "no: ")), f"{row[0]}, {name}: {cell}"


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert "2604.09054" in str(citation["references"])


def test_workflows_run_what_exists() -> None:
    for path in sorted((ROOT / ".github").rglob("*.yml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for job in content.get("jobs", {}).values() if isinstance(content, dict) else ():
            for step in job["steps"]:
                for target in re.findall(r"^make ([\w-]+)", step.get("run", "")):
                    planned = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
                    assert planned.returncode == 0, target
    assert (ROOT / ".ci" / "run").is_file()


def test_hooks_are_those_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"].split()[:2] for hook in hooks] == [[".venv/bin/ruff", "check"], [".venv/bin/ruff", "format"]]
