"""Files whose headers lie or whose ends are missing: read to their end, or refused by name; never cut in silence."""

from __future__ import annotations

import os
import resource
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from odd_sounds import (
    RATE_HZ,
    flac_claiming,
    mp3_of_variable_rate,
    noise,
    wav_claiming,
    wav_of_codec,
    with_xing_frames,
    without_xing,
)

from hafm_lightning import limits
from hafm_lightning.audio import Audio, SoundWarning, in_phase, probe_audio, read_audio, write_audio
from hafm_lightning.audio.headers import missing_bytes
from hafm_lightning.audio.lengths import has_no_length
from hafm_lightning.errors import RequestError


@pytest.fixture(autouse=True)
def _no_ffmpeg(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", os.fspath(tmp_path))


@pytest.mark.parametrize("claim", [0, 2**36 - 1, 2**35, 5 * 3600 * RATE_HZ])
def test_a_flac_of_unknown_or_absurd_length_is_read_to_its_end(tmp_path, claim):
    samples = noise(3.0)
    path = flac_claiming(tmp_path / "a.flac", samples, claim)
    assert probe_audio(path).frames == len(samples)
    whole = read_audio(path).samples
    assert np.abs(whole - samples.T).max() < 2**-15
    window = read_audio(path, start_s=1.5, duration_s=1.0).samples
    assert np.array_equal(window, whole[:, round(1.5 * RATE_HZ) : round(2.5 * RATE_HZ)])
    assert has_no_length(path)


def test_a_flac_that_claims_twice_its_length_is_cut_short(tmp_path):
    path = flac_claiming(tmp_path / "a.flac", noise(3.0), 6 * RATE_HZ)
    with pytest.raises(RequestError, match="truncated"):
        read_audio(path)


def test_an_mp3_without_a_length_is_read_to_its_end(tmp_path):
    """libsndfile takes its length from the bit rate of the first frame: a third of the file, in silence."""
    samples = noise(8.0)
    path = mp3_of_variable_rate(tmp_path / "a.mp3", samples)
    tagged = read_audio(path).samples
    without_xing(path)
    with soundfile.SoundFile(path) as file:
        assert file.frames < 0.8 * len(samples)
    whole = read_audio(path).samples
    assert 0 <= whole.shape[1] - len(samples) < 4000  # the encoder's delay and padding
    piece, place = tagged[0, 5 * RATE_HZ :][:8192], 5 * RATE_HZ
    likeness = np.correlate(whole[0, place : place + 8192 + 3000], piece, mode="valid")
    shift = int(np.argmax(likeness))  # the encoder's delay, of which the header told
    assert np.corrcoef(whole[0, place + shift :][:8192], piece)[0, 1] > 0.99
    window = read_audio(path, start_s=5.0, duration_s=1.0).samples
    assert np.array_equal(window, whole[:, 5 * RATE_HZ : 6 * RATE_HZ])


@pytest.mark.parametrize("frames", [2**31, 10**8])
def test_an_mp3_of_absurd_length_is_read_to_its_end(tmp_path, frames):
    path = with_xing_frames(mp3_of_variable_rate(tmp_path / "a.mp3", noise(4.0)), frames)
    assert 4 * RATE_HZ <= probe_audio(path).frames < 4.2 * RATE_HZ
    assert read_audio(path).samples.shape[1] == probe_audio(path).frames


CONTAINERS = {
    "wav": ("WAV", "PCM_16"),
    "w64": ("W64", "PCM_24"),
    "rf64": ("RF64", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "svx": ("SVX", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "flac": ("FLAC", "PCM_16"),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_file_that_is_cut_short_is_named_and_a_whole_one_is_read(tmp_path, kind):
    container, subtype = CONTAINERS[kind]
    rate_hz = 48_000 if kind == "opus" else RATE_HZ
    path = tmp_path / f"song.{kind}"
    samples = noise(3.0, channels=1 if kind == "svx" else 2)
    soundfile.write(path, samples, rate_hz, format=container, subtype=subtype)
    assert missing_bytes(path) == 0
    assert read_audio(path).samples.shape[1] == pytest.approx(len(samples), abs=2500)
    data = path.read_bytes()
    for share in (0.97, 0.6, 0.3):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(RequestError, match=rf"song\.{kind}: (truncated or damaged|.*malformed)") as caught:
            read_audio(path)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("rate_hz", "channels", "words"),
    [
        (1, 1, "1 samples a second"),
        (3_999, 2, "3999 samples"),
        (2**31 - 1, 1, "samples a second"),
        (44_100, 33, "33 channels"),
    ],
)
def test_impossible_rates_and_channels_are_refused(tmp_path, rate_hz, channels, words):
    path = wav_claiming(tmp_path / "odd.wav", rate_hz, channels)
    for read in (read_audio, probe_audio):
        with pytest.raises(RequestError, match=words):
            read(path)


def test_a_wav_of_65535_channels_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"odd\.wav"):
        read_audio(wav_claiming(tmp_path / "odd.wav", 44_100, 65_535, size=131_070 * 4))


@pytest.mark.parametrize("change", [{"audio_seconds": 2.0}, {"audio_bytes": 50_000}, {"audio_channels": 1}])
def test_limits_can_be_changed(tmp_path, change):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(3.0), RATE_HZ)
    assert probe_audio(path).channels == 2
    with limits.using(**change), pytest.raises(RequestError, match=r"at most|are read"):
        read_audio(path)


def test_a_pipe_a_device_and_a_socket_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    for name in ("pipe.wav", "zero.wav"):
        for read in (read_audio, probe_audio):
            with pytest.raises(RequestError, match=r"is a (pipe|device)"):
                read(tmp_path / name)


@pytest.mark.parametrize(
    ("subtype", "name"), [("GSM610", "gsm"), ("IMA_ADPCM", "ima"), ("MS_ADPCM", "ms"), ("ULAW", "u")]
)
def test_wavs_of_recorders_are_read_and_windows_of_them(tmp_path, subtype, name):
    time = np.arange(2 * 8000) / 8000
    path = tmp_path / f"{name}.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 300 * time), 8000, subtype=subtype)
    whole = read_audio(path).samples
    assert whole.shape[1] == pytest.approx(16_000, abs=1100)
    assert np.abs(whole[0, 4000:12_000]).max() == pytest.approx(0.5, abs=0.1)
    assert np.array_equal(read_audio(path, start_s=1.0, duration_s=0.5).samples, whole[:, 8000:12_000])


@pytest.mark.parametrize(("number", "codec"), [(0x45, "G.726"), (0x161, "Windows Media"), (0x7777, "unknown codec")])
def test_a_codec_that_cannot_be_read_is_called_what_it_is(tmp_path, number, codec):
    with pytest.raises(RequestError, match=codec):
        read_audio(wav_of_codec(tmp_path / "a.wav", number))


def opposite(second: float, seconds: float = 1.0) -> np.ndarray:
    """A tone, and ``second`` times the tone: ``[L, 2]``."""
    tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)
    return np.stack([tone, second * tone], axis=1).astype(np.float32)


@pytest.mark.parametrize("second", [-1.0, -0.9, -0.6])
def test_channels_that_cancel_give_the_stronger_one_and_a_warning(tmp_path, second):
    path = tmp_path / "phase.wav"
    soundfile.write(path, opposite(second), RATE_HZ, subtype="FLOAT")
    with pytest.warns(SoundWarning, match=r"phase\.wav.*channel 1"):
        mono = read_audio(path, mono=True)
    assert np.array_equal(mono.samples[0], opposite(second)[:, 0])
    stereo = read_audio(path)
    with pytest.warns(SoundWarning, match="cancel"):
        assert np.array_equal(stereo.mono().samples, mono.samples)
    assert np.array_equal(in_phase(stereo.samples, RATE_HZ), mono.samples)


def test_channels_that_cancel_for_a_third_of_the_song_count_too(tmp_path):
    samples = np.concatenate([opposite(1.0, 2.0), opposite(-1.0, 1.0)])
    soundfile.write(tmp_path / "phase.wav", samples, RATE_HZ, subtype="FLOAT")
    with pytest.warns(SoundWarning):
        assert np.array_equal(read_audio(tmp_path / "phase.wav", mono=True).samples[0], samples[:, 0])


@pytest.mark.parametrize("channels", [2, 6, 8])
def test_ordinary_channels_stay_their_mean(channels):
    generator = np.random.default_rng(0)
    shared, own = generator.standard_normal((1, RATE_HZ)), generator.standard_normal((channels, RATE_HZ))
    panned = np.zeros((channels, RATE_HZ))
    panned[0] = own[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for samples in (np.repeat(shared, channels, axis=0), own, panned, 0.3 * shared + own):
            audio = Audio((0.1 * samples).astype(np.float32), RATE_HZ)
            expected = audio.samples.mean(axis=0, keepdims=True, dtype=np.float32)
            assert np.array_equal(audio.mono().samples, expected)


def test_very_soft_and_too_loud_sound_is_kept_as_it_is(tmp_path):
    for gain in (1e-4, 10 ** (6 / 20)):
        samples = gain * opposite(1.0)
        soundfile.write(tmp_path / "a.wav", samples, RATE_HZ, subtype="FLOAT")
        assert np.array_equal(read_audio(tmp_path / "a.wav", mono=True).samples[0], samples[:, 0])


def test_reading_takes_little_more_memory_than_the_sound(tmp_path):
    samples = noise(60.0)
    soundfile.write(tmp_path / "a.flac", samples, RATE_HZ)
    size = samples.nbytes
    tracemalloc.start()
    read_audio(tmp_path / "a.flac")
    whole = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    read_audio(tmp_path / "a.flac", mono=True)
    mono = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    read_audio(tmp_path / "a.flac", start_s=30, duration_s=1)
    window = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert whole < 1.25 * size
    assert mono < 0.75 * size
    assert window < 0.1 * size


def test_a_sound_that_claims_more_than_the_memory_is_refused(tmp_path):
    """A wav without a size, sparse on the disk: 4 GB of silence in 32 channels at 384 kHz."""
    path = wav_claiming(tmp_path / "huge.wav", 384_000, 32, size=0)
    data = bytearray(path.read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    os.truncate(path, 3_900_000_000)
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2_000_000_000, before[1]))
    try:
        with pytest.raises(RequestError, match="memory"):
            read_audio(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_copy_with_a_length_holds_the_same_samples(tmp_path):
    from hafm_lightning.audio.lengths import copied_with_length

    path = flac_claiming(tmp_path / "a.flac", noise(2.0), 0)
    with copied_with_length(path) as copy:
        assert not has_no_length(copy)
        assert np.array_equal(read_audio(copy).samples, read_audio(path).samples)
    assert not copy.exists()


def test_written_files_state_their_length(tmp_path):
    write_audio(tmp_path / "a.flac", Audio(noise(0.5).T.copy(), RATE_HZ))
    assert not has_no_length(tmp_path / "a.flac")


def test_the_longest_name_is_read(tmp_path):
    path = tmp_path / ("n" * 251 + ".wav")
    soundfile.write(path, np.zeros(4410), 44100)
    assert read_audio(path).samples.shape == (1, 4410)


@pytest.mark.parametrize("kind", ["MP3", "WAV", "FLAC", "OGG", "AIFF"])
@pytest.mark.parametrize("fork", ["._song.{}", ".AppleDouble/song.{}"])
def test_a_resource_fork_beside_a_song_changes_nothing(tmp_path, kind, fork):
    """libsndfile takes an MP3 with a resource fork beside it for another format."""
    path = tmp_path / f"song.{kind.lower()}"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((22050, 2)), 44100, format=kind)
    alone, window = read_audio(path), read_audio(path, start_s=0.2, duration_s=0.1)
    beside = tmp_path / fork.format(kind.lower())
    beside.parent.mkdir(exist_ok=True)
    beside.write_bytes(b"\0\5\26\7" * 20)
    assert not has_no_length(path)
    np.testing.assert_array_equal(read_audio(path).samples, alone.samples)
    np.testing.assert_array_equal(read_audio(path, start_s=0.2, duration_s=0.1).samples, window.samples)
    assert probe_audio(path).frames == alone.samples.shape[1]
