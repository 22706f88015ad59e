"""benchmarks/gpu.sh: it parses, stays within ten minutes, and its parts run with tiny shapes on a CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    assert list(limits) == ["parity", "attention", "training", "experiments", "generation", "resume"]
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
    assert resumed["largest_difference_of_weights"] == 0
    parity = json.loads((tmp_path / "gpu_parity.json").read_text())["found"]
    assert all(max(row["PyTorch's operations"]) < 0.05 for name, row in parity.items() if name != "columns")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_every_part_reads_not_run(tmp_path):
    said = run("parity:60", tmp_path)
    assert "not run: no CUDA device here" in said
    assert said.count("not run (bash benchmarks/gpu.sh)") == len(parts())
