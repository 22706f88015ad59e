"""``listen serve`` from the command line: every wrong request in plain words, exit code 2."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import free_port
from tiny_study import make_tiny_study

from hafm_lightning.cli import main
from hafm_lightning.listening.votes import VoteStore

pytestmark = pytest.mark.skipif(find_spec("uvicorn") is None, reason="needs the extra listen")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    make_tiny_study(folder, clips=1)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    assert main(["listen", "serve", *map(str, options), "--port", str(free_port())]) == 2
    return one_message(capsys)


def one_message(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert len(text.splitlines()) <= 5
    return text


def test_a_missing_study_and_a_changed_sound(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such study folder" in refused(capsys, folder / "none")
    sound = next(folder.glob("trials/*/A.wav"))
    sound.write_bytes(sound.read_bytes()[:-2] + b"xx")
    assert "was changed" in refused(capsys, folder)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x"])
def test_a_port_out_of_range(folder: Path, capsys: pytest.CaptureFixture[str], port: str) -> None:
    assert main(["listen", "serve", str(folder), f"--port={port}"]) == 2
    assert "port" in one_message(capsys)


def test_a_damaged_database_stays_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    votes = folder / "votes.sqlite"
    votes.write_bytes(b"SQLite format 3\0" + b"no database" * 500)
    before = votes.read_bytes()
    assert "damaged" in refused(capsys, folder)
    assert votes.read_bytes() == before


def test_the_database_and_the_key_of_another_study(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    study, _ = make_tiny_study(other, clips=1, seed=1)
    VoteStore.open(other / "votes.sqlite", study.study_id).close()
    assert "holds votes on study" in refused(capsys, folder, "--votes", other / "votes.sqlite")
    assert "key of another study" in refused(capsys, folder, "--key", other / "key.json")
    assert "cannot be read" in refused(capsys, folder, "--key", other / "none.json")


def test_files_of_options(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def written(content: bytes) -> Path:
        path = tmp_path / "option.txt"
        path.write_bytes(content)
        return path

    for option in ("--consent", "--invitations", "--admin-token-file"):
        assert option in refused(capsys, folder, option, tmp_path / "none")
        assert option in refused(capsys, folder, option, written(b""))
        assert option in refused(capsys, folder, option, written(b"\xff\xfe\x00"))
    assert "code 2 has not 8 to 100" in refused(capsys, folder, "--invitations", written(b"long enough\nshort\n"))
    assert "each once" in refused(capsys, folder, "--invitations", written(b"long enough\nlong enough\n"))
    assert "at least 16" in refused(capsys, folder, "--admin-token-file", written(b"too short"))
    assert "--public" in refused(capsys, folder, "--public", "study.example.org")


def test_the_key_is_not_needed_and_never_read_unless_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "key.json").write_text(json.dumps("damaged"))
    monkeypatch.setattr("hafm_lightning.listening.serve.server.run", lambda *_: None)
    assert main(["listen", "serve", str(folder), "--port", str(free_port())]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"votes go to {folder / 'votes.sqlite'}" in printed.out
    assert "does not hold" in refused(capsys, folder, "--key", folder / "key.json")


def test_other_machines_bring_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hafm_lightning.listening.serve.server.run", lambda *_: None)
    assert main(["listen", "serve", str(folder), "--host", "0.0.0.0", "--port", str(free_port())]) == 0
    assert "without TLS" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    text = refused(capsys, folder, "--votes", tmp_path / "file" / "votes.sqlite")
    assert "file" in text
    shutil.rmtree(folder / "trials")
    assert "cannot be read" in refused(capsys, folder)
