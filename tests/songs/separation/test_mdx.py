"""MDX-Net: a network whose answer is known, so that the stems are known to the sample."""

import json

import numpy as np
import pytest
from tiny_separation import (
    DIM_F,
    DIM_T,
    HOP,
    N_FFT,
    RATE,
    SPLIT_BIN,
    known_mixture,
    low_pass_model,
    mask_model,
    si_sdr_db,
)

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.songs import stems as stems_module
from hafm_lightning.songs.separation import MdxParameters, SeparationSettings, load_separator
from hafm_lightning.songs.song import Song
from hafm_lightning.songs.stems import read_blocks

pytest.importorskip("onnx")


pytest.importorskip("onnxruntime")


def reference_stem(mixture, keep_below):
    """The masked STFT of the whole signal at once, by scipy: an independent computation."""
    from scipy.signal import ShortTimeFFT
    from scipy.signal.windows import hann

    transform = ShortTimeFFT(hann(N_FFT, sym=False), HOP, fs=1.0, fft_mode="onesided")
    stems = []
    for channel in mixture:
        spectrum = transform.stft(channel.astype(np.float64))
        spectrum[keep_below:] = 0
        stems.append(transform.istft(spectrum, k1=len(channel)))
    return np.stack(stems)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("length", [300, 4000, 4096, 30_011])
def test_stems_equal_the_known_mask_to_the_sample(tmp_path, overlap, length):
    separator = load_separator(SeparationSettings(str(low_pass_model(tmp_path)), overlap=overlap, batch_size=3))
    mixture = np.random.default_rng(length).normal(0, 0.1, (2, length)).astype(np.float32)
    stems = separator.separate(mixture)
    np.testing.assert_allclose(stems.vocals, reference_stem(mixture, SPLIT_BIN), atol=2e-6)
    np.testing.assert_allclose(stems.vocals + stems.instrumental, mixture, atol=1e-6)


def test_a_model_of_instrumentals_and_its_compensation(tmp_path):
    path = low_pass_model(tmp_path, target="instrumental", compensation=1.25)
    mixture = np.random.default_rng(0).normal(0, 0.1, (2, 9000)).astype(np.float32)
    stems = load_separator(SeparationSettings(str(path), device="cpu")).separate(mixture)
    np.testing.assert_allclose(stems.instrumental, 1.25 * reference_stem(mixture, SPLIT_BIN), atol=3e-6)
    np.testing.assert_allclose(stems.vocals, mixture - stems.instrumental, atol=1e-6)


def test_a_stretch_gives_what_the_whole_song_gives(tmp_path):
    separator = load_separator(SeparationSettings(str(low_pass_model(tmp_path))))
    mixture = np.random.default_rng(1).normal(0, 0.1, (2, 60_000)).astype(np.float32)
    whole = separator.separate(mixture)
    begin, end, margin = 17_003, 44_444, HOP * (DIM_T - 1)
    part = separator.separate(mixture[:, begin:end], first=begin)
    np.testing.assert_array_equal(part.vocals[:, margin:-margin], whole.vocals[:, begin + margin : end - margin])


def test_known_stems_are_found_again_si_sdr(tmp_path, capsys):
    separator = load_separator(SeparationSettings(str(low_pass_model(tmp_path))))
    vocals, instrumental = known_mixture(2.0)
    stems = separator.separate(vocals + instrumental)
    scores = si_sdr_db(stems.vocals, vocals), si_sdr_db(stems.instrumental, instrumental)
    unseparated = si_sdr_db(vocals + instrumental, vocals)
    assert min(scores) > 30 > unseparated + 20


def test_songs_are_separated_in_blocks_without_seams(tmp_path, monkeypatch):
    """Twenty seconds in blocks of 7 s, from a 48 kHz mono file: the blocks join to what one piece gives."""
    low, high = known_mixture(20.0)
    from hafm_lightning.audio import resample

    mono = resample((low + high).mean(axis=0), RATE, 48_000)
    write_audio(tmp_path / "song.wav", Audio(mono[None], 48_000), subtype="FLOAT")
    separator = load_separator(SeparationSettings(str(low_pass_model(tmp_path))))
    song = Song("song", "train", mixture=str(tmp_path / "song.wav"))
    whole = next(iter(read_blocks(song, separator)))
    monkeypatch.setattr(stems_module, "BLOCK_S", 7.0)
    blocks = list(read_blocks(song, separator))
    assert [round(block.start / RATE) for block in blocks] == [0, 7, 14]
    joined = np.concatenate([block.vocal for block in blocks], axis=1)
    assert joined.shape == whole.vocal.shape == (2, 20 * RATE)
    np.testing.assert_allclose(joined, whole.vocal, atol=2e-5)
    expected = low.mean(axis=0)
    assert si_sdr_db(joined[0, RATE:-RATE], expected[RATE:-RATE]) > 30


def test_models_with_a_fixed_batch_run(tmp_path):
    path = mask_model(tmp_path / "fixed.onnx", np.ones(DIM_F), batch=2)
    separator = load_separator(
        SeparationSettings(str(path), parameters=MdxParameters(n_fft=N_FFT, hop=HOP, compensation=1.0, target="vocals"))
    )
    mixture = np.random.default_rng(0).normal(0, 0.1, (2, 20_000)).astype(np.float32)
    np.testing.assert_allclose(separator.separate(mixture).vocals, reference_stem(mixture, DIM_F), atol=2e-6)


def test_the_json_that_circulates_with_the_models_is_understood(tmp_path):
    path = mask_model(tmp_path / "Kim.onnx", np.ones(256), dim_t=32)
    (tmp_path / "Kim.json").write_text(
        json.dumps(
            {
                "compensate": 1.035,
                "mdx_dim_f_set": 256,
                "mdx_dim_t_set": 5,
                "mdx_n_fft_scale_set": 3072,
                "primary_stem": "Vocals",
            }
        )
    )
    shape = load_separator(SeparationSettings(str(path))).shape
    assert (shape.n_fft, shape.hop, shape.dim_f, shape.dim_t) == (3072, 1024, 256, 32)
    assert (shape.compensation, shape.target) == (1.035, "vocals")


def test_a_gpu_that_is_not_there_is_said(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU")
    with pytest.raises(RequestError, match="no CUDA provider"):
        load_separator(SeparationSettings(str(low_pass_model(tmp_path)), device="cuda"))
