"""Reading and writing against the standard library's wave module; loudness and true peak against closed forms."""

from __future__ import annotations

import math
import os
import shutil
import stat
import struct
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from hafm_lightning.audio import (
    Audio,
    limit_peak,
    loudness_lufs,
    mix,
    probe_audio,
    read_audio,
    resample,
    true_peak_dbtp,
    write_audio,
)
from hafm_lightning.errors import RequestError

RATE_HZ = 44100


def tone(frequency_hz: float, duration_s: float, amplitude: float, rate_hz: int = RATE_HZ, channels: int = 1) -> Audio:
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    signal = amplitude * np.sin(2 * np.pi * frequency_hz * time_s)
    return Audio(np.tile(signal.astype(np.float32), (channels, 1)), rate_hz)


def write_wave(path: Path, frames: np.ndarray, rate_hz: int = RATE_HZ) -> None:
    """int16 ``[L, channels]`` through the standard library."""
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(frames.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(frames.astype("<i2").tobytes())


@pytest.fixture
def counted(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A stereo wav whose samples are all different, and its int16 frames."""
    frames = np.stack([np.arange(-10000, 10000), np.arange(10000, -10000, -1)], axis=1)
    path = tmp_path / "counted.wav"
    write_wave(path, frames)
    return path, frames


def test_read_gives_what_the_wave_module_wrote(counted):
    path, frames = counted
    audio = read_audio(path)
    assert audio.rate_hz == RATE_HZ
    assert np.array_equal(audio.samples * 32768, frames.T.astype(np.float32))
    info = probe_audio(path)
    assert (info.rate_hz, info.channels, info.frames) == (RATE_HZ, 2, 20000)
    assert info.duration_s == audio.duration_s == 20000 / RATE_HZ


def test_window_starts_and_ends_at_the_nearest_sample(counted):
    path, frames = counted
    window = read_audio(path, start_s=0.1, duration_s=0.2)
    assert np.array_equal(window.samples * 32768, frames[4410 : 4410 + 8820].T)
    assert read_audio(path, start_s=0.4, duration_s=10).samples.shape == (2, 20000 - 17640)
    with pytest.raises(RequestError, match=r"counted\.wav.*earlier window"):
        read_audio(path, start_s=0.5)
    with pytest.raises(ValueError, match="start_s"):
        read_audio(path, start_s=-1.0)


def test_mono_is_the_mean_of_the_channels(tmp_path):
    frames = np.stack([np.arange(-10000, 10000), np.arange(-9000, 11000)], axis=1)
    write_wave(tmp_path / "a.wav", frames)
    assert np.allclose(read_audio(tmp_path / "a.wav", mono=True).samples[0] * 32768, frames.mean(axis=1), atol=1e-3)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_written_samples_come_back(tmp_path, subtype):
    audio = Audio(np.random.default_rng(0).uniform(-1, 1, (2, 3000)).astype(np.float32), 48000)
    write_audio(tmp_path / "a.wav", audio, subtype=subtype)
    once = read_audio(tmp_path / "a.wav")
    step = {"PCM_16": 2**-15, "PCM_24": 2**-23, "FLOAT": 0}[subtype]
    assert np.abs(once.samples - audio.samples).max() <= step
    write_audio(tmp_path / "b.wav", once, subtype=subtype)
    assert np.array_equal(read_audio(tmp_path / "b.wav").samples, once.samples)


def test_full_scale_and_flac_survive(tmp_path):
    audio = Audio(np.array([[-1.0, 1.0, 0.0, 0.5] * 100], dtype=np.float32), 16000)
    write_audio(tmp_path / "a.flac", audio)
    assert np.abs(read_audio(tmp_path / "a.flac").samples - audio.samples).max() <= 2**-15


def test_pcm_refuses_nan_and_overload_and_leaves_nothing(tmp_path):
    target = tmp_path / "out.wav"
    with pytest.raises(ValueError, match="over full scale"):
        write_audio(target, Audio(np.full((1, 10), 1.01, np.float32), 16000))
    with pytest.raises(ValueError, match="NaN"):
        write_audio(target, Audio(np.full((1, 10), np.nan, np.float32), 16000), subtype="FLOAT")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_keeps_the_old_file_and_no_fragment(tmp_path):
    resource = pytest.importorskip("resource", reason="limits a file's size, as a full disk would")
    target = tmp_path / "out.wav"
    write_audio(target, tone(440, 0.1, 0.5))
    before = target.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(RequestError, match=r"out\.wav: cannot be written"):
            write_audio(target, tone(440, 5, 0.5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["out.wav"]
    assert target.read_bytes() == before


def test_write_needs_a_known_suffix_and_makes_folders(tmp_path):
    with pytest.raises(RequestError, match=r"\.wav name"):
        write_audio(tmp_path / "a.mp3", tone(440, 0.1, 0.5))
    write_audio(tmp_path / "new" / "a.wav", tone(440, 0.1, 0.5))
    assert probe_audio(tmp_path / "new" / "a.wav").frames == 4410
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="another folder"):
        write_audio(tmp_path / "file" / "a.wav", tone(440, 0.1, 0.5))


def damaged_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Kind of damage -> file, and what the message must say."""
    sound = tone(440, 1.0, 0.5, channels=2)
    whole = folder / "whole.wav"
    write_audio(whole, sound)
    flac = folder / "whole.flac"
    write_audio(flac, sound)
    files = {
        "missing": (folder / "missing.wav", "no such file"),
        "folder": (folder, "is a folder"),
        "empty": (folder / "empty.wav", "0 bytes"),
        "text": (folder / "text.wav", "convert it to WAV"),
        "no frames": (folder / "frameless.wav", "0 frames"),
        "truncated wav": (folder / "cut.wav", "truncated"),
        "truncated flac": (folder / "cut.flac", "truncated"),
        "NaN": (folder / "nan.wav", "NaN or infinite"),
        "raw": (folder / "a.raw", "no header"),
    }
    files["empty"][0].write_bytes(b"")
    files["text"][0].write_text("this is not a wav file\n" * 100)
    write_wave(files["no frames"][0], np.zeros((0, 2)))
    files["truncated wav"][0].write_bytes(whole.read_bytes()[:60_000])
    files["truncated flac"][0].write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    files["raw"][0].write_bytes(b"\0" * 1000)
    body = np.array([0.0, 0.1, np.nan, 0.2] * 8, "<f4").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(body), b"WAVE", b"fmt ", 16, 3, 1, 8000, 32000, 4, 32)
    files["NaN"][0].write_bytes(head + struct.pack("<4sI", b"data", len(body)) + body)
    return files


KINDS = ("missing", "folder", "empty", "text", "no frames", "truncated wav", "truncated flac", "NaN", "raw")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_is_refused_by_name_with_the_mend(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("PATH", os.fspath(tmp_path))  # no ffmpeg
    path, words = damaged_files(tmp_path)[kind]
    with pytest.raises(RequestError, match=words) as caught:
        read_audio(path)
    assert os.fspath(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_unreadable_permissions(tmp_path, monkeypatch):
    path = tmp_path / "locked.wav"
    write_audio(path, tone(440, 0.1, 0.5))

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read every file, so chmod proves nothing here
    with pytest.raises(RequestError, match=r"locked\.wav.*Permission denied.*permissions"):
        read_audio(path)


def test_truncated_aiff_is_refused(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.aiff", np.zeros((1000, 1)), 8000)
    assert read_audio(tmp_path / "a.aiff").samples.shape == (1, 1000)
    whole = (tmp_path / "a.aiff").read_bytes()
    (tmp_path / "a.aiff").write_bytes(whole[:-100])
    with pytest.raises(RequestError, match="truncated"):
        read_audio(tmp_path / "a.aiff")


def test_a_wav_from_a_pipe_has_no_size_and_is_read(counted, tmp_path):
    path, frames = counted
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    streamed = tmp_path / "streamed.wav"
    streamed.write_bytes(data)
    assert np.array_equal(read_audio(streamed).samples * 32768, frames.T)


def test_chunks_before_and_after_the_sound_do_not_look_like_truncation(counted, tmp_path):
    path, frames = counted
    data = path.read_bytes()
    odd = struct.pack("<4sI", b"LIST", 5) + b"notes\0"
    longer = tmp_path / "chunks.wav"
    longer.write_bytes(data[:12] + odd + data[12:] + odd)
    assert np.array_equal(read_audio(longer).samples * 32768, frames.T)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_a_name_that_is_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    write_audio(path, tone(440, 0.1, 0.5))
    assert read_audio(path).samples.shape == (1, 4410)


def test_what_libsndfile_cannot_read_goes_through_ffmpeg(tmp_path, monkeypatch, counted):
    """A stand-in for ffmpeg on the PATH, which checks how it is called and "decodes" by copying a wav."""
    path, frames = counted
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\n"
        "import shutil, sys\n"
        "source = sys.argv[sys.argv.index('-i') + 1]\n"
        "assert source.startswith('file:/') and '-nostdin' in sys.argv\n"
        "if 'broken' in source:\n"
        "    sys.exit('moov atom not found')\n"
        f"shutil.copy({os.fspath(path)!r}, sys.argv[-1])\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.fspath(folder))
    for name in ("song.m4a", "broken.m4a"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypM4A " + b"\1" * 500)
    assert np.array_equal(read_audio(tmp_path / "song.m4a").samples * 32768, frames.T)
    assert probe_audio(tmp_path / "song.m4a").frames == len(frames)
    with pytest.raises(RequestError, match=r"broken\.m4a.*moov atom not found.*convert"):
        read_audio(tmp_path / "broken.m4a")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed here")
@pytest.mark.parametrize("start_s", [0.0, 0.25, 2.0, 3.5])
def test_a_window_through_ffmpeg_is_what_the_atomic_file_holds_there(tmp_path, start_s):
    """With the real ffmpeg: a seek leaves the first frame of AAC silent, even a seek to 0."""
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 5 * 16_000)).astype(np.float32)
    write_audio(tmp_path / "song.wav", Audio(noise, 16_000))
    path, whole = tmp_path / "song.m4a", tmp_path / "whole.wav"
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-i"]
    subprocess.run([*command, tmp_path / "song.wav", "-c:a", "aac", "-b:a", "96k", path], check=True)
    subprocess.run([*command, path, "-c:a", "pcm_f32le", whole], check=True)
    expected = read_audio(whole).samples
    start = round(start_s * 16_000)
    window = read_audio(path, start_s=start_s, duration_s=1.0).samples
    np.testing.assert_array_equal(window, expected[:, start : start + 16_000])
    rest = read_audio(path, start_s=start_s).samples
    np.testing.assert_array_equal(rest, expected[:, start:])


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44100, 16000), (44100, 24000), (24000, 16000), (8000, 24000)])
def test_resampling_keeps_a_tone_and_gives_the_exact_length(from_hz, to_hz):
    for length in (from_hz * 2, 12345, 1, 0):
        assert resample(np.zeros((2, 3, length)), from_hz, to_hz).shape == (2, 3, round(length * to_hz / from_hz))
    converted = resample(tone(1000, 2, 0.5, from_hz).samples, from_hz, to_hz)
    expected = tone(1000, 2, 0.5, to_hz).samples
    inner = slice(to_hz // 10, -to_hz // 10)
    error = (converted - expected)[0, inner]
    assert converted.dtype == np.float32
    assert 10 * math.log10(np.mean(expected[0, inner] ** 2) / np.mean(error**2)) > 60


def test_read_at_another_rate(tmp_path):
    write_audio(tmp_path / "a.wav", tone(440, 10.0, 0.5))
    assert read_audio(tmp_path / "a.wav", rate_hz=16000, mono=True).samples.shape == (1, 160000)


def test_loudness_of_the_standards_reference_tone():
    """BS.1770: a 997 Hz sine at full scale in one channel measures -3.01 LUFS."""
    assert loudness_lufs(tone(997, 5, 1.0, 48000)) == pytest.approx(-3.01, abs=0.05)
    assert loudness_lufs(tone(997, 5, 0.1, 48000, channels=2)) == pytest.approx(-20.0, abs=0.05)


def test_loudness_of_silence_and_of_very_short_sound():
    assert loudness_lufs(Audio(np.zeros((2, 48000), np.float32), 48000)) == -math.inf
    assert loudness_lufs(Audio(np.zeros((1, 0), np.float32), 48000)) == -math.inf
    assert loudness_lufs(tone(997, 5, 1e-6, 48000)) == -math.inf
    assert loudness_lufs(tone(997, 0.2, 0.5, 48000)) == pytest.approx(-9.03, abs=0.3)


def test_true_peak_sees_between_the_samples():
    """A sine at a quarter of the rate, sampled 45 degrees off its crests, peaks 3.01 dB above its samples."""
    phase = np.pi / 2 * np.arange(48000) + np.pi / 4
    audio = Audio((0.5 * np.sin(phase)).astype(np.float32)[None], 48000)
    assert 20 * math.log10(np.abs(audio.samples).max()) == pytest.approx(-9.03, abs=0.01)
    assert true_peak_dbtp(audio) == pytest.approx(-6.02, abs=0.1)
    assert true_peak_dbtp(Audio(np.zeros((1, 100), np.float32), 48000)) == -math.inf


def test_the_peak_limit_lowers_a_loud_signal_and_keeps_a_quiet_one():
    assert true_peak_dbtp(limit_peak(tone(440, 3, 1.0))) == pytest.approx(-1.0, abs=0.01)
    quiet = tone(440, 3, 0.01)
    assert limit_peak(quiet) is quiet


def test_mix_brings_the_accompaniment_to_the_loudness_of_the_vocal():
    vocal, band = tone(440, 3, 0.1), tone(997, 3, 0.01)
    matched = Audio(mix(vocal, band).samples - vocal.samples, RATE_HZ)
    assert loudness_lufs(matched) == pytest.approx(loudness_lufs(vocal), abs=0.01)
    silence = Audio(np.zeros((1, 44100), np.float32), RATE_HZ)
    assert np.array_equal(mix(vocal, silence).samples, vocal.samples)


def test_mix_is_aligned_and_keeps_the_vocals_length():
    vocal = tone(440, 1.0, 0.1)
    click = np.zeros((2, 100_000), np.float32)
    click[:, 1000] = 0.2
    mixed = mix(vocal, Audio(click, RATE_HZ), match_loudness=False, gain_db=-20 * math.log10(2))
    assert mixed.samples.shape == (2, RATE_HZ)
    difference = mixed.samples - vocal.samples
    assert np.flatnonzero(np.abs(difference[1]) > 1e-6).tolist() == [1000]
    assert difference[0, 1000] == pytest.approx(0.1, abs=1e-4)


def test_mix_matches_loudness_and_never_clips():
    vocal, loud = tone(440, 2.0, 0.9), tone(997, 1.0, 0.001, channels=2)
    mixed = mix(vocal, loud)
    assert true_peak_dbtp(mixed) <= -1.0 + 0.01
    spectrum = np.abs(np.fft.rfft(mixed.samples[0, :RATE_HZ]))
    assert spectrum[997] > 0.3 * spectrum[440]
    silence = Audio(np.zeros((1, 10), np.float32), RATE_HZ)
    assert np.array_equal(mix(silence, tone(440, 1.0, 0.1)).samples, tone(440, 1.0, 0.1).samples[:, :10])


def test_mix_refuses_other_rates_and_channels():
    with pytest.raises(ValueError, match="44100 Hz with an accompaniment at 24000 Hz"):
        mix(tone(440, 1, 0.1), tone(440, 1, 0.1, 24000))
    with pytest.raises(ValueError, match="2 with 3 channels"):
        mix(tone(440, 1, 0.1, channels=2), tone(440, 1, 0.1, channels=3))


def test_audio_refuses_other_shapes():
    with pytest.raises(ValueError, match="channels, L"):
        Audio(np.zeros(10, np.float32), 16000)
    with pytest.raises(ValueError, match="float32"):
        Audio(np.zeros((1, 10)), 16000)
