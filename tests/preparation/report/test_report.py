"""What a preparation reports and what its verification finds."""

import csv
import json
import shutil
import subprocess

import numpy as np
import pytest
from tiny_preparation import tiny_config

from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.preparation.report.report import PreparationReport
from hafm_lightning.preparation.verification import verify_root
from hafm_lightning.shards import ShardReader


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def test_verify_finds_splits_that_share_songs_and_foreign_tokenizers(prepared, tmp_path):
    root = tmp_path / "root"
    subprocess.run(["cp", "-r", prepared, root], check=True)
    subprocess.run(["cp", "-r", root / "test", root / "spare"], check=True)
    for path in (root / "validation").iterdir():
        path.unlink()
    for path in (root / "spare").iterdir():
        path.rename(root / "validation" / path.name)
    description = json.loads((root / "tokenizers" / "semantic" / "tokenizer.json").read_text())
    description["identity"]["sha256"] = "0" * 64
    (root / "tokenizers" / "semantic" / "tokenizer.json").write_text(json.dumps(description))
    text = "\n".join(verify_root(root).problems)
    assert "its manifest belongs to the split 'test'" in text
    assert "1 songs are in validation and in test" in text
    assert "another semantic tokenizer" in text


# The report


def test_the_report_counts_what_the_log_says(prepared):
    report = PreparationReport.load(prepared)
    with (prepared / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert report.candidates == len(rows) == 15
    kept = [row["clip"] for row in rows if row["kept"] == "True"]
    assert sorted(kept) == sorted(clip for split in report.clips for clip in ShardReader(prepared / split).clip_ids)
    assert report.dropped == len(rows) - len(kept) == sum(counts["first"] for counts in report.rules.values())
    assert sum(report.loudness_lufs.counts) == len(rows)
    codebooks = {(use.stream, use.codebook): use for use in report.codebooks}
    assert len(codebooks) == 1 + 1 + 8
    tokens = np.concatenate([ShardReader(prepared / "train")[i]["instrumental_codes"][3] for i in range(9)])
    assert codebooks["instrumental_codes", 3].counts == np.bincount(tokens, minlength=1024).tolist()
    assert codebooks["instrumental_codes", 3].used == len(set(tokens.tolist()))
    assert sum(report.song_durations_s.counts) == 5


def test_the_log_is_a_parquet_table_where_pyarrow_is_installed(prepared):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(prepared / "clips.parquet").to_pylist()
    with (prepared / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in table] == [row["clip"] for row in rows]
    assert [row["kept"] for row in table] == [row["kept"] == "True" for row in rows]
    assert [row["leakage"] for row in table] == pytest.approx([float(row["leakage"]) for row in rows])


def test_examples_can_be_listened_to(musdb, tmp_path):
    import soundfile

    report = prepare(tiny_config(tmp_path / "root", musdb, report={"examples": 2}))
    assert len(report.examples) == 2
    page = (tmp_path / "root" / "report.html").read_text()
    for example in report.examples:
        for file in (example.vocal, example.instrumental, example.decoded):
            assert soundfile.info(tmp_path / "root" / file).duration == 2.0
            assert file in page
        samples, _ = soundfile.read(tmp_path / "root" / example.decoded)
        assert np.abs(samples).max() > 0.001


def test_the_papers_chain_on_tiny_models(tmp_path):
    """Mixtures, separation, HuBERT with centroids trained on the corpus, EnCodec: as experiments/prepare.yaml asks."""
    from tiny_corpora import vocal_and_band
    from tiny_separation import low_pass_model
    from tiny_tokenizers import save_encodec, save_hubert

    from hafm_lightning.audio import Audio, write_audio

    for folder in ("songs", "model"):
        (tmp_path / folder).mkdir()
    save_hubert(tmp_path / "hubert")
    save_encodec(tmp_path / "encodec")
    for number in range(4):
        vocal, band = vocal_and_band(6.0, number, 22_050)
        write_audio(tmp_path / "songs" / f"{number}.flac", Audio((vocal + band)[None], 22_050))
    config = tiny_config(
        tmp_path / "root",
        [{"kind": "SongFolder", "path": str(tmp_path / "songs")}],
        separation={"model": str(low_pass_model(tmp_path / "model")), "device": "cpu"},
        filters=dict.fromkeys(("vocal_activity_min", "instrumental_activity_min", "leakage_max")),
        tokenizers={
            "semantic": {"kind": "Hubert", "source": str(tmp_path / "hubert"), "layer": 2},
            "acoustic": {"kind": "Encodec", "source": str(tmp_path / "encodec")},
            "training_clips": 6,
        },
        report={"examples": 1},
    )
    report = prepare(config)
    assert report.clips == {"train": 9, "validation": 3}
    assert (report.tokenizers["semantic"]["kind"], report.tokenizers["acoustic"]["kind"]) == ("hubert", "encodec")
    use = {(entry.stream, entry.codebook): entry.used for entry in report.codebooks}
    assert use["vocal_semantic", 0] > 50
    assert use["instrumental_codes", 0] > 1
    whole = verify_root(tmp_path / "root")
    assert (whole.problems, whole.notes) == ([], [])
    shutil.rmtree(tmp_path / "hubert")  # shards can be checked on a machine that has no weights
    unloaded = verify_root(tmp_path / "root")
    assert unloaded.problems == []
    assert "hubert" in unloaded.notes[0]
    assert "not loaded" in unloaded.summary()
