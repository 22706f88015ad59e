"""What README and docs tell a newcomer to type and to read is there: commands, options, files, links, make targets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from hafm_lightning import cli
from hafm_lightning.cli.evaluate import with_lists, without_switches
from hafm_lightning.cli.fit.training import read_config
from hafm_lightning.cli.listen.build import full_arguments
from hafm_lightning.cli.parser import Parser
from hafm_lightning.configuration.settings import as_plain, build, read_settings
from hafm_lightning.evaluation.settings import EvaluateSettings
from hafm_lightning.listening.trials.settings import ListenSettings
from hafm_lightning.preparation.configuration import PreparationConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
CONFIGURATIONS = sorted((ROOT / "experiments").rglob("*.yaml"))
LIGHTNING = ("fit", "validate", "test", "predict")
SETTINGS = {"prepare": PreparationConfig, "evaluate": EvaluateSettings, "listen build": ListenSettings}


def fenced(text: str) -> Iterator[str]:
    """Lines of the blocks of code, with continued lines joined."""
    for block in re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def commands_of(path: Path) -> Iterator[tuple[str, ...]]:
    """Every command line of this program that a file shows, after ``-m hafm_lightning``."""
    text = path.read_text(encoding="utf-8")
    inline = re.findall(r"`(python -m hafm_lightning [^`\n]*)`", text)
    lines = [*fenced(text), *inline] if path.suffix == ".md" else [line.lstrip("# ") for line in text.splitlines()]
    for line in lines:
        match = re.search(r"(?:-m hafm_lightning|^\s*hafm) (.*)", line)
        if match and re.match(r"[\w=/]*\s*(python|torchrun|srun|hafm)", line):
            words = shlex.split(match[1], comments=True)
            yield tuple(words[: words.index(">")] if ">" in words else words)


def shown_commands() -> dict[str, tuple[str, ...]]:
    """A name -> the words of a command line, each once, over all pages and configurations."""
    found: dict[tuple[str, ...], str] = {}
    for path in (*PAGES, *CONFIGURATIONS):
        for words in commands_of(path):
            found.setdefault(words, f"{path.relative_to(ROOT)}: {' '.join(words)}")
    return {name: words for words, name in found.items()}


COMMANDS = shown_commands()


class Parsed(Exception):
    """The command line was understood; nothing of it is carried out."""


@pytest.fixture
def only_parse(monkeypatch):
    original = Parser.parse_args

    def stop(self, args=None, namespace=None):
        original(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(Parser, "parse_args", stop)
    monkeypatch.chdir(ROOT)


def test_the_pages_show_every_command():
    assert set(cli.available()) <= {words[0] for words in COMMANDS.values()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_shown_command_is_understood(name, only_parse, monkeypatch, tmp_path):
    command, *arguments = COMMANDS[name]
    if command == "listen" and arguments[0] == "build":
        command = f"listen {arguments.pop(0)}"
    if command in LIGHTNING:
        if not arguments[1].startswith("experiments/"):
            pytest.skip("a file that a run writes")
        assert read_config(command, arguments).model is not None
    elif command in SETTINGS and "--verify" not in arguments:
        monkeypatch.setenv("MUSDB18_HQ", "songs")
        if "--help" in arguments:
            assert cli.main([*command.split(), *arguments]) == cli.DONE
            return
        if command == "evaluate":
            arguments = with_lists(without_switches(arguments))
        if command == "listen build":
            arguments = full_arguments(arguments)
        read = read_settings(SETTINGS[command], arguments)
        assert read == build(SETTINGS[command], as_plain(read, all_kinds=False))
    elif command == "sweep":
        assert cli.main([command, *arguments, "--out", str(tmp_path / "sweep.yaml")]) == cli.DONE
    elif command == "describe" or "--help" in arguments:
        assert cli.main([command, *arguments]) == cli.DONE
    else:
        with pytest.raises(Parsed):
            cli.run([command, *arguments])


def test_the_options_of_the_table_of_experiments_are_understood():
    """Rows `| to try | write |` of docs/reproduction.md, on the quickstart's coarse stage."""
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    rows = text.split("| to try | write |")[1].split("\n\n")[0]
    written = [words for words in re.findall(r"`(--[^`]+)`", rows) if words.startswith("--")]
    assert len(written) >= 8
    for words in written:
        config = ["--config", str(ROOT / "experiments" / "quickstart" / "coarse.yaml")]
        read_config("fit", [*config, *shlex.split(words)])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
        assert not target or (page.parent / target).exists(), f"{page.name} links to {target}"
    for named in re.findall(
        r"(?:experiments|benchmarks|callbacks|tests|src/hafm_lightning)/[\w/.-]*\w\.(?:yaml|py|json)", text
    ):
        assert (ROOT / named).exists(), f"{page.name} names {named}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_anchors_lead_to_headings(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text):
        other = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", other, flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_make_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`make ([\w-]+)", text) + [
            m for line in fenced(text) for m in re.findall(r"^make ([\w-]+)", line)
        ]
        assert set(named) <= targets, page.name
