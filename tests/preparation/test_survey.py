"""The survey: unreadable songs are named with a reason, lengths and repeated recordings are found."""

import os
from pathlib import Path

import pytest
import soundfile
from odd_songs import SECONDS, kept_clips, reasons
from tiny_corpora import stem_song, write_stems
from tiny_preparation import tiny_config

from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.preparation.quality.fingerprint import fingerprint, sketch_to_text
from hafm_lightning.preparation.survey import SongFacts, SurveyWork


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def test_the_facts_of_a_song_are_its_length_and_the_fingerprint_of_its_sound(tmp_path):
    song = stem_song(tmp_path / "song", seconds=20.0)
    stems = [soundfile.read(path, dtype="float32") for path in (song.vocals, *song.accompaniment)]
    sketch = sketch_to_text(fingerprint([sum(samples for samples, _ in stems)], stems[0][1]))
    assert SurveyWork(fingerprints=False)((song,)) == [SongFacts("song", 20.0)]
    assert SurveyWork(fingerprints=True)((song, song)) == [SongFacts("song", 20.0, sketch)] * 2


@pytest.mark.parametrize(
    ("song", "reason"),
    [
        ("zero-bytes", "is empty (0 bytes)"),
        ("text", "vocals.wav"),
        ("truncated.wav", "truncated or damaged"),
        ("truncated.mp3", "vocals.mp3"),
        ("truncated.flac", "vocals.flac"),
        ("zero-frames", "holds no audio (0 frames)"),
        ("nan", "NaN or infinite"),
    ],
)
def test_files_that_cannot_be_used_are_quarantined_by_name(odd_songs, song, reason):
    report, root = odd_songs
    quarantined = reasons(report.quarantined)
    assert reason in quarantined[song]
    assert "\n" not in quarantined[song]
    assert song not in kept_clips(root)


def test_nothing_else_is_quarantined(odd_songs):
    report, _ = odd_songs
    expected = {"zero-bytes", "text", "truncated.wav", "truncated.mp3", "truncated.flac", "zero-frames", "nan"}
    if os.geteuid() != 0:  # root may read everything
        expected.add("no-permission")
    assert set(reasons(report.quarantined)) == expected
    assert set(reasons(report.left_out)) == {"300-samples", "duplicate-again"}


def test_300_samples_are_too_short(odd_songs):
    assert "shorter than a clip (0.019 s of 2 s)" in reasons(odd_songs[0].left_out)["300-samples"]


def test_a_recording_under_two_names_is_kept_once(odd_songs):
    report, root = odd_songs
    assert reasons(report.left_out)["duplicate-again"] == "duplicate of duplicate"
    assert kept_clips(root)["duplicate"] == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(odd_songs):
    assert "Permission denied" in reasons(odd_songs[0].quarantined)["no-permission"]


def test_a_file_without_permission_is_named_also_for_root(tmp_path, monkeypatch):
    """The same through the system call's error, which root never meets."""
    folder = write_stems(tmp_path / "songs" / "closed", SECONDS, 1)
    write_stems(tmp_path / "songs" / "open", SECONDS, 2)
    original = Path.open

    def refuse(self, *arguments, **options):
        if self == folder / "vocals.wav":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    report = prepare(tiny_config(tmp_path / "root", [{"kind": "StemFolder", "path": str(tmp_path / "songs")}]))
    assert "Permission denied" in reasons(report.quarantined)["closed"]
    assert report.clips["train"] == 2
