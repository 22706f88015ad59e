"""JSON files that this program writes and reads again: damaged ones are read or refused in a line."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from damaged_json import survivors

from hafm_lightning.cli.demo.command import Plan, make_plan
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.card import Card, Column, Player, Row, Table, Value, load_card
from hafm_lightning.evaluation.protocol.clip_scores import VERSION, ClipScores
from hafm_lightning.evaluation.systems.generations import INDEX_FILE, Entry, Generations
from hafm_lightning.processes.locks import Lock, Owner
from hafm_lightning.tokenizers import load_tokenizer
from hafm_lightning.tokenizers.base import DESCRIPTION_FILE, read_description
from hafm_lightning.toyband.score import ToyTruth, compose


def card(folder: Path) -> tuple[Any, Callable[[Path], Any]]:
    row = Row(
        "true",
        "Ground truth",
        3,
        0,
        {"x": 1},
        {"seed": 1},
        {"fad": Value(1.0, 0.5, 1.5), "beats": Value(None, note="no")},
    )
    table = Table(
        "clips", ["about"], [Column("fad", "FAD", "lower", "note")], [row], [Player("t", "s", "c", 1.0, {"a": "b"})]
    )
    return Card("title", {"torch": "2"}, [table], absent={"a": "b"}).as_dict(), load_card


def truth(folder: Path) -> tuple[Any, Callable[[Path], Any]]:
    return asdict(compose(0, 5.0)), ToyTruth.load


def index(folder: Path) -> tuple[Any, Callable[[Path], Any]]:
    system = SimpleNamespace(name="band", identity="a" * 64)

    def read(path: Path) -> Any:
        target = folder / "generations" / f"band-{'a' * 12}"
        target.mkdir(parents=True, exist_ok=True)
        (target / INDEX_FILE).write_bytes(path.read_bytes())
        made = Generations(folder, system)
        return [made.file(SimpleNamespace(key=key)) for key in made.entries]

    clips = {"a@0": asdict(Entry("a.wav", 1.0, "", "", 2, 1, "b" * 64))}
    facts = {"system": "band", "identity": "a" * 64, "facts": {"seed": 1}, "peak_memory_mib": 1.5}
    return facts | {"clips": clips}, read


def scores(folder: Path) -> tuple[Any, Callable[[Path], Any]]:
    return {"version": VERSION, "clips": {"a@0": {"chroma": 0.5, "beats": 0.1}}}, ClipScores


def demo_plan(folder: Path) -> tuple[Any, Callable[[Path], Any]]:
    steps = {"semantic": 4, "coarse": 8, "fine": 4}

    def read(path: Path) -> Any:
        (folder / "plan.json").write_bytes(path.read_bytes())
        places = SimpleNamespace(work=folder, card=folder / "card")
        if json.loads(path.read_bytes()).get("minutes") != 9.0:
            raise RequestError("another demo")  # would begin a new one
        return make_plan(places, 9.0, fresh=False)

    return asdict(Plan(9.0, steps, {"semantic": 0.1, "coarse": 0.1, "fine": 0.1})), read


FILES = {"card": card, "truth": truth, "index": index, "scores": scores}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_read_or_refused_in_a_line(name: str, tmp_path: Path) -> None:
    content, read = FILES[name](tmp_path)
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(content))
    read(path)

    def reads(text: bytes) -> None:
        path.write_bytes(text)
        read(path)

    survivors(content, reads)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"minutes": 9.0}', b'{"minutes": 9.0, "steps": {}, "seconds_a_step": {}}']
)
def test_a_damaged_plan_of_the_demo_is_refused(tmp_path: Path, text: bytes) -> None:
    content, _ = demo_plan(tmp_path)
    places: Any = SimpleNamespace(work=tmp_path, card=tmp_path / "card")
    (tmp_path / "plan.json").write_text(json.dumps(content))
    assert make_plan(places, 9.0, fresh=False).steps == content["steps"]
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(RequestError, match=r"plan\.json"):
        make_plan(places, 9.0, fresh=False)
    assert (tmp_path / "plan.json").read_bytes() == text


def test_a_damaged_record_of_a_lock_names_nobody(tmp_path: Path) -> None:
    lock = Lock(tmp_path / ".lock")
    record = tmp_path / ".lock.json"
    content = asdict(Owner(1, "host", "now", {"run": "x"}))

    def read(text: bytes) -> None:
        record.write_bytes(text)
        if lock.owner() is None:
            raise RequestError("nobody")

    read(json.dumps(content).encode())
    survivors(content, read)


def test_damaged_tokenizers_are_read_or_refused_in_a_line(tiny_pair: Any, tmp_path: Path) -> None:
    folder, _ = tiny_pair
    for path in (Path(folder) / "semantic").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / DESCRIPTION_FILE).read_text())

    def read(text: bytes) -> None:
        (tmp_path / DESCRIPTION_FILE).write_bytes(text)
        read_description(tmp_path)
        load_tokenizer(tmp_path)

    taken = survivors(content, read)
    assert {name.split()[0].split(".")[0] for name in taken} <= {"report", "format_version", "files"}, taken
