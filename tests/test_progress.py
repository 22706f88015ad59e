"""The progress bar in its three guises: terminal, log, silence."""

from __future__ import annotations

import io
import re
import sys

import pytest

from hafm_lightning import progress as progress_module
from hafm_lightning.progress import format_duration, progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _not_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAFM_QUIET", raising=False)


def test_a_log_gets_a_line_an_interval_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 4.0, 11.0, 14.0, 20.0])  # start, three advances, the end
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with progress("Tokenizing", 4, "songs") as bar:
        bar.advance()
        bar.advance(note="song-b")
        bar.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Tokenizing: 2/4 songs, 0:11 elapsed, 0:11 left song-b",
        "Tokenizing: 4/4 songs, 0:20 elapsed song-b",
    ]


def test_work_of_an_earlier_run_counts_but_does_not_hasten_the_eta(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0, 40.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with progress("Tokenizing", 100.5, "hours of audio", done=90) as bar:
        bar.advance(2.25)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Tokenizing: 92.25/100.5 hours of audio, 0:20 elapsed, 1:13 left"  # 8.25 h at 2.25 h in 20 s


def test_a_terminal_shows_parts_of_units_and_an_eta_where_units_take_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    now = [0.0]
    with progress_module._rich_columns() as display:
        display.get_time = lambda: now[0]  # type: ignore[method-assign]
        display.add_task("Tokenizing", total=1.5, unit="hours of audio", note="")
        (task,) = display.tasks
        for minute in (5, 10):
            now[0] = minute * 60.0
            display.advance(task.id, 0.125)
        assert task.time_remaining == pytest.approx(10 * 300)  # 1.25 of 1.5 h are left, at 0.125 h in 300 s
        display.refresh()
    assert "0.25/1.5" in stream.getvalue()
    # it was "0:10:00 left 0:50:00", which reads as ten minutes left
    assert re.search(r"\d:\d\d:\d\d\S* elapsed, \S*0:50:00\S* left", stream.getvalue())


def test_an_unknown_total_shows_the_count_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Reading", None, "files") as bar:
        bar.advance(3)
    assert re.fullmatch(r"Reading: 3 files, 0:0\d elapsed\n", capsys.readouterr().err)


def test_the_last_line_is_written_when_the_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def fail_at_seven() -> None:
        with progress("Fitting", 10, "steps") as bar:
            bar.advance(7)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail_at_seven()
    assert "7/10 steps" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "silent"), [("1", True), ("", False), ("0", False)])
def test_quiet_only_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str, silent: bool
) -> None:
    monkeypatch.setenv("HAFM_QUIET", value)
    with progress("Mixing", 1, "files") as bar:
        bar.advance()
    assert (capsys.readouterr().err == "") is silent


def test_a_terminal_gets_a_bar_with_count_unit_and_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("Generating", 8, "clips") as bar:
        bar.advance(8, note="seed 3")
    shown = stream.getvalue()
    for part in ("Generating", "8/8", "clips", "seed 3"):
        assert part in shown


def test_stdout_stays_free_for_results(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Scoring", 2, "clips") as bar:
        bar.advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2 clips" in captured.err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3725, "1:02:05"), (-1, "0:00")]
)
def test_durations_read_as_clock_times(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
