"""Clips: their positions in a song, their waveforms at every rate, and the noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_corpora import stem_song, vocal_and_band, windows_of

from hafm_lightning.audio import resample
from hafm_lightning.songs.clips import ClipSettings, clip_sound, clip_starts, with_noise


@pytest.mark.parametrize(
    ("seconds", "hop_s", "expected"),
    [
        (9.999, 10, []),
        (10, 10, [0]),
        (20, 10, [0, 10]),
        (20, 5, [0, 5, 10]),
        (21.9, 10, [0, 10]),  # 1.9 s left: too little for a tail
        (22.5, 10, [0, 10, 12.48]),  # the tail ends where the song ends, on the grid of 0.04 s
        (29.976, 10, [0, 10, 19.96]),
        (300 / 44100, 10, []),
    ],
)
def test_clips_start_every_hop_and_a_tail_ends_with_the_song(seconds, hop_s, expected):
    assert clip_starts(seconds, ClipSettings(hop_s=hop_s)) == pytest.approx(expected)


@given(st.floats(0.01, 500), st.integers(1, 400), st.integers(1, 300))
@settings(deadline=None)
def test_clips_lie_inside_the_song_on_the_grid(seconds, hop, length):
    clips = ClipSettings(duration_s=length / 25, hop_s=hop / 25, tail_s=0.04)
    starts = clip_starts(seconds, clips)
    assert starts == sorted(set(starts))
    for start in starts:
        assert start * 25 == pytest.approx(round(start * 25))
        assert 0 <= start <= seconds - clips.duration_s + 1e-6
    if seconds >= clips.duration_s:
        assert seconds - (starts[-1] + clips.duration_s) < 0.0801  # nothing but a sliver is lost


@pytest.mark.parametrize("values", [{"duration_s": 0.03}, {"hop_s": 0}, {"hop_s": -1.0}, {"tail_s": 0}])
def test_lengths_off_the_grid_are_refused(values):
    with pytest.raises(ValueError, match="must be"):
        ClipSettings(**values)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 44_056, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_rate_and_channel_count_gives_exact_lengths(tmp_path, rate_hz, channels):
    song = stem_song(tmp_path / "song", seconds=2.5, rate_hz=rate_hz, channels=channels)
    duration_s, windows = windows_of(song, duration_s=1.0, hop_s=0.72, tail_s=0.2)
    assert duration_s == pytest.approx(2.5, abs=1e-4)
    starts = []
    for window in windows:
        sound = clip_sound(window, 16_000, 24_000, vocal_acoustic=True)
        assert sound.vocal.shape == sound.instrumental.shape == (16_000,)
        assert sound.instrumental_acoustic.shape == sound.vocal_acoustic.shape == (24_000,)
        assert sound.vocal.dtype == np.float32
        starts.append(window.start_s)
    assert starts == pytest.approx([0.0, 0.72, 1.44])


def test_a_clip_is_the_stretch_of_the_song_at_its_start(tmp_path):
    song = stem_song(tmp_path / "song", seconds=3.0, rate_hz=44_100, channels=1, subtype="FLOAT")
    vocal, band = vocal_and_band(3.0, 0, 44_100)
    _, windows = windows_of(song, duration_s=1.0, hop_s=1.0)
    whole = resample(vocal, 44_100, 16_000), resample(band, 44_100, 24_000)
    for number, window in enumerate(windows):
        sound = clip_sound(window, 16_000, 24_000, vocal_acoustic=False)
        np.testing.assert_allclose(sound.vocal, whole[0][number * 16_000 : (number + 1) * 16_000], atol=2e-4)
        expected = whole[1][number * 24_000 : (number + 1) * 24_000]
        np.testing.assert_allclose(sound.instrumental_acoustic, expected, atol=2e-4)


def test_noise_has_its_strength_and_depends_on_seed_and_clip_alone():
    silence = np.zeros(160_000, np.float32)
    noise = with_noise(silence, "song@0.00", 0.01, seed=0)
    assert noise.std() == pytest.approx(0.01, rel=0.02)
    assert abs(noise.mean()) < 1e-4
    np.testing.assert_array_equal(noise, with_noise(silence, "song@0.00", 0.01, seed=0))
    for other in (with_noise(silence, "song@10.00", 0.01, seed=0), with_noise(silence, "song@0.00", 0.01, seed=1)):
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.02
    np.testing.assert_array_equal(with_noise(silence, "song@0.00", 0.0, seed=0), silence)
