"""Offline tokenizers: exact grids, the same bytes everywhere, and music that survives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tokenizers import chord_song, noise

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers import Tokenizers, load_tokenizer, load_tokenizers, save_tokenizers
from hafm_lightning.tokenizers.frontends import AcousticFrontEnd, AcousticSettings
from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer, OfflineSemanticTokenizer

SONGS = 16
HELD_OUT = 4


@pytest.fixture(scope="module")
def semantic() -> OfflineSemanticTokenizer:
    return OfflineSemanticTokenizer.train((chord_song(seed, 16000)[0] for seed in range(SONGS)), vocabulary=100)


@pytest.fixture(scope="module")
def acoustic() -> OfflineAcousticTokenizer:
    return OfflineAcousticTokenizer.train((chord_song(seed, 24000)[0] for seed in range(SONGS)), vocabulary=128)


def held_out(rate_hz: int) -> list[tuple[torch.Tensor, list[tuple[float, int]]]]:
    songs = [chord_song(1000 + seed, rate_hz) for seed in range(HELD_OUT)]
    return [(torch.from_numpy(samples), chords) for samples, chords in songs]


@pytest.mark.parametrize("frames", [1, 3, 500])
def test_semantic_grid(semantic: OfflineSemanticTokenizer, frames: int) -> None:
    ids = semantic.encode(noise(2, frames * 320))
    assert ids.shape == (2, 1, frames)
    assert ids.dtype == torch.int64


@pytest.mark.parametrize("frames", [1, 3, 750])
def test_acoustic_grid_there_and_back(acoustic: OfflineAcousticTokenizer, frames: int) -> None:
    codes = acoustic.encode(noise(1, frames * 320))
    assert codes.shape == (1, 8, frames)
    for count in (1, 4, 8):
        sound = acoustic.decode(codes[:, :count])
        assert sound.shape == (1, frames * 320)
        assert sound.dtype == torch.float32
        assert bool(torch.isfinite(sound).all())


def test_default_sizes_are_those_of_the_paper() -> None:
    clips = [noise(1, 10 * 24000, seed=seed)[0].numpy() for seed in range(2)]
    acoustic = OfflineAcousticTokenizer.train(clips, max_frames=1100)
    semantic = OfflineSemanticTokenizer.train([clip[: 16000 * 10] for clip in clips])
    assert (acoustic.identity.codebooks, acoustic.identity.vocabulary, acoustic.identity.rate_hz) == (8, 1024, 75)
    assert (semantic.identity.codebooks, semantic.identity.vocabulary, semantic.identity.rate_hz) == (1, 500, 50)
    assert acoustic.report["kmeans"][0]["points"] == 1100 + 22  # one in fifty of silence
    assert acoustic.report["frames_seen"] == 1500


def test_a_clip_does_not_depend_on_its_batch(
    semantic: OfflineSemanticTokenizer, acoustic: OfflineAcousticTokenizer
) -> None:
    audio = torch.stack([torch.from_numpy(chord_song(seed, 24000, 1.0)[0]) for seed in range(3)])
    for tokenizer in (semantic, acoustic):
        together = tokenizer.encode(audio)
        for row in range(3):
            assert torch.equal(together[row : row + 1], tokenizer.encode(audio[row : row + 1]))
    codes = acoustic.encode(audio)
    assert torch.equal(acoustic.decode(codes)[1:2], acoustic.decode(codes[1:2]))


def test_the_number_of_threads_does_not_show() -> None:
    songs = [chord_song(seed, 24000, 2.0)[0] for seed in range(4)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            acoustic = OfflineAcousticTokenizer.train(songs, vocabulary=64)
            semantic = OfflineSemanticTokenizer.train(songs, vocabulary=64)
            codes = acoustic.encode(torch.from_numpy(songs[0])[None])
            ids = semantic.encode(torch.from_numpy(songs[0])[None])
            sound = acoustic.decode(codes).numpy().tobytes()
            found.append((acoustic.identity.sha256, semantic.identity.sha256, codes.tolist(), ids.tolist(), sound))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_a_seed_decides_the_training() -> None:
    songs = [chord_song(seed, 16000, 2.0)[0] for seed in range(3)]
    digests = [
        OfflineSemanticTokenizer.train(songs, seed, vocabulary=32, max_frames=200).identity.sha256 for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_semantic_ids_are_the_nearest_centroids(semantic: OfflineSemanticTokenizer) -> None:
    audio = held_out(16000)[0][0]
    features = semantic.features(audio)
    assert features.shape == (250, semantic.centroids.shape[1])
    expected = torch.cdist(features, semantic.centroids.double()).argmin(dim=1)
    assert torch.equal(semantic.encode(audio[None])[0, 0], expected)


def test_acoustic_codes_are_a_greedy_residual_quantizer(acoustic: OfflineAcousticTokenizer) -> None:
    audio = held_out(24000)[0][0][:24000]
    codes = acoustic.encode(audio[None])[0]
    arrays = acoustic.arrays
    residual = (acoustic.log_mel(audio) - arrays["mean"].double()) @ arrays["basis"].double().T
    for level, ids in enumerate(codes):
        book = arrays["codebooks"][level].double()
        assert torch.equal(ids, torch.cdist(residual, book).argmin(dim=1))
        residual = residual - book[ids]


def test_every_codebook_brings_the_sound_nearer(acoustic: OfflineAcousticTokenizer) -> None:
    import librosa

    mel = librosa.filters.mel(sr=24000, n_fft=1024, n_mels=64)

    def log_mel(sound: np.ndarray) -> np.ndarray:
        return 20 * np.log10(mel @ np.abs(librosa.stft(sound.astype("f8"), n_fft=1024, hop_length=256)) + 1e-2)

    quantized, heard = {}, {}
    for count in (1, 4, 8):
        errors, distances = [], []
        for audio, _ in held_out(24000):
            codes = acoustic.encode(audio[None])[:, :count]
            errors.append(float((acoustic.decode_log_mel(codes[0]) - acoustic.log_mel(audio)).square().mean()))
            decoded = acoustic.decode(codes)[0].numpy()
            distances.append(float(np.sqrt(np.mean((log_mel(decoded) - log_mel(audio.numpy())) ** 2))))
        quantized[count], heard[count] = np.mean(errors), np.mean(distances)
    assert quantized[8] < 0.85 * quantized[4]
    assert quantized[4] < 0.7 * quantized[1]
    assert heard[8] < heard[4] < heard[1]
    assert heard[8] < 2.5  # dB


@pytest.mark.parametrize("codebooks", [4, 8])
def test_harmony_survives_the_way_there_and_back(acoustic: OfflineAcousticTokenizer, codebooks: int) -> None:
    import librosa

    major = np.zeros(12)
    major[[0, 4, 7]] = 1
    right, total = 0, 0
    for audio, chords in held_out(24000):
        decoded = acoustic.decode(acoustic.encode(audio[None])[:, :codebooks])[0].numpy()
        chroma = librosa.feature.chroma_stft(y=decoded, sr=24000, n_fft=8192, hop_length=240, tuning=0.0)
        for start_s, root in chords:
            mean = chroma[:, round(start_s * 100) + 10 : round(start_s * 100) + 45].mean(axis=1)
            right += int(np.argmax([np.roll(major, shift) @ mean for shift in range(12)])) == root
            total += 1
    assert right / total > 0.9


def test_rhythm_survives_the_way_there_and_back(acoustic: OfflineAcousticTokenizer) -> None:
    import librosa

    found = []
    for audio, chords in held_out(24000):
        decoded = acoustic.decode(acoustic.encode(audio[None])[:, :4])[0].numpy()
        onsets = librosa.onset.onset_detect(y=decoded, sr=24000, hop_length=256, units="time")
        found += [bool(np.min(np.abs(onsets - start_s)) < 0.05) for start_s, _ in chords[1:]]
    assert np.mean(found) > 0.9


def test_a_semantic_token_tells_the_chord(semantic: OfflineSemanticTokenizer) -> None:
    def tokens_and_roots(audio: torch.Tensor, chords: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
        roots = np.array([root for _, root in chords]).repeat(25)  # half-second chords at 50 Hz
        return semantic.encode(audio[None])[0, 0].numpy(), roots

    votes = np.zeros((100, 12))
    for seed in range(SONGS):
        samples, chords = chord_song(seed, 16000)
        tokens, roots = tokens_and_roots(torch.from_numpy(samples), chords)
        np.add.at(votes, (tokens, roots), 1)
    guesses, truths = [], []
    for audio, chords in held_out(16000):
        tokens, roots = tokens_and_roots(audio, chords)
        guesses.append(votes.argmax(axis=1)[tokens])
        truths.append(roots)
    assert np.mean(np.concatenate(guesses) == np.concatenate(truths)) > 0.8


def test_noise_far_below_the_music_hardly_moves_features(semantic: OfflineSemanticTokenizer) -> None:
    for audio, _ in held_out(16000)[:2]:
        clean = semantic.features(audio)
        noisy = semantic.features(audio + noise(1, len(audio), scale=1e-3)[0])
        assert float((clean - noisy).square().mean() / clean.square().mean()) < 0.02


def test_silence_stays_silent(acoustic: OfflineAcousticTokenizer, semantic: OfflineSemanticTokenizer) -> None:
    silence = acoustic.encode(torch.zeros(1, 24000))
    for count in (4, 8):  # no training song is ever silent
        assert float(acoustic.decode(silence[:, :count]).abs().max()) < 1e-3
    assert len(semantic.encode(torch.zeros(1, 16000)).unique()) == 1


def test_quantization_does_not_hiss_where_there_is_silence() -> None:
    front_end = AcousticFrontEnd(AcousticSettings())
    floor = AcousticSettings().mel_floor
    generator = torch.Generator().manual_seed(0)
    error = 0.028 * torch.randn(75, 192, generator=generator, dtype=torch.float64)  # what 8 codebooks leave there
    rectified = floor * (error.exp() - 1).clamp(min=0)
    assert front_end.magnitudes(math.log(floor) + error).mean() < 0.35 * rectified.mean()
    quiet = torch.full((75, 192), math.log(2 * floor), dtype=torch.float64)  # a band at the floor itself is music
    assert front_end.magnitudes(quiet).mean() == pytest.approx(floor, rel=0.01)


def test_saved_and_loaded(
    semantic: OfflineSemanticTokenizer, acoustic: OfflineAcousticTokenizer, tmp_path: Path
) -> None:
    save_tokenizers(semantic, acoustic, tmp_path / "tokenizers")
    loaded = load_tokenizers(tmp_path / "tokenizers")
    assert loaded.identities() == Tokenizers(semantic, acoustic).identities()
    assert isinstance(load_tokenizer(tmp_path / "tokenizers" / "semantic"), OfflineSemanticTokenizer)
    assert isinstance(load_tokenizer(tmp_path / "tokenizers" / "acoustic"), OfflineAcousticTokenizer)
    audio = held_out(24000)[0][0][None, :24000]
    assert torch.equal(loaded.semantic.encode(audio), semantic.encode(audio))
    codes = acoustic.encode(audio)
    assert torch.equal(loaded.acoustic.encode(audio), codes)
    assert torch.equal(loaded.acoustic.decode(codes), acoustic.decode(codes))
    assert torch.equal(loaded.semantic.centroids, semantic.centroids)


def test_settings_are_part_of_the_identity(acoustic: OfflineAcousticTokenizer, tmp_path: Path) -> None:
    settings = AcousticSettings(mel_floor=2e-3)
    changed = OfflineAcousticTokenizer(acoustic.arrays, settings, {})
    assert changed.identity.sha256 != acoustic.identity.sha256
    changed.save(tmp_path)
    assert OfflineAcousticTokenizer.load(tmp_path).identity == changed.identity


def test_changed_arrays_or_settings_are_refused(semantic: OfflineSemanticTokenizer, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    semantic.save(tmp_path / "t")
    description = tmp_path / "t" / "tokenizer.json"
    original = description.read_text()
    description.write_text(original.replace('"chroma_weight": 2.0', '"chroma_weight": 2.5'))
    with pytest.raises(RequestError, match="changed or damaged"):
        OfflineSemanticTokenizer.load(tmp_path / "t")
    values = json.loads(original)
    values["identity"]["settings"]["front_end"] = 99
    description.write_text(json.dumps(values))
    with pytest.raises(RequestError, match="made by front end 99"):
        OfflineSemanticTokenizer.load(tmp_path / "t")
    description.write_text(original)
    arrays = {**semantic.arrays, "offset": semantic.arrays["offset"] + 1e-3}
    save_file(arrays, tmp_path / "t" / "arrays.safetensors")
    with pytest.raises(RequestError, match="changed or damaged"):
        OfflineSemanticTokenizer.load(tmp_path / "t")
    with pytest.raises(RequestError, match="'offline-semantic', expected 'offline-acoustic'"):
        OfflineAcousticTokenizer.load(tmp_path / "t")


def test_bad_training_audio_is_refused() -> None:
    good = chord_song(0, 16000, 2.0)[0]
    bad = good.copy()
    bad[100] = np.nan
    for kind in (OfflineSemanticTokenizer, OfflineAcousticTokenizer):
        with pytest.raises(RequestError, match="no clips"):
            kind.train([])
        with pytest.raises(RequestError, match="no clips"):
            kind.train([good[:100]])
        with pytest.raises(RequestError, match="only 100 frames"):
            kind.train([good])
        with pytest.raises(RequestError, match="NaN"):
            kind.train([good, bad], vocabulary=10)
        with pytest.raises(ValueError, match="mono"):
            kind.train([np.stack((good, good))], vocabulary=10)


def test_bad_audio_and_codes_are_refused(
    semantic: OfflineSemanticTokenizer, acoustic: OfflineAcousticTokenizer
) -> None:
    for tokenizer in (semantic, acoustic):
        with pytest.raises(ValueError, match="multiple of 320"):
            tokenizer.encode(torch.zeros(1, 321))
        with pytest.raises(ValueError, match=r"float audio \[B, L\]"):
            tokenizer.encode(torch.zeros(1, 320, dtype=torch.int16))
        with pytest.raises(RequestError, match="NaN or infinite"):
            tokenizer.encode(torch.full((1, 320), float("inf")))
    with pytest.raises(ValueError, match="int64 codes"):
        acoustic.decode(torch.zeros(1, 9, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="outside 0"):
        acoustic.decode(torch.full((1, 8, 5), 128))
