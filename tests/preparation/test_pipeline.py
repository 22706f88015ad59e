"""Preparation from end to end: the same bytes whatever happens on the way."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from odd_songs import LONG_NAME, SECONDS, cut_short, kept_clips, reasons
from tiny_corpora import RATE_HZ, vocal_and_band, write_stems
from tiny_preparation import command, shard_bytes, tiny_config, tiny_tokenizers, tiny_values, yaml_file
from tiny_separation import low_pass_model

from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.preparation.report.report import PreparationReport
from hafm_lightning.preparation.verification import verify_root
from hafm_lightning.processes.locks import LOCK_NAME, Lock
from hafm_lightning.shards import ShardReader, open_shards
from hafm_lightning.tokenizers import load_tokenizers


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def test_songs_become_shards_of_three_splits(prepared):
    readers = {split: open_shards(prepared, split) for split in ("train", "validation", "test")}
    assert {split: len(reader) for split, reader in readers.items()} == {"train": 9, "validation": 3, "test": 3}
    songs = [set(reader.manifest.songs()) for reader in readers.values()]
    assert len(set.union(*songs)) == sum(map(len, songs)) == 5
    assert songs[2] == {"Artist 0 - Song test 0"}
    assert readers["test"].clip_ids == [f"Artist 0 - Song test 0@{start}" for start in ("0.00", "2.00", "3.00")]
    manifest = readers["train"].manifest
    assert manifest.tokenizers == load_tokenizers(prepared / "tokenizers").identities()
    assert manifest.preparation["noise_sigma"] == 0.01
    assert manifest.duration_s == 2.0
    assert verify_root(prepared).problems == []


def test_one_process_holds_the_tokenizers_once_and_those_of_its_own_root(musdb, tmp_path):
    root, calls = tmp_path / "root", []

    def load(folder: Path, device: str):
        calls.append(folder)
        return load_tokenizers(folder, device=device)

    for _ in range(2):  # the second time the root is another one at the same place
        prepare(tiny_config(root, musdb), load)
        assert calls.count(root / "tokenizers") == 1
        calls.clear()
        shutil.rmtree(root)


def test_tokens_are_those_of_the_clips_waveform(prepared, musdb):
    """An independent path: read the file, cut, resample, tokenize."""
    import torch

    from hafm_lightning.audio import resample
    from hafm_lightning.songs.clips import with_noise

    reader = open_shards(prepared, "test")
    folder = Path(musdb[0]["path"]) / "test" / "Artist 0 - Song test 0"
    tokenizers = load_tokenizers(prepared / "tokenizers")
    stems = {path.stem: soundfile.read(path, dtype="float32")[0][: 2 * RATE_HZ] for path in folder.glob("*.wav")}
    band = stems["drums"] + stems["bass"] + stems["other"]
    vocal = with_noise(stems["vocals"], reader.clip_ids[0], 0.01, 0)
    clip = reader[0]
    np.testing.assert_array_equal(clip["vocal_semantic"], tokenizers.semantic.encode(torch.from_numpy(vocal)[None])[0])
    np.testing.assert_array_equal(
        clip["instrumental_semantic"], tokenizers.semantic.encode(torch.from_numpy(band)[None])[0]
    )
    fine = torch.from_numpy(resample(band, RATE_HZ, 24_000))[None]
    codes = tokenizers.acoustic.encode(fine)[0].numpy()
    # The pipeline resamples with surroundings, this test without: only the clip's last frames may differ.
    np.testing.assert_array_equal(clip["instrumental_codes"][:, :-4], codes[:, :-4])


def test_optional_streams_are_stored_when_asked_for(musdb, tmp_path):
    prepare(tiny_config(tmp_path / "root", musdb, vocal_acoustic=True, styles=True, split={"validation_share": 0.0}))
    reader = open_shards(tmp_path / "root", "train")
    assert reader[0]["vocal_acoustic"].shape == (8, 150)
    assert reader[0]["style"].tolist() == [[0]]
    assert reader.manifest.styles == ["unknown"]
    with pytest.raises(RequestError, match="no split 'validation'"):
        open_shards(tmp_path / "root", "validation")


def test_genres_of_the_metadata_become_styles(styled_shards):
    reader = open_shards(styled_shards, "train")
    assert reader.manifest.styles == ["unknown", "Jazz", "Rock"]
    genre = {name: int(reader[row]["style"].item()) for row, name in enumerate(reader.clip_ids)}
    assert {int(name[5]) % 3: style for name, style in genre.items()}.items() <= {0: 2, 1: 1, 2: 0}.items()


def test_the_number_of_workers_does_not_change_a_byte(prepared, musdb, tmp_path):
    prepare(tiny_config(tmp_path / "root", musdb, engine={"workers": 2}))
    assert shard_bytes(tmp_path / "root") == shard_bytes(prepared)
    assert len(shard_bytes(prepared)) == 3 + 4  # manifests and shards


@pytest.mark.parametrize("moment", ["survey", "records", "manifest.json"])
def test_a_killed_run_continues_to_the_same_bytes(prepared, musdb, tmp_path, moment):
    """kill -9 as soon as a file of each step appears, workers included; then start again."""
    root = tmp_path / "root"
    config = yaml_file(tmp_path / "c.yaml", tiny_values(root, musdb, engine={"workers": 2}))
    process = command("--config", config, start_new_session=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(FileNotFoundError):  # a temporary folder may be renamed while it is listed
            if any(moment in str(path.relative_to(root)) and path.is_file() for path in root.rglob("*")):
                break
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = list((root / "work" / "records").glob("*.json")) if moment == "records" else []
    times = {path: path.stat().st_mtime_ns for path in finished}
    prepare(tiny_config(root, musdb))
    assert shard_bytes(root) == shard_bytes(prepared)
    assert {path: path.stat().st_mtime_ns for path in finished} == times  # what was finished was not made again
    assert verify_root(root).problems == []
    assert not list(root.rglob(".writing-*"))


def test_two_runs_on_one_root_do_not_meet(prepared, musdb, tmp_path):
    root = tmp_path / "root"
    config = yaml_file(tmp_path / "c.yaml", tiny_values(root, musdb))
    processes = [command("--config", config) for _ in range(2)]
    results = [(process.communicate(timeout=600), process.returncode) for process in processes]
    codes = sorted(code for _, code in results)
    assert codes in ([0, 2], [0, 0])  # the second was refused, or came when the first was done
    for (_, errors), code in results:
        if code == 2:
            assert re.search(r"root is in use by process \d+ on ", errors)
            assert len(errors.splitlines()) <= 5
    assert shard_bytes(root) == shard_bytes(prepared)


def test_a_running_preparation_is_named(musdb, tmp_path):
    lock = Lock(tmp_path / "root" / "work" / LOCK_NAME)
    assert lock.acquire()
    with pytest.raises(RequestError, match=rf"root is in use by process {os.getpid()} on .* since "):
        prepare(tiny_config(tmp_path / "root", musdb))
    lock.release()
    assert not lock.is_held()


@pytest.mark.parametrize("full", ["for tokenizers", "for shards"])
def test_a_full_disk_leaves_no_partial_file(prepared, musdb, tmp_path, full):
    """No file may grow beyond 10 kB, which every shard does: the run fails, and continues when there is room."""
    root = tmp_path / "root"
    config = yaml_file(tmp_path / "c.yaml", tiny_values(root, musdb))
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000));"
        "from hafm_lightning.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    if full == "for shards":
        shutil.copytree(tiny_tokenizers(), root / "tokenizers")
    run = subprocess.run(
        [sys.executable, "-c", script, "prepare", "--config", str(config)], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "no space left" in run.stderr
    assert (root / "tokenizers" / "semantic").is_dir() == (full == "for shards")
    assert not list(root.rglob("shard-*"))
    assert not list(root.rglob(".writing-*"))
    prepare(tiny_config(root, musdb))
    assert shard_bytes(root) == shard_bytes(prepared)


def test_a_wrong_request_leaves_nothing_and_can_be_mended(musdb, tmp_path):
    root = tmp_path / "root"
    with pytest.raises(RequestError, match="does not exist"):
        prepare(tiny_config(root, [{"kind": "MusdbHQ", "path": str(tmp_path / "typo")}]))
    with pytest.raises(RequestError, match="names 'nobody', which is in no corpus"):
        prepare(tiny_config(root, musdb, split={"validation_songs": ["nobody"]}))
    with pytest.raises(RequestError, match="no tokenizer in"):
        prepare(tiny_config(root, musdb, tokenizers={"folder": str(tmp_path)}))
    assert not root.exists()
    prepare(tiny_config(root, musdb))


def test_a_corpus_whose_clips_are_all_dropped_has_empty_splits(musdb, tmp_path):
    report = prepare(tiny_config(tmp_path / "root", musdb, filters={"vocal_activity_min": 1.1}))
    assert report.clips == {"train": 0, "validation": 0, "test": 0}
    assert report.rules["vocal_activity"] == {"first": 15, "any": 15}
    assert len(open_shards(tmp_path / "root", "train")) == 0
    assert verify_root(tmp_path / "root").problems == []


def test_mixtures_without_a_model_are_refused_before_any_work(tmp_path):
    write_stems(tmp_path / "songs", 2.0)
    with pytest.raises(RequestError, match="no separation model is set"):
        prepare(tiny_config(tmp_path / "root", [{"kind": "SongFolder", "path": str(tmp_path / "songs")}]))


def test_the_papers_chain_on_tiny_models(tmp_path):
    """Mixtures, separation, HuBERT with centroids trained on the corpus, EnCodec: as experiments/prepare.yaml asks."""
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
    use = {(entry["stream"], entry["codebook"]): entry["used"] for entry in report.codebooks}
    assert use["vocal_semantic", 0] > 50
    assert use["instrumental_codes", 0] > 1
    whole = verify_root(tmp_path / "root")
    assert (whole.problems, whole.notes) == ([], [])
    shutil.rmtree(tmp_path / "hubert")  # shards can be checked on a machine that has no weights
    unloaded = verify_root(tmp_path / "root")
    assert unloaded.problems == []
    assert "hubert" in unloaded.notes[0]
    assert "not loaded" in unloaded.summary()


@pytest.mark.parametrize("song", [LONG_NAME, "latin-\\xe9", "good-0"])
def test_odd_names_are_songs_like_any_other(odd_songs, song):
    assert kept_clips(odd_songs[1])[song] == 2


def test_loops_of_links_end_and_no_song_is_there_twice(odd_songs):
    songs = kept_clips(odd_songs[1])
    assert not [song for song in songs if "loop" in song]
    assert verify_root(odd_songs[1]).problems == []


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
