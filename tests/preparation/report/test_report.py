"""What a preparation reports."""

import csv

import numpy as np
import pytest
from tiny_preparation import tiny_config

from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.preparation.report.report import PreparationReport
from hafm_lightning.shards import ShardReader


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def test_the_report_counts_what_the_log_says(prepared):
    report = PreparationReport.load(prepared)
    with (prepared / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert report.candidates == len(rows) == 15
    kept = [row["clip"] for row in rows if row["kept"] == "True"]
    assert sorted(kept) == sorted(clip for split in report.clips for clip in ShardReader(prepared / split).clip_ids)
    assert report.dropped == len(rows) - len(kept) == sum(counts["first"] for counts in report.rules.values())
    assert sum(report.loudness_lufs["counts"]) == len(rows)
    codebooks = {(use["stream"], use["codebook"]): use for use in report.codebooks}
    assert len(codebooks) == 1 + 1 + 8
    tokens = np.concatenate([ShardReader(prepared / "train")[i]["instrumental_codes"][3] for i in range(9)])
    assert codebooks["instrumental_codes", 3]["counts"] == np.bincount(tokens, minlength=1024).tolist()
    assert codebooks["instrumental_codes", 3]["used"] == len(set(tokens.tolist()))
    assert sum(report.song_durations_s["counts"]) == 5


def test_examples_can_be_listened_to(musdb, tmp_path):
    import soundfile

    report = prepare(tiny_config(tmp_path / "root", musdb, report={"examples": 2}))
    assert len(report.examples) == 2
    page = (tmp_path / "root" / "report.html").read_text()
    for example in report.examples:
        for file in (example["vocal"], example["instrumental"], example["decoded"]):
            assert soundfile.info(tmp_path / "root" / file).duration == 2.0
            assert file in page
        samples, _ = soundfile.read(tmp_path / "root" / example["decoded"])
        assert np.abs(samples).max() > 0.001
