"""Corpora as people have them: one odd song never ends a run, and what looks wrong is said."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from odd_songs import kept_clips, reasons
from odd_sounds import flac_claiming, wav_claiming
from tiny_corpora import RATE_HZ, vocal_and_band, write_stems
from tiny_preparation import tiny_config, tiny_values, yaml_file

from hafm_lightning.cli import main
from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.shards import ShardReader, song_of
from hafm_lightning.tokens import INSTRUMENTAL_SEMANTIC, VOCAL_SEMANTIC


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def odd_corpus(root: Path) -> Path:
    """Stems of good songs, and of one song for every oddity."""
    for number in range(2):
        write_stems(root / f"good-{number}", 4.0, seed=number)
    (root / "good-0" / "._vocals.wav").write_bytes(b"\0\5\26\7")
    vocal, _ = vocal_and_band(4.0, 7)
    write_stems(root / "mono", 4.0, seed=7)
    write_stems(root / "phase", 4.0, seed=7)
    soundfile.write(root / "phase" / "vocals.wav", np.stack([vocal, -vocal], axis=1), RATE_HZ)
    write_stems(root / "absurd", 4.0, seed=8, rate_hz=44_100)
    (root / "absurd" / "vocals.wav").unlink()
    flac_claiming(root / "absurd" / "vocals.flac", vocal_and_band(4.0, 8, 44_100)[0], 2**36 - 1)
    write_stems(root / "1-hz", 4.0, seed=9)
    wav_claiming(root / "1-hz" / "vocals.wav", 1, 1)
    write_stems(root / "many-channels", 4.0, seed=10)
    wav_claiming(root / "many-channels" / "vocals.wav", 44_100, 65_535)
    write_stems(root / "cut", 4.0, seed=11, suffix=".ogg")
    data = (root / "cut" / "vocals.ogg").read_bytes()
    (root / "cut" / "vocals.ogg").write_bytes(data[: len(data) // 2])
    (root / "pipe").mkdir()
    os.mkfifo(root / "pipe" / "vocals.wav")
    return root


def test_odd_songs_are_used_or_named_and_never_end_a_run(tmp_path, capsys):
    songs = odd_corpus(tmp_path / "songs")
    root = songs / "shards"  # beside the songs, as people do
    values = tiny_values(root, [{"kind": "StemFolder", "path": str(songs)}], split={"validation_share": 0.0})
    config = yaml_file(tmp_path / "c.yaml", values)
    for _ in range(2):  # the second run finds the first one's output among the songs
        assert main(["prepare", "--config", str(config)]) == 0
    output = capsys.readouterr()
    assert "in 2 of" in output.out
    assert "cancel each other" in output.out
    report = json.loads((root / "report.json").read_text())
    assert set(reasons(report["quarantined"])) == {"1-hz", "many-channels", "cut"}
    assert "1 samples a second" in reasons(report["quarantined"])["1-hz"]
    assert "cut short" in reasons(report["quarantined"])["cut"]
    kept = kept_clips(root)
    assert set(kept) == {"good-0", "good-1", "mono", "phase", "absurd"}
    left_out = (root / "quarantine.csv").read_text()
    assert "1 hidden files" in left_out
    reader = ShardReader(root / "train")
    rows = {song: [i for i, clip in enumerate(reader.clip_ids) if song_of(clip) == song] for song in kept}
    for name in (INSTRUMENTAL_SEMANTIC.name, VOCAL_SEMANTIC.name):
        phase, mono = ([reader[i][name] for i in rows[song]] for song in ("phase", "mono"))
        if name == INSTRUMENTAL_SEMANTIC.name:
            np.testing.assert_array_equal(phase, mono)
        else:  # the same waveform with other noise, since that depends on the clip's name
            assert np.mean(np.array(phase) == np.array(mono)) > 0.2
    with (root / "clips.csv").open() as file:
        cancelled = {row["song"] for row in csv.DictReader(file) if float(row["cancelled"])}
    assert cancelled == {"phase"}


def test_swapped_stems_are_warned_about(tmp_path):
    for number in range(3):
        folder = write_stems(tmp_path / "songs" / str(number), 4.0, seed=number)
        _, band = vocal_and_band(4.0, number)
        bass = 0.2 * np.sin(2 * np.pi * 55 * np.arange(len(band)) / RATE_HZ)
        soundfile.write(folder / "accompaniment.wav", band + bass, RATE_HZ)
    corpora = [{"kind": "StemFolder", "path": str(tmp_path / "songs")}]
    right = prepare(tiny_config(tmp_path / "right", corpora))
    assert right.warnings == []
    assert right.shares["singing"] > 0.5
    assert "% singing" in right.summary()
    for folder in (tmp_path / "songs").iterdir():
        (folder / "vocals.wav").rename(folder / "x.wav")
        (folder / "accompaniment.wav").rename(folder / "vocals.wav")
        (folder / "x.wav").rename(folder / "accompaniment.wav")
    swapped = prepare(tiny_config(tmp_path / "swapped", corpora))
    assert len(swapped.warnings) == 1
    assert "may be swapped" in swapped.warnings[0]
    assert "warning: vocals and accompaniment may be swapped" in swapped.summary()
    assert "may be swapped" in (tmp_path / "swapped" / "report.html").read_text()


def test_shards_of_earlier_rules_are_not_continued(tmp_path):
    write_stems(tmp_path / "songs" / "a", 4.0)
    config = tiny_config(tmp_path / "root", [{"kind": "StemFolder", "path": str(tmp_path / "songs")}])
    prepare(config)
    settings = json.loads((tmp_path / "root" / "work" / "settings.json").read_text())
    assert settings["filters"].pop("rules") == 2
    del settings["filters"]["gate_below_mixture_db"]
    (tmp_path / "root" / "work" / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="an earlier version of the quality filter"):
        prepare(config)
