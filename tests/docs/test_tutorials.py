"""Every command and snippet of the tutorials, from top to bottom, one page after the other as a reader would.

They are read from the pages. Songs, networks and times are made small by options that are added and by changed values
in the reader's copy of experiments/; nothing else is replaced.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import soundfile
from shipped import SMALL_STAGE
from shown import DOCS, ROOT, TUTORIALS, Block, blocks, words_of

from hafm_lightning.cli import DONE, FAILED, main

pytestmark = pytest.mark.slow

FIRST = DOCS / "tutorials" / "hear_it.md"
OTHER_PROGRAMS = ("git clone ", "make ", "pip ")
"""What begins a line that is not carried out."""
SERVERS = (("app",), ("listen", "serve"))
"""Commands that end when they are stopped; ``tests/test_docs.py`` parses them, other tests start them."""
SMALL_SONGS = {
    "train_songs: 120": "train_songs: 8",
    "test_songs: 24": "test_songs: 3",
    "batch_size: 16": "batch_size: 4",
    "clips: 6 ": "clips: 1 ",
}
ADDED = {"demo": ["--minutes", "0.1"], "fit": SMALL_STAGE}
"""Command -> options that make it small."""


def carry_out(block: Block, names: dict[str, object]) -> None:
    """Run one block of a page in the working directory."""
    if block.file:
        Path(block.file).write_text(block.text, encoding="utf-8")
        return
    if block.language == "python":
        exec(compile(block.text, "a snippet", "exec"), names)
        return
    for line in block.lines:
        words = words_of(line)
        if words is not None and any(words[: len(server)] == server for server in SERVERS):
            if words[:2] == ("listen", "serve"):  # what listeners would leave
                shutil.copy("rehearsal.sqlite", Path(words[2]) / "votes.sqlite")
        elif words is not None:
            wanted = {DONE, FAILED} if words[0] == "doctor" else {DONE}  # it reports this machine
            assert main([*words, *ADDED.get(words[0], [])]) in wanted, line
        elif line.startswith("python "):
            (script,) = shlex.split(line)[1:]
            exec(compile(Path(script).read_text(encoding="utf-8"), script, "exec"), {"__name__": "__main__"})
        else:
            assert line.startswith(OTHER_PROGRAMS), f"{line!r} is neither carried out nor known"


def read_through(page: Path) -> dict[str, object]:
    """Carry out a page; the names that its snippets leave."""
    names: dict[str, object] = {}
    for block in blocks(page.read_text(encoding="utf-8")):
        carry_out(block, names)
    return names


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder: a small copy of experiments/ and the recordings of docs/audio."""
    folder = tmp_path_factory.mktemp("reader")
    assert main(["configs", "--copy", str(folder)]) == 0
    for path in (folder / "experiments" / "quickstart").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        for large, small in SMALL_SONGS.items():
            text = text.replace(large, small)
        path.write_text(text, encoding="utf-8")
    (folder / "docs").mkdir()
    (folder / "docs" / "audio").symlink_to(DOCS / "audio")
    return folder


@pytest.fixture(scope="module")
def after_the_demo(workplace: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("HAFM_QUIET", "1")
        patch.setenv("PYTHONPATH", str(ROOT / "src"))
        assert main(["demo", "--minutes", "0.1"]) == 0
        read_through(FIRST)
    return workplace


def test_hear_it(after_the_demo: Path) -> None:
    for folder in ("take", "take_1"):
        assert soundfile.info(after_the_demo / folder / "mix.wav").duration == pytest.approx(10.0, abs=0.01)
    assert (after_the_demo / "demo" / "card" / "card.html").is_file()


@pytest.mark.parametrize("page", [page for page in TUTORIALS if page != FIRST], ids=lambda page: page.stem)
def test_the_page_can_be_followed(page: Path, after_the_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(after_the_demo)
    monkeypatch.syspath_prepend(after_the_demo)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HAFM_QUIET", "1")
    read_through(page)
    made = {
        "change_one_thing": ["figures/pattern", "evaluation/flattened/card.html", "evaluation/parallel/card.html"],
        "listening_study": ["rehearsal/report.html", "demo/study/report/report.html"],
        "read_the_card": ["evaluation/card/card.html"],
        "train_on_a_gpu": ["figures/gpu", "logs/gpu-coarse/run-000/metrics.csv"],
        "your_own_codec": ["take_my_codec/mix.wav"],
        "your_own_loss": ["take_smoothed/mix.wav", "evaluation/smoothed/card.html", "logs/weight_norm/run-000"],
    }
    for name in made[page.stem]:
        assert (after_the_demo / name).exists(), name
    if page.stem == "your_own_loss":
        logged = (after_the_demo / "logs/weight_norm/run-000/metrics.csv").read_text(encoding="utf-8")
        assert "val/weight_norm" in logged.splitlines()[0]
