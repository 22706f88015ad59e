"""Stems: blocks and windows of a song, sums of stems, and files that only ffmpeg reads."""

import shutil
import subprocess

import numpy as np
import pytest
import soundfile
from tiny_corpora import RATE_HZ, stem_song, vocal_and_band, windows_of

from hafm_lightning.errors import RequestError
from hafm_lightning.songs import stems as stems_module
from hafm_lightning.songs.clips import MARGIN_S
from hafm_lightning.songs.song import Song
from hafm_lightning.songs.stems import cut_windows, probe_song, read_blocks, read_window, readable, to_stereo

SECONDS = 65.0  # two blocks


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


def test_blocks_do_not_change_a_sample(tmp_path, monkeypatch):
    song = stem_song(tmp_path / "song", seconds=6.0, rate_hz=22_050)
    _, windows = windows_of(song, duration_s=1.0, hop_s=0.52)
    whole = [(w.start_s, w.before, w.vocal, w.instrumental) for w in windows]
    monkeypatch.setattr(stems_module, "BLOCK_S", 0.6)
    monkeypatch.setattr(stems_module, "_SHORTEST_LAST_BLOCK_S", 0.3)
    _, windows = windows_of(song, duration_s=1.0, hop_s=0.52)
    parts = [(w.start_s, w.before, w.vocal, w.instrumental) for w in windows]
    assert len(parts) == len(whole) > 9
    for one, other in zip(whole, parts, strict=True):
        assert one[:2] == other[:2]
        np.testing.assert_array_equal(one[2], other[2])
        np.testing.assert_array_equal(one[3], other[3])


def test_a_single_window_is_the_one_that_the_song_gives(tmp_path):
    song = stem_song(tmp_path / "song", seconds=4.0, rate_hz=48_000, channels=2)
    _, windows = windows_of(song, duration_s=1.0, hop_s=1.52)
    for window in windows:
        alone = read_window(song, None, window.start_s, 1.0, MARGIN_S)
        np.testing.assert_array_equal(alone.vocal, window.vocal)
        np.testing.assert_array_equal(alone.instrumental, window.instrumental)
    with pytest.raises(RequestError, match="no window of"):
        read_window(song, None, 3.5, 1.0, MARGIN_S)


def test_stems_are_summed_and_short_ones_filled_with_silence(tmp_path):
    generator = np.random.default_rng(0)
    parts = {
        name: generator.normal(0, 0.1, size).astype(np.float32)
        for name, size in (("v", 8000), ("a", 8000), ("b", 7900))
    }
    for name, samples in parts.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 8000, subtype="FLOAT")
    song = Song(
        "s", "train", vocals=str(tmp_path / "v.wav"), accompaniment=(str(tmp_path / "a.wav"), str(tmp_path / "b.wav"))
    )
    (block,) = read_blocks(song, None)
    np.testing.assert_array_equal(block.instrumental[0], parts["a"] + np.pad(parts["b"], (0, 100)))
    soundfile.write(tmp_path / "b.wav", parts["b"], 11_025)
    with pytest.raises(RequestError, match="11025 Hz beside a vocal stem of 8000 Hz"):
        probe_song(song)
    soundfile.write(tmp_path / "b.wav", np.tile(parts["b"], 4), 8000)
    with pytest.raises(RequestError, match="export the stems at one length"):
        probe_song(song)


def test_surround_sound_folds_down_to_stereo_without_clipping():
    surround = np.zeros((6, 4), np.float32)
    surround[0] = 1.0  # left
    np.testing.assert_allclose(to_stereo(surround)[1], 0)
    surround[:] = 1.0
    assert np.abs(to_stereo(surround)).max() == pytest.approx(1.0)
    surround[:] = 0.0
    surround[3] = 1.0  # low frequencies only
    assert not to_stereo(surround).any()
    np.testing.assert_allclose(to_stereo(np.array([[1.0], [2.0], [6.0]], np.float32)), [[3.0], [3.0]])


def test_windows_past_the_song_are_a_programming_error():
    blocks = iter([stems_module.Block(0, np.zeros((1, 100), np.float32), np.zeros((1, 100), np.float32))])
    with pytest.raises(ValueError, match="outside the buffered sound"):
        list(cut_windows(blocks, 10, iter([5.0]), 10.0, 0.0))
