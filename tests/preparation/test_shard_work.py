"""The work of a worker: exact frames of any sound, noise, files that only ffmpeg reads, errors that stop the run."""

import csv
import stat
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from odd_songs import CHANNELS, RATES_HZ, kept_clips, reasons, replace_vocals
from odd_songs import SECONDS as ODD_SECONDS
from tiny_corpora import stem_song, vocal_and_band, write_stems
from tiny_preparation import shard_bytes, tiny_config, tiny_tokenizers
from tiny_separation import low_pass_model

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.preparation.plan import Unit
from hafm_lightning.preparation.quality.filters import FilterSettings
from hafm_lightning.preparation.shard_work import ShardWork, SoundSettings
from hafm_lightning.shards import ShardReader, song_of
from hafm_lightning.songs.clips import ClipSettings, with_noise
from hafm_lightning.songs.separation import SeparationSettings
from hafm_lightning.songs.song import Song

NOT_FOR_LIBSNDFILE = b"\0\0\0\x18ftypM4A " + b"\1" * 500


SECONDS = 65.0  # two blocks


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def stand_in(tmp_path, monkeypatch, *lines):
    """An ``ffmpeg`` on the PATH that notes its ``source`` in a log and does what ``lines`` say; returns the log."""
    folder, log = tmp_path / "bin", tmp_path / "calls.txt"
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(
        "\n".join(
            [
                f"#!{sys.executable}",
                "import pathlib, shutil, sys",
                "source = pathlib.Path(sys.argv[sys.argv.index('-i') + 1].removeprefix('file:'))",
                f"with open({str(log)!r}, 'a') as calls: print(source.name, file=calls)",
                *lines,
            ]
        )
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    return log


def folder_of_m4a(songs, sounds):
    """The same song as m4a: files that libsndfile refuses, in place of those of the folder ``sounds``."""
    songs.mkdir(parents=True)
    for path in sounds.iterdir():
        (songs / f"{path.stem}.m4a").write_bytes(NOT_FOR_LIBSNDFILE)


def config(root, songs, **changes):
    settings = {"clips": {"duration_s": 2.0, "hop_s": 8.0}, "split": {"validation_share": 0.0}} | changes
    return tiny_config(root, [{"kind": "StemFolder", "path": str(songs)}], **settings)


def test_a_file_is_decoded_once_for_the_survey_and_once_for_its_shard(tmp_path, monkeypatch):
    """However many blocks the song has; and the shards are those of the decoded sound."""
    sounds = write_stems(tmp_path / "wav" / "song", SECONDS, 1, subtype="FLOAT")
    folder_of_m4a(tmp_path / "m4a" / "song", sounds)
    log = stand_in(tmp_path, monkeypatch, f"shutil.copy(f'{sounds}/{{source.stem}}.wav', sys.argv[-1])")
    for name in ("wav", "m4a"):
        prepare(config(tmp_path / f"root-{name}", tmp_path / name, duplicates={"enabled": True}))
    assert shard_bytes(tmp_path / "root-m4a") == shard_bytes(tmp_path / "root-wav")
    assert sorted(log.read_text().split()) == ["accompaniment.m4a"] * 2 + ["vocals.m4a"] * 2


def test_errors_name_the_songs_own_file(tmp_path, monkeypatch):
    sounds = write_stems(tmp_path / "sounds", 4.0, 1)
    samples, rate_hz = soundfile.read(sounds / "vocals.wav", dtype="float32")
    samples[20_000] = np.nan
    soundfile.write(sounds / "vocals.wav", samples, rate_hz, subtype="FLOAT")
    folder_of_m4a(tmp_path / "songs" / "broken", sounds)
    write_stems(tmp_path / "songs" / "good", 4.0, 2)
    stand_in(tmp_path, monkeypatch, f"shutil.copy(f'{sounds}/{{source.stem}}.wav', sys.argv[-1])")
    report = prepare(config(tmp_path / "root", tmp_path / "songs"))
    (entry,) = report.quarantined
    assert entry["name"] == "broken"
    assert f"{tmp_path}/songs/broken/vocals.m4a: sample 20000 (1.250 s) is NaN" in entry["reason"]


def test_a_full_temporary_folder_stops_the_run_and_blames_no_song(tmp_path, monkeypatch):
    folder_of_m4a(tmp_path / "songs" / "song", write_stems(tmp_path / "sounds", 4.0, 1))
    write_stems(tmp_path / "songs" / "other", 4.0, 2)
    stand_in(tmp_path, monkeypatch, "sys.exit('av_interleaved_write_frame(): No space left on device')")
    with pytest.raises(RuntimeError, match=r"no space left .*ffmpeg filled .* set TMPDIR to a larger disk"):
        prepare(config(tmp_path / "root", tmp_path / "songs"))
    assert not list((tmp_path / "root").rglob("shard-*"))


def test_a_separator_that_cannot_be_loaded_stops_the_run_and_blames_no_song(tmp_path):
    from hafm_lightning.tokenizers import load_tokenizers

    settings = SoundSettings(ClipSettings(), FilterSettings(), SeparationSettings(str(tmp_path / "gone.onnx")), 0.01, 0)
    work = ShardWork(settings, tiny_tokenizers(), load_tokenizers, 4, False, None)
    with pytest.raises(RequestError, match=r"separation model .*gone\.onnx does not exist"):
        work(Unit("train", 0, (Song("mixture", "train", mixture=str(tmp_path / "mixture.wav")),), 2.0))


def sound_settings(**clips) -> SoundSettings:
    return SoundSettings(ClipSettings(**clips), FilterSettings(), SeparationSettings(), 0.01, 0)


def test_noise_reaches_huberts_input(tmp_path):
    """The waveform that enters HuBERT's first convolution is vocal + noise of sigma 0.01, and the band has none."""
    from tiny_tokenizers import save_hubert

    from hafm_lightning.tokenizers import Tokenizers
    from hafm_lightning.tokenizers.hubert import HubertFeatures, HubertTokenizer

    save_hubert(tmp_path / "hubert", do_normalize=False)
    features = HubertFeatures.from_pretrained(tmp_path / "hubert", layer=2)
    tokenizer = HubertTokenizer(features, torch.randn(500, 16))
    inputs = []
    features.model.feature_extractor.register_forward_pre_hook(lambda module, args: inputs.append(args[0].clone()))

    class Codes:
        identity = replace(tokenizer.identity, sample_rate_hz=24_000, rate_hz=75, codebooks=8, vocabulary=1024)

        def encode(self, audio):
            return torch.zeros(len(audio), 8, audio.shape[1] // 320, dtype=torch.int64)

    song = stem_song(tmp_path / "song", seconds=2.0, rate_hz=16_000, subtype="FLOAT")
    settings = replace(sound_settings(duration_s=2.0, hop_s=2.0), filters=FilterSettings(vocal_activity_min=0.0))
    work = ShardWork(settings, tmp_path, lambda folder, device: Tokenizers(tokenizer, Codes()), 4, False, None)
    result = work(Unit("train", 0, (song,), 2.0))
    assert result.clip_ids == ["song@0.00"]
    vocal, band = vocal_and_band(2.0, 0)
    padding = features.padding
    noise = inputs[0][0, padding:-padding].numpy() - vocal
    assert noise.std() == pytest.approx(0.01, rel=0.03)
    np.testing.assert_allclose(noise, with_noise(np.zeros_like(vocal), "song@0.00", 0.01, 0), atol=1e-6)
    np.testing.assert_allclose(inputs[1][0, padding:-padding].numpy(), band, atol=1e-6)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_every_rate_gives_exact_frame_counts(odd_songs, rate_hz):
    _, root = odd_songs
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
def test_mono_stereo_and_surround_are_read(odd_songs, channels):
    assert kept_clips(odd_songs[1])[f"channels-{channels}"] == 2


@pytest.mark.parametrize(("song", "rule"), [("dc", "vocal_activity dc_offset"), ("no-vocals", "vocal_activity")])
def test_dc_and_silence_are_no_vocals(odd_songs, song, rule):
    _, root = odd_songs
    with (root / "clips.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["song"] == song]
    assert [row["dropped_by"] for row in rows] == [rule] * 2
    assert song not in kept_clips(root)


def test_damage_in_the_middle_takes_the_whole_song_back(tmp_path):
    """NaN in the second half, found when the first clips are tokenized already (no survey of the sound)."""
    write_stems(tmp_path / "songs" / "good", ODD_SECONDS, 1)
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
        vocal, band = vocal_and_band(ODD_SECONDS, number, rate_hz)
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
