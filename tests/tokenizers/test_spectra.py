"""Framing, filters and Griffin-Lim against librosa, scipy and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_tokenizers import chord_song, noise

from hafm_lightning.tokenizers import spectra


def test_a_clip_has_one_frame_a_hop_each_centred_on_its_hop() -> None:
    for frames in (1, 2, 9):
        assert spectra.frame(torch.zeros(frames * 320), 1600, 320).shape == (frames, 1600)
    audio = torch.zeros(10 * 320)
    audio[4 * 320 + 160] = 1.0  # the middle of frame 4
    magnitude = spectra.magnitudes(audio, 1600, 320).sum(dim=1)
    assert int(magnitude.argmax()) == 4
    torch.testing.assert_close(magnitude[3], magnitude[5], rtol=1e-2, atol=0)


def test_magnitudes_are_those_of_numpy_and_a_full_scale_sine_is_one() -> None:
    audio = noise(1, 3200)[0]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1600) / 1600)
    middle = 5 * 320 + 160
    piece = audio.double().numpy()[middle - 800 : middle + 800] * window
    expected = np.abs(np.fft.rfft(piece)) * 2 / window.sum()
    np.testing.assert_allclose(spectra.magnitudes(audio, 1600, 320)[5].numpy(), expected, atol=1e-12)
    sine = torch.sin(2 * torch.pi * 1500 * torch.arange(3200, dtype=torch.float64) / 24000)  # the middle of a bin
    assert float(spectra.magnitudes(sine, 1600, 320)[5].max()) == pytest.approx(1.0, abs=1e-6)


def test_mel_filters_are_librosas() -> None:
    import librosa

    ours = spectra.mel_filters(24000, 2048, 40, 100.0, 11000.0)
    theirs = librosa.filters.mel(sr=24000, n_fft=2048, n_mels=40, fmin=100.0, fmax=11000.0, htk=True, norm=None)
    theirs = theirs / theirs.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)


def test_no_mel_filter_is_empty_however_narrow() -> None:
    filters = spectra.mel_filters(24000, 1600, 192, 30.0, 12000.0)
    assert bool((filters >= 0).all())
    torch.testing.assert_close(filters.sum(dim=1), torch.ones(192, dtype=torch.float64))


@pytest.mark.parametrize("midi", [45, 57, 60, 69, 83])
def test_a_tone_is_heard_in_its_pitch_class(midi: int) -> None:
    frequency = 440 * 2 ** ((midi - 69) / 12)
    tone = torch.sin(2 * torch.pi * frequency * torch.arange(16000, dtype=torch.float64) / 16000)
    chroma = spectra.magnitudes(tone, 4096, 320).square() @ spectra.chroma_filters(16000, 4096, 80.0, 2000.0).T
    assert int(chroma[25].argmax()) == midi % 12


def test_chroma_is_deaf_beyond_its_range() -> None:
    filters = spectra.chroma_filters(16000, 4096, 80.0, 2000.0)
    bins_hz = np.fft.rfftfreq(4096, 1 / 16000)
    assert not filters[:, bins_hz < 80].any()
    assert not filters[:, bins_hz > 2000].any()
    inside = filters[:, (bins_hz >= 80) & (bins_hz <= 2000)].sum(dim=0)
    torch.testing.assert_close(inside, torch.ones_like(inside))  # a bin is shared between two neighbours


def test_cosine_transform_is_scipys() -> None:
    from scipy.fft import dct

    frames = torch.randn(5, 48, dtype=torch.float64)
    expected = dct(frames.numpy(), type=2, norm="ortho", axis=1)[:, :13]
    np.testing.assert_allclose((frames @ spectra.cosine_transform(48, 13).T).numpy(), expected, atol=1e-12)


def test_overlap_add_lays_frames_where_they_came_from() -> None:
    audio = noise(1, 20 * 320)[0]
    total = spectra.overlap_add(spectra.frame(audio, 1600, 320).contiguous(), 320)
    covered = spectra.overlap_add(spectra.frame(torch.ones(20 * 320), 1600, 320).contiguous(), 320)
    torch.testing.assert_close(total, audio * covered)
    assert float(covered[1000]) == 5.0


def test_griffin_lim_comes_nearer_with_every_iteration() -> None:
    audio = torch.from_numpy(chord_song(0, 24000, 2.0)[0])
    target = spectra.magnitudes(audio, 1600, 320)

    def distance(iterations: int) -> float:
        sound = spectra.griffin_lim(target, 320, iterations, seed=0)
        assert sound.shape == audio.shape
        return float((spectra.magnitudes(sound, 1600, 320) - target).norm() / target.norm())

    few, more, many = distance(1), distance(8), distance(32)
    assert few > more > many
    assert many < 0.1


def test_griffin_lim_is_a_function_of_its_seed() -> None:
    target = spectra.magnitudes(noise(1, 3200)[0], 1600, 320)
    first = spectra.griffin_lim(target, 320, 4, seed=0)
    assert torch.equal(first, spectra.griffin_lim(target, 320, 4, seed=0))
    assert not torch.equal(first, spectra.griffin_lim(target, 320, 4, seed=1))


def test_one_thread_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with spectra.one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError), spectra.one_thread():
            torch.zeros(2) @ torch.zeros(3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
