"""The work of a worker: noise, files that only ffmpeg reads, and errors that stop the run."""

import stat
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from tiny_corpora import stem_song, vocal_and_band, write_stems
from tiny_preparation import shard_bytes, tiny_config

from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.preparation.quality.filters import (
    FilterSettings,
)
from hafm_lightning.preparation.shard_work import SoundSettings
from hafm_lightning.songs.clips import ClipSettings, with_noise
from hafm_lightning.songs.separation import SeparationSettings

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


def sound_settings(**clips) -> SoundSettings:
    return SoundSettings(ClipSettings(**clips), FilterSettings(), SeparationSettings(), 0.01, 0)


def test_noise_reaches_huberts_input(tmp_path):
    """The waveform that enters HuBERT's first convolution is vocal + noise of sigma 0.01, and the band has none."""
    from tiny_tokenizers import save_hubert

    from hafm_lightning.preparation.shard_work import ShardWork
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
    from hafm_lightning.preparation.plan import Unit

    result = work(Unit("train", 0, (song,), 2.0))
    assert result.clip_ids == ["song@0.00"]
    vocal, band = vocal_and_band(2.0, 0)
    padding = features.padding
    noise = inputs[0][0, padding:-padding].numpy() - vocal
    assert noise.std() == pytest.approx(0.01, rel=0.03)
    np.testing.assert_allclose(noise, with_noise(np.zeros_like(vocal), "song@0.00", 0.01, 0), atol=1e-6)
    np.testing.assert_allclose(inputs[1][0, padding:-padding].numpy(), band, atol=1e-6)
