"""`curves`: one PNG and one SVG a run, with the values that were logged."""

import struct

import pytest

from hafm_lightning.callbacks import CsvLog
from hafm_lightning.cli import main
from hafm_lightning.cli.runs.curves import Series, draw, read_series


def write_run(folder, points=200):
    log = CsvLog(str(folder))
    for step in range(points):
        log.log_metrics({"train/loss": 5 - step / points, "train/accuracy": step / points / 2, "epoch": 0}, step)
        if step % 50 == 49:
            log.log_metrics({"val/loss": 5 - step / points / 2, "val/accuracy": step / points / 3, "epoch": 0}, step)
            log.log_metrics({"val/loss_paper": 2.4441, "val/accuracy_paper": 0.46}, step)
    return folder


def test_a_figure_holds_what_was_logged(tmp_path):
    run = write_run(tmp_path / "coarse" / "run-000")
    figure = draw(read_series(run / "metrics.csv"), "a run")
    upper, lower = figure.axes
    assert upper.get_ylabel() == "cross-entropy (nats)"
    assert lower.get_ylabel() == "token accuracy (%)"
    assert upper.get_position().y0 >= lower.get_position().y1, "a panel each, no second axis"
    loss, accuracy = ({line.get_label(): line for line in axes.get_lines()} for axes in figure.axes)
    assert {"training", "validation", "the paper"} <= set(loss) & set(accuracy)
    assert loss["validation"].get_xdata().tolist() == [50, 100, 150, 200]
    assert accuracy["validation"].get_ydata()[-1] == pytest.approx(100 * 199 / 200 / 3)
    assert accuracy["the paper"].get_ydata()[0] == pytest.approx(46)
    raw = upper.get_lines()[0]
    assert raw.get_ydata().tolist() == pytest.approx([5 - step / 200 for step in range(200)])


@pytest.mark.parametrize("logged", ["train/loss", "val/loss"])
def test_a_metric_that_was_not_logged_has_no_panel(logged):
    (panel,) = draw({logged: Series([1, 2], [3.0, 2.0])}, "a run").axes
    assert panel.get_lines()[0].get_ydata().tolist() == [3.0, 2.0]


def test_the_running_mean_of_a_straight_line_is_the_line():
    series = Series(list(range(400)), [float(i) for i in range(400)])
    smooth = series.smoothed()
    assert smooth.steps == series.steps
    assert smooth.values[10:-10] == pytest.approx(series.values[10:-10])
    few = Series([1, 2, 3], [5.0, 1.0, 4.0])
    assert few.smoothed().values == few.values


def test_the_command_writes_png_and_svg_for_each_run(tmp_path, capsys):
    write_run(tmp_path / "coarse" / "run-000", points=60)
    write_run(tmp_path / "coarse" / "run-001", points=60)
    write_run(tmp_path / "fine" / "run-000", points=60)
    out = tmp_path / "figures"
    assert main(["curves", str(tmp_path / "coarse"), str(tmp_path / "fine" / "run-000"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out.split()
    names = {"coarse-run-001.png", "coarse-run-001.svg", "fine-run-000.png", "fine-run-000.svg"}
    assert {path.name for path in out.iterdir()} == names
    assert {path.rsplit("/", 1)[-1] for path in printed} == names
    header = (out / "coarse-run-001.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:24]) == (1125, 675)
    assert "<svg" in (out / "fine-run-000.svg").read_text()[:600]
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["curves", str(tmp_path / "coarse"), str(tmp_path / "fine" / "run-000"), "--out", str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first, "the same run, the same bytes"
    write_run(tmp_path / "other" / "fine" / "run-000", points=60)
    both = [str(tmp_path / "fine"), str(tmp_path / "other" / "fine"), str(tmp_path / "fine" / "run-000")]
    assert main(["curves", *both, "--out", str(tmp_path / "both")]) == 0
    ours = {f"{tmp_path.name}-fine-run-000.png", "other-fine-run-000.png"}
    assert {path.name for path in (tmp_path / "both").glob("*.png")} == ours, "one figure a run, none written over"
    assert main(["curves", str(tmp_path / "fine")]) == 0
    assert (tmp_path / "fine" / "run-000" / "curves.png").is_file()


@pytest.mark.parametrize("kind", ["nothing", "empty", "no loss", "another table", "half a row", "a sound"])
def test_what_cannot_be_drawn_is_refused(tmp_path, capsys, kind):
    run = tmp_path / "run-000"
    run.mkdir()
    if kind == "empty":
        (run / "metrics.csv").write_text("")
    elif kind == "no loss":
        CsvLog(str(run)).log_metrics({"speed/steps_per_s": 3.0}, 0)
    elif kind == "another table":
        (run / "metrics.csv").write_text("name,value\na,1\n")
    elif kind == "half a row":
        (run / "metrics.csv").write_text("step,train/loss\n1,2.0\nx,3\n")
    elif kind == "a sound":
        (run / "metrics.csv").write_bytes(b"RIFF\xa4\x01\x02WAVE")
    assert main(["curves", str(run)]) == 2
    message = capsys.readouterr().err
    assert str(run) in message or "run-000" in message
    assert len(message.splitlines()) <= 5
    assert list(run.glob("curves.*")) == []


def test_values_that_are_no_numbers_leave_a_gap(tmp_path):
    log = CsvLog(str(tmp_path))
    for step, value in enumerate([1.0, float("nan"), 0.5]):
        log.log_metrics({"train/loss": value}, step)
    assert read_series(log.path)["train/loss"] == Series([1, 3], [1.0, 0.5])
