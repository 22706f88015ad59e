"""Separation: a network whose answer is known, so that the stems are known to the sample."""

import json

import numpy as np
import pytest
from tiny_separation import DIM_F, HOP, N_FFT, RATE, SPLIT_BIN, low_pass_model, mask_model

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of
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


def si_sdr_db(estimate, target):
    scale = (estimate * target).sum() / (target**2).sum()
    error = estimate - scale * target
    return 10 * np.log10(((scale * target) ** 2).sum() / (error**2).sum())


def known_mixture(seconds, seed=0):
    """Low tones (the vocals of :func:`low_pass_model`) and high tones, with different left and right."""
    time = np.arange(round(seconds * RATE)) / RATE
    generator = np.random.default_rng(seed)
    bin_hz = RATE / N_FFT

    def tones(low_bin, high_bin):
        rows = []
        for _ in range(2):
            hz, phase = generator.uniform(low_bin * bin_hz, high_bin * bin_hz, 5), generator.uniform(0, 6.28, 5)
            rows.append(np.sin(2 * np.pi * hz[:, None] * time + phase[:, None]).sum(axis=0) * 0.05)
        return np.stack(rows).astype(np.float32)

    return tones(5, SPLIT_BIN - 8), tones(SPLIT_BIN + 8, DIM_F - 10)


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
    begin, end, margin = 17_003, 44_444, separator.shape.chunk
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
    separator = load_separator(SeparationSettings(str(path), parameters=MdxParameters(n_fft=N_FFT, hop=HOP)))
    mixture = np.random.default_rng(0).normal(0, 0.1, (2, 20_000)).astype(np.float32)
    np.testing.assert_allclose(separator.separate(mixture).vocals, reference_stem(mixture, DIM_F), atol=2e-6)


def test_the_weights_are_recorded_and_checked(tmp_path):
    path = low_pass_model(tmp_path)
    separator = load_separator(SeparationSettings(str(path)))
    assert separator.identity["sha256"] == sha256_of(path)
    assert separator.identity["n_fft"] == N_FFT
    with pytest.raises(RequestError, match="sha256"):
        load_separator(SeparationSettings(str(path), sha256="0" * 64))


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


def damaged(folder):
    (folder / "bad.onnx").write_bytes(b"not a model")
    return SeparationSettings(str(folder / "bad.onnx"))


def no_shape(folder):
    return SeparationSettings(str(mask_model(folder / "lonely.onnx", np.ones(DIM_F))))


def contradiction(folder):
    return SeparationSettings(str(low_pass_model(folder)), parameters=MdxParameters(dim_t=77))


def pickle_file(folder):
    (folder / "model.th").write_bytes(b"pickle")
    return SeparationSettings(str(folder / "model.th"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: SeparationSettings(str(folder / "none.onnx")), "does not exist"),
        (damaged, "not a usable ONNX model"),
        (no_shape, "n_fft of the model unknown"),
        (contradiction, "dim_t is 33, the settings say 77"),
        (pickle_file, "neither .onnx"),
    ],
)
def test_models_that_cannot_run_are_refused_by_name(tmp_path, make, message):
    with pytest.raises(RequestError, match=message):
        load_separator(make(tmp_path))


def test_a_gpu_that_is_not_there_is_said(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU")
    with pytest.raises(RequestError, match="no CUDA provider"):
        load_separator(SeparationSettings(str(low_pass_model(tmp_path)), device="cuda"))


def tiny_htdemucs(folder, sources=("drums", "vocals")):
    """A real HTDemucs of toy width with random weights, as demucs-infer reads it."""
    import torch
    from demucs_infer.htdemucs import HTDemucs
    from safetensors.torch import save_file

    torch.manual_seed(0)
    settings = {"channels": 8, "t_layers": 1, "t_heads": 2, "segment": 2, "t_hidden_scale": 1.0, "bottom_channels": 16}
    model = HTDemucs(list(sources), **settings)
    metadata = {
        "klass": "demucs.htdemucs.HTDemucs",
        "args": json.dumps([list(sources)]),
        "kwargs": json.dumps(settings),
    }
    path = folder / "htdemucs.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path, metadata)
    return path, model.eval()


def test_htdemucs_stands_behind_the_same_protocol(tmp_path):
    pytest.importorskip("demucs_infer")
    import torch
    from demucs_infer.apply import apply_model

    path, model = tiny_htdemucs(tmp_path)
    separator = load_separator(SeparationSettings(str(path), device="cpu"))
    assert (separator.rate_hz, separator.identity["kind"]) == (44_100, "htdemucs")
    mixture = np.random.default_rng(0).normal(0, 0.1, (2, 3 * 44_100)).astype(np.float32)
    stems = separator.separate(mixture)
    sound = torch.from_numpy(mixture)
    centre, spread = sound.mean(), sound.mean(0).std() + 1e-8
    with torch.inference_mode():
        expected = apply_model(model, ((sound - centre) / spread)[None], shifts=0, overlap=0.25)[0, 1] * spread + centre
    np.testing.assert_allclose(stems.vocals, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(stems.vocals + stems.instrumental, mixture, atol=1e-6)
    with pytest.raises(RequestError, match="not vocals"):
        load_separator(SeparationSettings(str(tiny_htdemucs(tmp_path, ("drums", "bass"))[0])))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(RequestError, match="is not an HTDemucs"):
        load_separator(SeparationSettings(str(tmp_path / "bad.safetensors")))


def test_htdemucs_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    import sys

    for name in ("demucs_infer", "demucs_infer.apply"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(RequestError, match="pip install 'demucs-infer"):
        load_separator(SeparationSettings(str(tmp_path / "model.safetensors")))
