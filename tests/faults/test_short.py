"""The short form of the fault suite: a few tries of each kind in forked children, and an oracle that can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from children import Ending, run
from damage import JSON_TEXTS, bytes_of_file, json_fields, paths_of, yaml_fields
from moments import fill_disk, limit_files
from oracle import broken_rules, silently_wrong, strays
from outcome import Outcome, counts, write_docs
from resumed_settings import OTHER, unlisted

RUNNER = Path(__file__).with_name("run.py")
GOOD = Ending(2, err="warming up\nerror: no such file\nname another one\n")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """Kind -> outcomes of the short form."""
    report = tmp_path_factory.mktemp("faults") / "outcomes.json"
    command = [sys.executable, str(RUNNER), "--short", "--json", str(report), "--jobs", "1", "--seconds", "600"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert report.is_file(), done.stdout + done.stderr
    by_kind: dict[str, list[dict]] = {}
    for outcome in json.loads(report.read_text())["outcomes"]:
        by_kind.setdefault(outcome["kind"], []).append(outcome)
    return by_kind


KINDS = (
    "kill -9", "disk full", "several at once", "wrong fields", "damaged bytes", "wrong settings", "wrong content",
    "swapped files", "hostile pickles", "odd sounds", "path escapes: names of vocals", "odd surroundings",
    "no permission", "signals", "settings changed at resume",
)  # fmt: skip


FOR_ROOT = {"no permission"}
"""Kinds that need another user, which only root can become."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_tries_of_each_kind_hold(outcomes: dict[str, list[dict]], kind: str) -> None:
    fallen = [f"{outcome['name']}: {outcome['fell']}" for outcome in outcomes.get(kind, []) if outcome["fell"]]
    assert not fallen, "\n".join(fallen)


def test_every_kind_is_tried(outcomes: dict[str, list[dict]]) -> None:
    assert set(outcomes) >= set(KINDS) - FOR_ROOT


def test_an_ending_as_promised_breaks_no_rule() -> None:
    assert broken_rules(GOOD) == []
    assert broken_rules(Ending(0, out="done")) == []
    assert broken_rules(Ending(143), signals=(143,)) == []


@pytest.mark.parametrize(
    ("ending", "word"),
    [
        (Ending(1, err="Traceback (most recent call last):\n  File\nValueError: x\nerror: x"), "Traceback"),
        (Ending(-11), "exit code -11"),
        (Ending(134, err="double free"), "exit code 134"),
        (Ending(143), "exit code 143"),
        (Ending(2), "without a line"),
        (Ending(2, err="error: a\n" + "more\n" * 5), "6 lines"),
        (Ending(1, err="error: a\nmore\n"), "2 lines"),
        (Ending(0, timed_out=True), "still running"),
    ],
)
def test_the_oracle_sees_a_broken_rule(ending: Ending, word: str) -> None:
    assert any(word in rule for rule in broken_rules(ending))


def test_another_result_must_be_said() -> None:
    assert silently_wrong(Ending(0), "b", "a", ["crop_s"])
    assert silently_wrong(Ending(0, err="warning: something\n"), "b", "a", ["crop_s"])
    assert not silently_wrong(Ending(0, err="note: crop_s is ignored\n"), "b", "a", ["crop_s"])
    assert not silently_wrong(Ending(0), "a", "a", [])
    assert not silently_wrong(Ending(2), "b", "a", [])


def test_a_file_outside_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a" / "inside").mkdir(parents=True)
    (tmp_path / "a" / "inside" / "fine").touch()
    (tmp_path / "streams").mkdir()
    (tmp_path / "streams" / "out").touch()
    assert strays(tmp_path, "a/inside", ["streams"]) == []
    (tmp_path / "a" / "escaped").touch()
    assert strays(tmp_path, "a/inside", ["streams"]) == ["a/escaped"]


def test_damages_are_systematic(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    content = {"a": {"b": [1, {"c": 2}, 3]}, "d": 7}
    path.write_text(json.dumps(content))
    places = list(paths_of(content))
    assert places == [("a",), ("a", "b"), ("a", "b", 0), ("a", "b", 1), ("a", "b", 1, "c"), ("d",)]
    damages = list(json_fields(path))
    assert (
        len({damage.name for damage in damages})
        == len(damages)
        == (len(JSON_TEXTS) + 1) * len(places) + len(JSON_TEXTS) + 2
    )
    for damage in damages:
        path.write_text(json.dumps(content))
        before = path.read_bytes()
        damage.apply(path)
        assert path.read_bytes() != before, damage.name


def test_every_byte_damage_changes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    content = bytes(range(1, 256)) * 4
    path.write_bytes(content)
    for damage in list(bytes_of_file(path)):
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        damage.apply(path)
        # a pipe or an endless device must not be read here
        assert not path.is_file() or path.is_symlink() or path.read_bytes() != content, damage.name
        if path.is_dir():
            path.rmdir()


def test_yaml_keys_are_all_damaged(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: {b: 1}\nc: [2]\n")
    names = [damage.name for damage in yaml_fields(path)]
    for key in ("a", "a.b", "c", "c.0"):
        assert f"{key} left out" in names
    assert "a.b misspelt" in names


def _writes(path: Path, size: int) -> int:
    path.write_bytes(b"x" * size)
    return 0


@pytest.mark.parametrize("fill", [fill_disk, limit_files])
def test_a_full_disk_is_met(tmp_path: Path, fill) -> None:
    work = tmp_path / "work"
    work.mkdir()
    assert run(lambda: _writes(work / "a", 10_000), work, tmp_path / "1", before=lambda: fill(50_000)).code == 0
    ending = run(lambda: _writes(work / "b", 90_000), work, tmp_path / "2", before=lambda: fill(50_000))
    assert ending.code == 1
    assert "OSError" in ending.err


def test_every_setting_of_the_run_has_another_value() -> None:
    assert unlisted() == []
    assert len(OTHER) > 30


def test_the_table_of_the_docs_counts(tmp_path: Path) -> None:
    outcomes = [Outcome("a", "1"), Outcome("a", "2", ["fell"]), Outcome("b", "3")]
    assert counts(outcomes) == [("a", 2, 1), ("b", 1, 1), ("all", 3, 2)]
    page = tmp_path / "faults.md"
    page.write_text("before\n<!-- tries: begin -->\nold\n<!-- tries: end -->\nafter\n")
    write_docs(page, outcomes, 7)
    text = page.read_text()
    assert "| a | 2 | 1 |" in text
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")
