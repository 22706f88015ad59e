"""What only ffmpeg reads: decoded once a song, named by its own file, and a full disk is no fault of the song."""

import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from tiny_corpora import RATE_HZ, vocal_and_band, write_stems
from tiny_preparation import shard_bytes, tiny_config

from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.songs.song import Song
from hafm_lightning.songs.stems import read_blocks, readable

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


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed here")
@pytest.mark.parametrize(("suffix", "codec"), [(".m4a", "aac"), (".wma", "wmav2")])
def test_blocks_of_an_ffmpeg_song_are_those_of_one_decoding(tmp_path, suffix, codec):
    """With the real ffmpeg: no seam where a block begins, which decoding from there on would make."""
    vocal, band = vocal_and_band(SECONDS, 3)
    soundfile.write(tmp_path / "song.wav", vocal + band, RATE_HZ)
    path, whole = tmp_path / f"song{suffix}", tmp_path / "whole.wav"
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-i"]
    subprocess.run([*command, tmp_path / "song.wav", "-c:a", codec, "-b:a", "96k", path], check=True)
    subprocess.run([*command, path, "-c:a", "pcm_f32le", whole], check=True)
    expected, rate_hz = soundfile.read(whole, dtype="float32")
    assert rate_hz == RATE_HZ
    with readable(Song("song", "train", vocals=str(path), accompaniment=(str(path),))) as song:
        blocks = list(read_blocks(song, None))
    assert [block.start for block in blocks] == [0, 60 * RATE_HZ]
    np.testing.assert_array_equal(np.concatenate([block.vocal for block in blocks], axis=1)[0], expected)
    assert np.square(expected).mean() == pytest.approx(np.square(vocal + band).mean(), rel=0.05)
