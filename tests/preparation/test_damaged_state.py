"""Whatever lies in ``work/``, a preparation goes on or ends in a line, and writes inside of its root."""

import json
import shutil
from pathlib import Path

import pytest
from damaged_json import survivors

from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.report.report import REPORT_FILE, PreparationReport
from hafm_lightning.preparation.run_state import RootState


@pytest.fixture(scope="module")
def root(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("damaged") / "root"
    shutil.copytree(prepared, target)
    return target


READERS = {
    "plan.json": lambda state: state.read_plan(),
    "settings.json": lambda state: state.check_settings({"seed": 1}),
    "songs.json": lambda state: state.begin({"seed": 1}, []),
    "survey/block-00000.json": lambda state: list(state.facts()),
    "records/train-00000.json": lambda state: state.finished(first_unit(state)),
}


def first_unit(state: RootState):
    return next(unit for unit in state.read_plan().units if (unit.split, unit.number) == ("train", 0))


@pytest.mark.parametrize("name", READERS)
def test_damaged_states_are_read_or_refused_in_a_line(root: Path, name: str) -> None:
    state, path = RootState(root), root / "work" / name
    whole = path.read_bytes()
    content = json.loads(whole)

    def read(text: bytes) -> None:
        path.write_bytes(text)
        if name == "records/train-00000.json":
            state.finished(unit)
        else:
            READERS[name](state)

    unit = first_unit(state)
    try:
        survivors(content, read)
    finally:
        path.write_bytes(whole)


def test_a_damaged_report_is_refused_in_a_line(root: Path) -> None:
    path = root / REPORT_FILE
    whole = path.read_bytes()

    def read(text: bytes) -> None:
        path.write_bytes(text)
        PreparationReport.load(root)

    survivors(json.loads(whole), read)
    path.write_bytes(whole)


@pytest.mark.parametrize("split", ["../../../x", "/tmp/x", "..", "train/../../x", "tra\u0000in", ""])
def test_a_plan_cannot_name_paths(root: Path, split: str) -> None:
    path = root / "work" / "plan.json"
    whole = path.read_bytes()
    plan = json.loads(whole)
    for unit in plan["units"]:
        unit["split"] = split
        for song in unit["songs"]:
            song["split"] = split
    path.write_text(json.dumps(plan))
    try:
        with pytest.raises(RequestError, match=r"plan\.json"):
            RootState(root).read_plan()
    finally:
        path.write_bytes(whole)
