"""Clips: where they lie, what the tokenizers hear of them, and which are dropped."""

import math
from dataclasses import replace

import numpy as np
import pyloudnorm
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_corpora import vocal_and_band, write_stems

from hafm_lightning.audio import resample
from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.quality.filters import (
    RULES,
    FilterSettings,
    Measurements,
    broken_rules,
    correlation,
    loudness_and_range,
    measure,
)
from hafm_lightning.preparation.shard_work import SoundSettings, song_windows
from hafm_lightning.songs import stems as stems_module
from hafm_lightning.songs.clips import MARGIN_S, ClipSettings, clip_sound, clip_starts, with_noise
from hafm_lightning.songs.separation import SeparationSettings
from hafm_lightning.songs.song import Song
from hafm_lightning.songs.stems import Window, cut_windows, probe_song, read_blocks, read_window, to_stereo


def stem_song(folder, **settings) -> Song:
    write_stems(folder, **settings)
    suffix = settings.get("suffix", ".wav")
    return Song(
        folder.name,
        "train",
        vocals=str(folder / f"vocals{suffix}"),
        accompaniment=(str(folder / f"accompaniment{suffix}"),),
    )


def sound_settings(**clips) -> SoundSettings:
    return SoundSettings(ClipSettings(**clips), FilterSettings(), SeparationSettings(), 0.01, 0)


# Where clips lie


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
def test_clips_lie_inside_the_song_on_the_grid(seconds, hop, length):
    settings = ClipSettings(duration_s=length / 25, hop_s=hop / 25, tail_s=0.04)
    starts = clip_starts(seconds, settings)
    assert starts == sorted(set(starts))
    for start in starts:
        assert start * 25 == pytest.approx(round(start * 25))
        assert 0 <= start <= seconds - settings.duration_s + 1e-6
    if seconds >= settings.duration_s:
        assert seconds - (starts[-1] + settings.duration_s) < 0.0801  # nothing but a sliver is lost


@pytest.mark.parametrize("values", [{"duration_s": 0.03}, {"hop_s": 0}, {"hop_s": -1.0}, {"tail_s": 0}])
def test_lengths_off_the_grid_are_refused(values):
    with pytest.raises(ValueError, match="must be"):
        ClipSettings(**values)


# What is read


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 44_056, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_rate_and_channel_count_gives_exact_lengths(tmp_path, rate_hz, channels):
    song = stem_song(tmp_path / "song", seconds=2.5, rate_hz=rate_hz, channels=channels)
    duration_s, windows = song_windows(song, sound_settings(duration_s=1.0, hop_s=0.72, tail_s=0.2))
    assert duration_s == pytest.approx(2.5, abs=1e-4)
    starts = []
    for window in windows:
        sound = clip_sound(window, 16_000, 24_000, vocal_acoustic=True)
        assert sound.vocal.shape == sound.instrumental.shape == (16_000,)
        assert sound.instrumental_acoustic.shape == sound.vocal_acoustic.shape == (24_000,)
        assert sound.vocal.dtype == np.float32
        starts.append(window.start_s)
    assert starts == pytest.approx([0.0, 0.72, 1.44])


def test_a_clip_hears_what_lies_there_in_the_song(tmp_path):
    song = stem_song(tmp_path / "song", seconds=3.0, rate_hz=44_100, channels=1, subtype="FLOAT")
    vocal, band = vocal_and_band(3.0, 0, 44_100)
    _, windows = song_windows(song, sound_settings(duration_s=1.0, hop_s=1.0))
    whole = resample(vocal, 44_100, 16_000), resample(band, 44_100, 24_000)
    for number, window in enumerate(windows):
        sound = clip_sound(window, 16_000, 24_000, vocal_acoustic=False)
        np.testing.assert_allclose(sound.vocal, whole[0][number * 16_000 : (number + 1) * 16_000], atol=2e-4)
        expected = whole[1][number * 24_000 : (number + 1) * 24_000]
        np.testing.assert_allclose(sound.instrumental_acoustic, expected, atol=2e-4)


def test_blocks_do_not_change_a_sample(tmp_path, monkeypatch):
    song = stem_song(tmp_path / "song", seconds=6.0, rate_hz=22_050)
    settings = sound_settings(duration_s=1.0, hop_s=0.52)
    _, windows = song_windows(song, settings)
    whole = [(w.start_s, w.before, w.vocal, w.instrumental) for w in windows]
    monkeypatch.setattr(stems_module, "BLOCK_S", 0.6)
    monkeypatch.setattr(stems_module, "_SHORTEST_LAST_BLOCK_S", 0.3)
    _, windows = song_windows(song, settings)
    parts = [(w.start_s, w.before, w.vocal, w.instrumental) for w in windows]
    assert len(parts) == len(whole) > 9
    for one, other in zip(whole, parts, strict=True):
        assert one[:2] == other[:2]
        np.testing.assert_array_equal(one[2], other[2])
        np.testing.assert_array_equal(one[3], other[3])


def test_a_single_window_is_the_one_that_the_song_gives(tmp_path):
    song = stem_song(tmp_path / "song", seconds=4.0, rate_hz=48_000, channels=2)
    _, windows = song_windows(song, sound_settings(duration_s=1.0, hop_s=1.52))
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


# Noise


def test_noise_has_its_strength_and_depends_on_seed_and_clip_alone():
    silence = np.zeros(160_000, np.float32)
    noise = with_noise(silence, "song@0.00", 0.01, seed=0)
    assert noise.std() == pytest.approx(0.01, rel=0.02)
    assert abs(noise.mean()) < 1e-4
    np.testing.assert_array_equal(noise, with_noise(silence, "song@0.00", 0.01, seed=0))
    for other in (with_noise(silence, "song@10.00", 0.01, seed=0), with_noise(silence, "song@0.00", 0.01, seed=1)):
        assert abs(correlation(noise, other)) < 0.02
    np.testing.assert_array_equal(with_noise(silence, "song@0.00", 0.0, seed=0), silence)


# Loudness


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000, 96_000])
def test_loudness_equals_an_independent_meter(rate_hz):
    generator = np.random.default_rng(rate_hz)
    samples = generator.normal(0, 0.1, (2, rate_hz * 6)).astype(np.float32)
    samples[:, rate_hz * 3 :] *= 0.01  # a quiet half, which gating removes
    measured, _ = loudness_and_range(samples, rate_hz)
    expected = pyloudnorm.Meter(rate_hz, filter_class="DeMan").integrated_loudness(samples.T.astype(np.float64))
    assert measured == pytest.approx(expected, abs=0.1)


def test_a_1_khz_sine_reads_as_the_standard_says():
    time = np.arange(48_000 * 5) / 48_000
    sine = np.stack([np.sin(2 * np.pi * 997 * time)] * 2).astype(np.float32) * 10 ** (-23 / 20)
    measured, spread = loudness_and_range(sine, 48_000)
    assert measured == pytest.approx(-23.0, abs=0.1)
    assert spread == pytest.approx(0.0, abs=0.1)


def test_loudness_range_of_two_levels_is_their_difference():
    time = np.arange(48_000 * 40) / 48_000
    sine = np.stack([np.sin(2 * np.pi * 997 * time)] * 2) * 10 ** (-20 / 20)
    sine[:, 48_000 * 20 :] *= 10 ** (-10 / 20)  # EBU Tech 3342, test case 1: -20 then -30 dBFS gives 10 LU
    assert loudness_and_range(sine.astype(np.float32), 48_000)[1] == pytest.approx(10.0, abs=1.0)
    assert loudness_and_range(np.zeros((2, 48_000), np.float32), 48_000) == (-math.inf, 0.0)
    assert loudness_and_range(np.zeros((2, 5), np.float32), 48_000) == (-math.inf, 0.0)


# The filter


def window_of(vocal, band, rate_hz=16_000):
    stereo = [np.stack([part, part]).astype(np.float32) for part in (vocal, band)]
    return Window(0.0, 0, len(vocal), rate_hz, *stereo)


def measured(vocal, band):
    window = window_of(vocal, band)
    return measure(window, clip_sound(window, 16_000, 24_000, False), FilterSettings())


def test_music_passes_and_each_fault_breaks_its_rule():
    vocal, band = vocal_and_band(10.0, seed=3)
    settings = FilterSettings()
    good = measured(vocal, band)
    assert broken_rules(good, settings) == []
    silence = np.zeros_like(vocal)
    pulse = np.where(np.arange(len(vocal)) < 8000, 1.0, 0.0)
    faults = {
        "vocal_activity": (silence, band),
        "instrumental_activity": (vocal, silence),
        "clipping": (np.clip(vocal * 40, -1, 1), band),
        "silence": (vocal * pulse, band * pulse),
        "dc_offset": (vocal, band + 0.3),
        "leakage": (vocal, band + 0.8 * vocal),
        "loudness": (vocal * 0.003, band * 0.003),
        "loudness_range": (vocal * np.linspace(0, 1, len(vocal)) ** 5, band * np.linspace(0, 1, len(vocal)) ** 5),
    }
    assert set(faults) == set(RULES)
    for rule, (bad_vocal, bad_band) in faults.items():
        strict = replace(settings, loudness_range_max_lu=12.0)
        assert rule in broken_rules(measured(bad_vocal, bad_band), strict), rule
    assert broken_rules(good, replace(settings, loudness_range_max_lu=12.0)) == []


def test_a_constant_is_not_singing():
    _, band = vocal_and_band(2.0, seed=3)
    assert measured(np.full(len(band), 0.04, np.float32), band).vocal_activity == 0


def test_null_switches_every_rule_off():
    off = FilterSettings(
        **{
            name: None
            for name in FilterSettings.__dataclass_fields__
            if name.endswith(("_min", "_max", "_lufs", "_lu"))
        }
    )
    worst = Measurements(0.0, 0.0, 1.0, 1.0, 1.0, 1.0, -200.0, 99.0)
    assert broken_rules(worst, off) == []
    assert set(broken_rules(worst, FilterSettings())) == set(RULES)


def test_measurements_are_what_they_say():
    half = np.zeros(32_000, np.float32)
    half[:16_000] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    result = measured(half, np.full_like(half, 0.1))
    assert result.vocal_activity == pytest.approx(0.5)
    assert result.dc_offset == pytest.approx(0.1)
    assert result.silence == pytest.approx(0.5)
    loud = np.zeros(32_000, np.float32)
    loud[:320] = 1.0
    assert measured(loud, half * 0).clipping == pytest.approx(0.01)


def test_correlation_equals_numpy(tmp_path):
    generator = np.random.default_rng(0)
    a, b = generator.normal(0, 1, (2, 5000)).astype(np.float32)
    assert correlation(a, b + 0.5 * a) == pytest.approx(abs(np.corrcoef(a, b + 0.5 * a)[0, 1]), abs=1e-6)
    assert correlation(a, np.ones_like(a)) == 0.0


def test_windows_past_the_song_are_a_programming_error():
    blocks = iter([stems_module.Block(0, np.zeros((1, 100), np.float32), np.zeros((1, 100), np.float32))])
    with pytest.raises(ValueError, match="outside the buffered sound"):
        list(cut_windows(blocks, 10, iter([5.0]), 10.0, 0.0))


def test_noise_reaches_huberts_input(tmp_path):
    """The waveform that enters HuBERT's first convolution is vocal + noise of sigma 0.01, and the band has none."""
    from tiny_tokenizers import save_hubert

    from hafm_lightning.preparation.shard_work import ShardWork
    from hafm_lightning.tokenizers import Tokenizers
    from hafm_lightning.tokenizers.hubert import HubertFeatures, HubertTokenizer

    save_hubert(tmp_path / "hubert", do_normalize=False)
    features = HubertFeatures.from_pretrained(tmp_path / "hubert", layer=2)
    tokenizer = HubertTokenizer(features, torch.randn(500, 16))
    heard = []
    features.model.feature_extractor.register_forward_pre_hook(lambda module, args: heard.append(args[0].clone()))

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
    noise = heard[0][0, padding:-padding].numpy() - vocal
    assert noise.std() == pytest.approx(0.01, rel=0.03)
    np.testing.assert_allclose(noise, with_noise(np.zeros_like(vocal), "song@0.00", 0.01, 0), atol=1e-6)
    np.testing.assert_allclose(heard[1][0, padding:-padding].numpy(), band, atol=1e-6)
