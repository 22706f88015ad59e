"""Every odd file that a folder of songs may hold: tokenized exactly, or named with a reason, and the run goes on.

One preparation of one folder with all of them; the tests look at what became of each.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from tiny_corpora import vocal_and_band, write_stems
from tiny_preparation import tiny_config, tiny_values
from tiny_separation import low_pass_model

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.preparation.report.report import PreparationReport
from hafm_lightning.preparation.verification import verify_root
from hafm_lightning.shards import ShardReader, song_of

SECONDS = 4.0  # two clips of 2 s
RATES_HZ = (8_000, 22_050, 44_100, 48_000, 96_000)
CHANNELS = (1, 2, 6)
LONG_NAME = "n" * 240


def replace_vocals(folder: Path, samples, rate_hz=16_000, subtype="FLOAT") -> None:
    soundfile.write(folder / "vocals.wav", samples, rate_hz, subtype=subtype)


def cut_short(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def write_everything(root: Path) -> None:
    """A folder of stems: ``good-*`` songs and one song for every fault."""
    for number in range(3):
        write_stems(root / f"good-{number}", SECONDS, seed=number)
    for seed, rate_hz in enumerate(RATES_HZ, 10):
        write_stems(root / f"rate-{rate_hz}", SECONDS, seed=seed, rate_hz=rate_hz)
    for seed, channels in enumerate(CHANNELS, 20):
        write_stems(root / f"channels-{channels}", SECONDS, seed=seed, channels=channels)
    for seed, suffix in enumerate((".wav", ".mp3", ".flac"), 30):
        write_stems(root / f"truncated{suffix}", SECONDS, seed=seed, suffix=suffix, rate_hz=44_100)
        cut_short(root / f"truncated{suffix}" / f"vocals{suffix}")
    vocal, _ = vocal_and_band(SECONDS, 40)
    (write_stems(root / "zero-bytes", SECONDS, 41) / "vocals.wav").write_bytes(b"")
    (write_stems(root / "text", SECONDS, 42) / "vocals.wav").write_text("these are lyrics, not a sound\n" * 100)
    replace_vocals(write_stems(root / "zero-frames", SECONDS, 43), np.zeros((0, 1), np.float32))
    write_stems(root / "300-samples", 300 / 16_000, 44)
    broken = vocal.copy()
    broken[20_000] = np.nan
    replace_vocals(write_stems(root / "nan", SECONDS, 45), broken)
    replace_vocals(write_stems(root / "dc", SECONDS, 46), np.full_like(vocal, 0.3))
    replace_vocals(write_stems(root / "no-vocals", SECONDS, 47), np.zeros_like(vocal))
    write_stems(root / "duplicate", SECONDS * 3, seed=48, rate_hz=22_050)
    write_stems(root / "duplicate-again", SECONDS * 3, seed=48, suffix=".flac")
    write_stems(root / LONG_NAME, SECONDS, seed=49)
    write_stems(Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9")), SECONDS, seed=50)
    (root / "loop").symlink_to(root)
    (root / "good-0" / "loop").symlink_to(root)
    closed = write_stems(root / "no-permission", SECONDS, seed=51) / "vocals.wav"
    closed.chmod(0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[PreparationReport, Path]:
    base = tmp_path_factory.mktemp("bad")
    write_everything(base / "songs")
    config = tiny_config(
        base / "root",
        [{"kind": "StemFolder", "path": str(base / "songs")}],
        duplicates={"enabled": True},
        split={"validation_share": 0.0},
    )
    os.environ["HAFM_QUIET"] = "1"
    try:
        return prepare(config), base / "root"
    finally:
        del os.environ["HAFM_QUIET"]


def kept_clips(root: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for clip in ShardReader(root / "train").clip_ids:
        counts[song_of(clip)] = counts.get(song_of(clip), 0) + 1
    return counts


def reasons(entries) -> dict[str, str]:
    return {entry["name"]: entry["reason"] for entry in entries}


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
def test_files_that_cannot_be_used_are_quarantined_by_name(prepared, song, reason):
    report, root = prepared
    quarantined = reasons(report.quarantined)
    assert reason in quarantined[song]
    assert "\n" not in quarantined[song]
    assert song not in kept_clips(root)


def test_nothing_else_is_quarantined(prepared):
    report, _ = prepared
    expected = {"zero-bytes", "text", "truncated.wav", "truncated.mp3", "truncated.flac", "zero-frames", "nan"}
    if os.geteuid() != 0:  # root may read everything
        expected.add("no-permission")
    assert set(reasons(report.quarantined)) == expected
    assert set(reasons(report.left_out)) == {"300-samples", "duplicate-again"}


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_every_rate_gives_exact_frame_counts(prepared, rate_hz):
    _, root = prepared
    reader = ShardReader(root / "train")
    clips = [i for i, clip in enumerate(reader.clip_ids) if song_of(clip) == f"rate-{rate_hz}"]
    assert len(clips) == 2
    for index in clips:
        assert reader[index]["vocal_semantic"].shape == (1, 100)
        assert reader[index]["instrumental_codes"].shape == (8, 150)


def test_ten_seconds_are_500_and_750_frames_at_every_rate(tmp_path):
    """A file of exactly ten seconds, as FMA's and MUSDB's clips are cut."""
    for seed, rate_hz in enumerate(RATES_HZ):
        write_stems(tmp_path / "songs" / f"{rate_hz}", 10.0, seed=seed, rate_hz=rate_hz, channels=2)
    corpora = [{"kind": "StemFolder", "path": str(tmp_path / "songs")}]
    clips = {"duration_s": 10.0, "hop_s": 10.0}
    prepare(tiny_config(tmp_path / "root", corpora, clips=clips, split={"validation_share": 0.0}, vocal_acoustic=True))
    reader = ShardReader(tmp_path / "root" / "train")
    assert sorted(reader.clip_ids) == sorted(f"{rate_hz}@0.00" for rate_hz in RATES_HZ)
    for index in range(len(RATES_HZ)):
        shapes = {name: rows.shape for name, rows in reader[index].items()}
        assert shapes["vocal_semantic"] == shapes["instrumental_semantic"] == (1, 500)
        assert shapes["instrumental_codes"] == shapes["vocal_acoustic"] == (8, 750)


@pytest.mark.parametrize("channels", CHANNELS)
def test_mono_stereo_and_surround_are_read(prepared, channels):
    assert kept_clips(prepared[1])[f"channels-{channels}"] == 2


def test_300_samples_are_too_short(prepared):
    assert "shorter than a clip (0.019 s of 2 s)" in reasons(prepared[0].left_out)["300-samples"]


@pytest.mark.parametrize(("song", "rule"), [("dc", "vocal_activity dc_offset"), ("no-vocals", "vocal_activity")])
def test_dc_and_silence_are_no_vocals(prepared, song, rule):
    _, root = prepared
    with (root / "clips.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["song"] == song]
    assert [row["dropped_by"] for row in rows] == [rule] * 2
    assert song not in kept_clips(root)


def test_a_recording_under_two_names_is_kept_once(prepared):
    report, root = prepared
    assert reasons(report.left_out)["duplicate-again"] == "duplicate of duplicate"
    assert kept_clips(root)["duplicate"] == 6


@pytest.mark.parametrize("song", [LONG_NAME, "latin-\\xe9", "good-0"])
def test_odd_names_are_songs_like_any_other(prepared, song):
    assert kept_clips(prepared[1])[song] == 2


def test_loops_of_links_end_and_no_song_is_there_twice(prepared):
    songs = kept_clips(prepared[1])
    assert not [song for song in songs if "loop" in song]
    assert verify_root(prepared[1]).problems == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(prepared):
    assert "Permission denied" in reasons(prepared[0].quarantined)["no-permission"]


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


def test_damage_in_the_middle_takes_the_whole_song_back(tmp_path):
    """NaN in the second half, found when the first clips are tokenized already (no survey of the sound)."""
    write_stems(tmp_path / "songs" / "good", SECONDS, 1)
    folder = write_stems(tmp_path / "songs" / "late", 130.0, 2)
    samples, rate_hz = soundfile.read(folder / "vocals.wav", dtype="float32")
    samples[-1000] = np.nan
    replace_vocals(folder, samples, rate_hz)
    report = prepare(tiny_config(tmp_path / "root", [{"kind": "StemFolder", "path": str(tmp_path / "songs")}]))
    assert list(kept_clips(tmp_path / "root")) == ["good"]
    assert "is NaN or infinite" in reasons(report.quarantined)["late"]
    assert report.candidates == 2


def test_bad_mixtures_are_quarantined_where_songs_are_separated(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    path = low_pass_model(model)
    songs = tmp_path / "songs"
    for number, rate_hz in enumerate((22_050, 48_000)):
        vocal, band = vocal_and_band(SECONDS, number, rate_hz)
        write_audio(songs / f"song {number}.wav", Audio(np.stack([vocal + band] * 2), rate_hz))
    (songs / "empty.mp3").write_bytes(b"")
    (songs / "text.flac").write_text("no sound")
    report = prepare(
        tiny_config(
            tmp_path / "root",
            [{"kind": "SongFolder", "path": str(songs)}],
            separation={"model": str(path), "device": "cpu"},
            filters=dict.fromkeys(("vocal_activity_min", "instrumental_activity_min", "leakage_max")),
        )
    )
    assert report.clips == {"train": 2, "validation": 2}
    assert set(reasons(report.quarantined)) == {"empty.mp3", "text.flac"}
    manifest = ShardReader(tmp_path / "root" / "train").manifest
    assert manifest.preparation["separation"]["model"] == str(path)


def measure_two_hours(tmp_path: Path, values: dict) -> tuple[float, subprocess.CompletedProcess]:
    """Prepare in another process; returns its peak of resident memory in GiB."""
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(values))
    script = (
        "import resource, sys; from hafm_lightning.cli import main; code = main(sys.argv[1:]);"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, "prepare", "--config", str(config)],
        capture_output=True,
        text=True,
        env=os.environ | {"HAFM_QUIET": "1"},
    )
    peak_kib = int(run.stdout.rsplit("peak", 1)[1]) if "peak" in run.stdout else 0
    return peak_kib / 2**20, run


def write_two_hours(folder: Path, rate_hz: int, channels: int) -> None:
    """Two hours of stems, silent but for the last ten seconds."""
    folder.mkdir(parents=True)
    for name, mono in zip(("vocals", "accompaniment"), vocal_and_band(10.0, 0, rate_hz), strict=True):
        with soundfile.SoundFile(folder / f"{name}.flac", "w", rate_hz, channels) as file:
            for _ in range(719):
                file.write(np.zeros((rate_hz * 10, channels), np.float32))
            file.write(np.repeat(mono[:, None], channels, axis=1))


def test_two_hours_at_8_khz_need_little_memory(tmp_path):
    write_two_hours(tmp_path / "songs" / "long", 8_000, 1)
    write_stems(tmp_path / "songs" / "short", SECONDS, 1)
    values = tiny_values(
        tmp_path / "root",
        [{"kind": "StemFolder", "path": str(tmp_path / "songs")}],
        clips={"duration_s": 10.0, "hop_s": 10.0},
        split={"validation_share": 0.0},
    )
    peak_gib, run = measure_two_hours(tmp_path, values)
    assert run.returncode == 0, run.stderr
    assert ShardReader(tmp_path / "root" / "train").clip_ids == ["long@7190.00"]
    assert 0 < peak_gib < 2


@pytest.mark.slow
def test_two_hours_in_stereo_at_44_khz_are_separated_below_2_gib(tmp_path):
    """2.5 GB of samples as floats; separated, filtered and tokenized."""
    time = np.arange(44_100 * 10) / 44_100
    (tmp_path / "songs").mkdir()
    (tmp_path / "model").mkdir()
    with soundfile.SoundFile(tmp_path / "songs" / "long.flac", "w", 44_100, 2) as file:
        tone = 0.1 * (np.sin(2 * np.pi * 500 * time) + np.sin(2 * np.pi * 9000 * time))
        for _ in range(720):
            file.write(np.stack([tone, tone], axis=1))
    values = tiny_values(
        tmp_path / "root",
        [{"kind": "SongFolder", "path": str(tmp_path / "songs")}],
        clips={"duration_s": 10.0, "hop_s": 600.0},
        duplicates={"enabled": True},
        split={"validation_share": 0.0},
        separation={"model": str(low_pass_model(tmp_path / "model")), "device": "cpu"},
    )
    peak_gib, run = measure_two_hours(tmp_path, values)
    assert run.returncode == 0, run.stderr
    assert len(ShardReader(tmp_path / "root" / "train")) == 13
    print(f"peak {peak_gib:.2f} GiB")
    assert 0 < peak_gib < 2


@pytest.mark.slow
def test_a_toy_band_of_50_songs_with_3_damaged_files(tmp_path, capsys, monkeypatch):
    """The whole command on real sound: exit code 0, the three named in the report, the shards verified."""
    from hafm_lightning.cli import main
    from hafm_lightning.toyband.corpus import synthesise_corpus

    monkeypatch.setenv("HAFM_QUIET", "1")
    synthesise_corpus(tmp_path / "toy", train_songs=45, test_songs=5, duration_s=10.0, seed=1)
    damaged = ["toyband_train_0007", "toyband_train_0021", "toyband_test_0003"]
    paths = [next((tmp_path / "toy").glob(f"*/{name}")) for name in damaged]
    (paths[0] / "vocals.wav").write_bytes(b"")
    (paths[1] / "drums.wav").write_text("no drums today\n" * 50)
    cut_short(paths[2] / "other.wav", 0.7)
    config = tmp_path / "c.yaml"
    values = {
        "root": str(tmp_path / "root"),
        "corpora": [{"kind": "MusdbHQ", "path": str(tmp_path / "toy"), "allow_partial": True}],
        "filters": {"vocal_activity_min": 0.1},
        "tokenizers": {"training_clips": 30},
        "clips_per_shard": 10,
        "report": {"examples": 2},
    }
    config.write_text(yaml.safe_dump(values))
    assert main(["prepare", "--config", str(config)]) == 0
    report = PreparationReport.load(tmp_path / "root")
    assert set(reasons(report.quarantined)) == set(damaged)
    assert sum(report.songs.values()) == 47
    page = (tmp_path / "root" / "report.html").read_text()
    output = capsys.readouterr().out
    for name in damaged:
        assert name in page
        assert name in output
    assert main(["prepare", "--verify", str(tmp_path / "root")]) == 0
