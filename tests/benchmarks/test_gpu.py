"""benchmarks/gpu.sh: it parses, stays within ten minutes, and its parts run with tiny shapes on a CPU."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from _gpu_fits import kill_after_checkpoint
from _gpu_runs import CompilerMessages, first_steps, training_files
from gpu import PARTS, experiments_lines

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def run(parts, folder, *arguments):
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHON": sys.executable, "RESULTS": str(folder), "PARTS": parts, "PYTHONPATH": paths}
    command = ["bash", str(SCRIPT), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    logs = "\n".join(path.read_text()[-1500:] for path in folder.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    return done.stdout


def parts():
    return re.search(r'^limits="([^"]*)"', SCRIPT.read_text(), flags=re.MULTILINE)[1].split()


def test_every_part_has_a_time_limit_and_all_together_take_ten_minutes():
    limits = {part: int(seconds) for part, seconds in (entry.split(":") for entry in parts())}
    assert list(limits) == list(PARTS)
    assert sum(limits.values()) <= 600
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


@pytest.mark.slow
def test_every_part_runs_with_tiny_shapes_and_its_figures_are_kept(tmp_path):
    """On two idle cores: a minute."""
    entries = " ".join(entry.partition(":")[0] + ":600" for entry in parts())
    said = run(entries, tmp_path, "--device", "cpu", "--tiny")
    for entry in parts():
        part = entry.partition(":")[0]
        report = json.loads((tmp_path / f"gpu_{part}.json").read_text())
        assert report["finished"]
        assert report["found"]
        assert report["machine"]["commit"]
        assert f"{part}: CPU, commit" in said
    assert (tmp_path / "gpu.txt").read_text() == said[said.index("parity: CPU") :]
    files = json.loads((tmp_path / "gpu_experiments.json").read_text())["found"]
    assert all(row["exit"] == 0 for row in files.values()), files
    resumed = json.loads((tmp_path / "gpu_resume.json").read_text())["found"]
    assert resumed["bit_equal"]
    assert 3 <= resumed["killed_after_step"] < resumed["steps"]
    losses = json.loads((tmp_path / "gpu_loss.json").read_text())["found"]
    assert losses["bf16-mixed"]["largest_relative_difference"] < losses["wanted"]
    fits = json.loads((tmp_path / "gpu_fit_real.json").read_text())["found"]
    assert all(row["finite"] and len(row["train_loss"]) == 8 and row["val_loss"] for row in fits.values()), fits
    parity = json.loads((tmp_path / "gpu_parity.json").read_text())["found"]
    assert all(max(row["PyTorch's operations"]) < 0.05 for name, row in parity.items() if name != "columns")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_every_part_reads_not_run(tmp_path):
    said = run("parity:60", tmp_path)
    assert "not run: no CUDA device here" in said
    assert said.count("not run (bash benchmarks/gpu.sh)") == len(parts())


def test_the_files_of_the_recommended_model_come_first_and_none_is_left_out():
    folders = list(dict.fromkeys(path.parent.name for path in training_files()))
    assert folders == ["aligned", "quickstart", "live", "experiments", "variants"]
    assert len(list(training_files())) == 23


def test_warnings_of_the_compiler_are_part_of_a_row():
    messages = CompilerMessages()
    with messages.collected():
        for _ in range(2):
            logging.getLogger("torch._dynamo.convert_frame").warning("hit config.recompile_limit (%d)", 8)
        logging.getLogger("elsewhere").warning("nothing of the compiler")
        warnings.showwarning(UserWarning("call to a lru_cache wrapped function"), UserWarning, "file.py", 1)
        warnings.showwarning(UserWarning("nothing of the compiler"), UserWarning, "file.py", 1)
    assert messages.lines == [
        "torch._dynamo.convert_frame: hit config.recompile_limit (8)",
        "UserWarning: call to a lru_cache wrapped function",
    ]
    said = experiments_lines({"a.yaml": {"exit": 0, "seconds": 1.0, "compiler": messages.lines}})
    assert said[0].startswith("1 of 1 files")
    assert "recompile_limit" in said[1]


def test_what_a_failing_file_prints_is_part_of_its_row():
    row = first_steps(["fit", "--config", "nowhere.yaml"])
    assert row["exit"] == 2
    assert "nowhere.yaml" in " ".join(row["said"])


def test_a_run_that_ends_before_it_is_killed_is_an_error_with_its_output(tmp_path):
    command = [sys.executable, "-c", "print('why it ended'); raise SystemExit(2)"]
    with pytest.raises(RuntimeError, match=r"exit code 2, checkpoints of the steps \[\]:\nwhy it ended"):
        kill_after_checkpoint(command, tmp_path, tmp_path / "log")


def test_a_run_is_killed_with_signal_9_after_its_first_checkpoint(tmp_path):
    code = f"import pathlib, time; pathlib.Path({str(tmp_path)!r}, 'step-00000003.ckpt').touch(); time.sleep(60)"
    assert kill_after_checkpoint([sys.executable, "-c", code], tmp_path, tmp_path / "log") == 3
