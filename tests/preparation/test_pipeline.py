"""Preparation from end to end: the same bytes whatever happens on the way, and a report that tells what happened."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_corpora import RATE_HZ, write_musdb, write_stems
from tiny_preparation import shard_bytes, tiny_config, tiny_tokenizers, tiny_values

from hafm_lightning.cli import main
from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.lock import exclusive
from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.preparation.report.report import PreparationReport
from hafm_lightning.preparation.verification import verify_root
from hafm_lightning.shards import open_shards
from hafm_lightning.tokenizers import load_tokenizers


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def command(*arguments: object, **options) -> subprocess.Popen:
    """``python -m hafm_lightning prepare ...`` in another process."""
    environment = os.environ | {"HAFM_QUIET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "hafm_lightning", "prepare", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def yaml_file(path: Path, values: dict) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


# What comes out


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
    import soundfile
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


def test_tokenizers_are_trained_on_the_corpus(tmp_path):
    for number in range(4):
        write_stems(tmp_path / "songs" / f"{number}", 12.0, seed=number)
    corpora = [{"kind": "StemFolder", "path": str(tmp_path / "songs")}]
    roots = [tmp_path / "one", tmp_path / "two"]
    for root in roots:
        prepare(tiny_config(root, corpora, tokenizers={"training_clips": 12}))
    identities = [open_shards(root, "train").manifest.tokenizers for root in roots]
    assert identities[0] == identities[1]
    training = PreparationReport.load(roots[0]).training
    assert training["semantic"]["clips"] == 24  # a vocal and an accompaniment each
    assert len(training["acoustic"]["kmeans"]) == 8
    kmeans = training["semantic"]["kmeans"]
    row = [kmeans[name] for name in ("points", "centroids", "dead_centroids")]
    cells = "".join(f"<td class='number'>{value}</td>" for value in row)
    assert f"<td>semantic</td><td class='number'>0</td>{cells}" in (roots[0] / "report.html").read_text()
    assert identities[0]["semantic"]["sha256"] != load_tokenizers(tiny_tokenizers()).semantic.identity.sha256
    assert shard_bytes(roots[0]) == shard_bytes(roots[1])


# The same bytes


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


def test_workers_end_when_their_parent_is_killed(musdb, tmp_path):
    config = yaml_file(tmp_path / "c.yaml", tiny_values(tmp_path / "root", musdb, engine={"workers": 2}))
    process = command("--config", config)
    children: list[int] = []
    deadline = time.monotonic() + 60
    while len(children) < 2 and process.poll() is None and time.monotonic() < deadline:
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        children = [int(pid) for pid in listed.stdout.split()]
        time.sleep(0.05)
    if process.poll() is not None:
        pytest.skip("the run was over before it could be killed")
    time.sleep(2.0)
    process.kill()
    process.communicate()
    for _ in range(200):
        alive = [pid for pid in children if Path(f"/proc/{pid}").exists()]
        if not alive:
            return
        time.sleep(0.05)
    pytest.fail(f"workers {alive} outlived their parent")


def test_a_finished_root_is_not_made_again(prepared, musdb):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*.safetensors")}
    report = prepare(tiny_config(prepared, musdb))
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*.safetensors")} == before
    assert report == PreparationReport.load(prepared)


def test_a_damaged_or_missing_shard_is_made_again(prepared, musdb, tmp_path):
    root = tmp_path / "root"
    subprocess.run(["cp", "-r", prepared, root], check=True)
    expected = shard_bytes(root)
    content = bytearray((root / "train" / "shard-00000.safetensors").read_bytes())
    content[-1] ^= 1
    (root / "train" / "shard-00000.safetensors").write_bytes(content)
    (root / "test" / "shard-00000.safetensors").unlink()
    assert len(verify_root(root).problems) == 2
    prepare(tiny_config(root, musdb))
    assert shard_bytes(root) == expected


# Two at once, a full disk


def test_two_runs_on_one_root_do_not_meet(prepared, musdb, tmp_path):
    root = tmp_path / "root"
    config = yaml_file(tmp_path / "c.yaml", tiny_values(root, musdb))
    processes = [command("--config", config) for _ in range(2)]
    results = [(process.communicate(timeout=120), process.returncode) for process in processes]
    codes = sorted(code for _, code in results)
    assert codes in ([0, 2], [0, 0])  # the second was refused, or came when the first was done
    for (_, errors), code in results:
        if code == 2:
            assert "is preparing" in errors
            assert len(errors.splitlines()) <= 5
    assert shard_bytes(root) == shard_bytes(prepared)


def test_a_running_preparation_is_named(musdb, tmp_path):
    lock = tmp_path / "root" / "work" / "lock"
    with exclusive(lock), pytest.raises(RequestError, match=rf"process {os.getpid()} on .* is preparing"):
        prepare(tiny_config(tmp_path / "root", musdb))
    with exclusive(lock):  # given back
        assert lock.read_text().startswith("process")


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


# Requests that cannot be served


def test_a_root_of_other_settings_or_songs_is_refused(prepared, musdb, tmp_path):
    config = tiny_config(prepared, musdb)
    with pytest.raises(RequestError, match=r"made with clips\.hop_s = 2\.0, now it is 1\.0"):
        prepare(replace(config, clips=replace(config.clips, hop_s=1.0)))
    with pytest.raises(RequestError, match=r"noise_sigma = 0\.01, now it is 0\.0"):
        prepare(replace(config, noise_sigma=0.0))
    write_musdb(tmp_path / "more", train=2, test=1, seconds=3.0)
    root = tmp_path / "root"
    corpora = [{"kind": "MusdbHQ", "path": str(tmp_path / "more"), "allow_partial": True}]
    prepare(tiny_config(root, corpora))
    (tmp_path / "more" / "train" / "Artist 1 - Song train 1").rename(tmp_path / "more" / "train" / "Another - Song")
    with pytest.raises(RequestError, match="2 songs were added, removed or changed"):
        prepare(tiny_config(root, corpora))


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


def test_settings_may_change_until_the_first_shard(prepared, musdb, tmp_path):
    """No clip passes the filter for training; with other thresholds the same root goes on."""
    root = tmp_path / "root"
    strict = {"vocal_activity_min": 1.1}
    with pytest.raises(RequestError, match="no clip of the training songs passes the filter"):
        prepare(tiny_config(root, musdb, filters=strict, tokenizers={"training_clips": 3}, split={"seed": 7}))
    assert (root / "work" / "plan.json").is_file()
    prepare(tiny_config(root, musdb))
    assert shard_bytes(root) == shard_bytes(prepared)


def test_a_corpus_whose_clips_are_all_dropped_has_empty_splits(musdb, tmp_path):
    report = prepare(tiny_config(tmp_path / "root", musdb, filters={"vocal_activity_min": 1.1}))
    assert report.clips == {"train": 0, "validation": 0, "test": 0}
    assert report.rules["vocal_activity"] == {"first": 15, "any": 15}
    assert len(open_shards(tmp_path / "root", "train")) == 0
    assert verify_root(tmp_path / "root").problems == []


def test_shards_of_unknown_origin_are_not_overwritten(musdb, tmp_path):
    (tmp_path / "root" / "train").mkdir(parents=True)
    (tmp_path / "root" / "train" / "shard-00000.safetensors").write_bytes(b"precious")
    with pytest.raises(RequestError, match="holds shards, but"):
        prepare(tiny_config(tmp_path / "root", musdb))
    assert (tmp_path / "root" / "train" / "shard-00000.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": {}}, "clip: unknown key; did you mean 'clips'?"),
        ({"clips": {"hop": 2}}, "clips.hop: unknown key; did you mean 'hop_s'?"),
        ({"clips": {"hop_s": "two"}}, "clips.hop_s: expected float, got 'two'"),
        ({"clips": {"hop_s": 0.01}}, "clips: hop_s is 0.01, must be a positive multiple of 0.04 s"),
        ({"corpora": []}, "corpora is empty"),
        ({"corpora": [{"kind": "MusdbHq", "path": "x"}]}, "corpora.0.kind: got 'MusdbHq'; did you mean 'MusdbHQ'?"),
        ({"corpora": [{"kind": "MusdbHQ"}]}, "corpora.0: missing key path"),
        ({"corpora": [{"kind": "MusdbHQ", "path": "/nowhere"}]}, "corpus folder /nowhere does not exist"),
        ({"engine": {"kind": "spark"}}, "engine: kind is 'spark', choose local or ray"),
        ({"device": "cuda"}, "device is cuda, but torch sees no GPU"),
        ({"styles": 1}, "styles: expected bool, got 1"),
        ({"tokenizers": {"folder": "/nowhere"}}, "no tokenizer in /nowhere/semantic"),
    ],
)
def test_wrong_requests_end_with_2_and_at_most_5_lines(musdb, tmp_path, capsys, change, message):
    import torch

    if "device" in change and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = yaml_file(tmp_path / "c.yaml", tiny_values(tmp_path / "root", musdb) | change)
    assert main(["prepare", "--config", str(config)]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) <= 5
    assert not list((tmp_path / "root").rglob("shard-*"))


def test_mixtures_without_a_model_are_refused_before_any_work(tmp_path):
    write_stems(tmp_path / "songs", 2.0)
    with pytest.raises(RequestError, match="no separation model is set"):
        prepare(tiny_config(tmp_path / "root", [{"kind": "SongFolder", "path": str(tmp_path / "songs")}]))


def test_the_command_prepares_and_verifies(musdb, tmp_path, capsys):
    config = yaml_file(tmp_path / "c.yaml", tiny_values(tmp_path / "unused", musdb))
    root = tmp_path / "root"
    assert main(["prepare", "--config", str(config), f"root={root}", "split.validation_share=0"]) == 0
    assert "train: 12 clips of 4 songs" in capsys.readouterr().out
    assert main(["prepare", "--verify", str(root)]) == 0
    assert "complete and undamaged (train 12 clips, test 3 clips)" in capsys.readouterr().out
    shard = root / "test" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    assert main(["prepare", "--verify", str(root)]) == 1
    assert "shard-00000.safetensors" in capsys.readouterr().out
    assert main(["prepare", "--verify", str(tmp_path / "nothing")]) == 2
    assert main(["prepare"]) == 2
    assert main(["prepare", "--config", str(tmp_path / "none.yaml")]) == 2
    assert main(["prepare", "--config", str(config), "hop"]) == 2
