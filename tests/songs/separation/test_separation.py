"""Loading a separator: weights are checked, and models that cannot run are refused."""

import hashlib
import json
import sys

import numpy as np
import pytest
from tiny_separation import DIM_F, DIM_T, HOP, N_FFT, low_pass_model, mask_model

from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of
from hafm_lightning.songs.separation import MdxParameters, SeparationSettings, known_models, load_separator, mdx
from hafm_lightning.songs.separation.known_models import KnownModel, tail_md5
from hafm_lightning.songs.separation.weights import find_model

pytest.importorskip("onnx")


pytest.importorskip("onnxruntime")


def test_the_weights_are_recorded_and_checked(tmp_path):
    path = low_pass_model(tmp_path)
    separator = load_separator(SeparationSettings(str(path)))
    assert separator.identity["sha256"] == sha256_of(path)
    assert separator.identity["n_fft"] == N_FFT
    with pytest.raises(RequestError, match="sha256"):
        load_separator(SeparationSettings(str(path), sha256="0" * 64))


def damaged(folder):
    (folder / "bad.onnx").write_bytes(b"not a model")
    return SeparationSettings(str(folder / "bad.onnx"))


def no_shape(folder):
    return SeparationSettings(str(mask_model(folder / "lonely.onnx", np.ones(DIM_F))))


def contradiction(folder):
    return SeparationSettings(str(low_pass_model(folder)), parameters=MdxParameters(dim_t=77))


def pickle_file(folder):
    (folder / "model.ckpt").write_bytes(b"pickle")
    return SeparationSettings(str(folder / "model.ckpt"))


def no_target(folder):
    path = low_pass_model(folder)
    described = json.loads(path.with_suffix(".json").read_text())
    del described["target"]
    path.with_suffix(".json").write_text(json.dumps(described))
    return SeparationSettings(str(path))


def described_as(name, value):
    def make(folder):
        return SeparationSettings(str(low_pass_model(folder, **{name: value})))

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: SeparationSettings(str(folder / "none.onnx")), "does not exist"),
        (damaged, "not a usable ONNX model"),
        (no_shape, "target, compensation, n_fft of the model unknown"),
        (no_target, "target of the model unknown"),
        (described_as("target", "bass"), "choose vocals or instrumental"),
        (described_as("mdx_dim_t_set", 10**9), "mdx_dim_t_set must be a whole number from 1 to 13"),
        (described_as("mdx_dim_t_set", 1e300), "mdx_dim_t_set must be a whole number"),
        (described_as("mdx_dim_t_set", True), "mdx_dim_t_set must be a whole number"),
        (described_as("n_fft", 10**12), "n_fft must be a whole number from 64 to 65536"),
        (described_as("n_fft", "6144"), "n_fft must be a whole number"),
        (described_as("hop", -1), "hop must be"),
        (described_as("dim_f", 400), "dim_f 400, dim_t 33 contradict each other"),
        (described_as("compensation", 1e9), "compensation must be a number from 0.1 to 10"),
        (described_as("compensation", [1]), "compensation must be a number"),
        (contradiction, "dim_t is 33, the settings say 77"),
        (pickle_file, "neither .onnx"),
    ],
)
def test_models_that_cannot_run_are_refused_by_name(tmp_path, make, message):
    with pytest.raises(RequestError, match=message):
        load_separator(make(tmp_path))


def test_the_table_of_public_models_is_whole():
    models = known_models.table()
    assert len(models) == 44
    names = [model.name for model in models.values() if model.name]
    assert len(set(names)) == len(names)
    for digest, model in models.items():
        assert len(digest) == 32
        assert model.dim_f <= model.n_fft // 2 + 1
        assert model.dim_t in (128, 256, 512)
        assert 1 <= model.compensation < 2
    by_name = {model.name: model for model in models.values()}
    # What these write is in their names, and in UVR's own menu.
    assert {by_name[f"UVR-MDX-NET-Inst_HQ_{n}"].stem for n in (3, 4, 5)} == {"Instrumental"}
    assert {by_name[name].stem for name in ("Kim_Vocal_1", "Kim_Vocal_2", "UVR-MDX-NET-Voc_FT")} == {"Vocals"}
    third = by_name["UVR-MDX-NET-Inst_HQ_3"]
    assert (third.n_fft, third.dim_f, third.dim_t, third.compensation) == (6144, 3072, 256, 1.022)


@pytest.mark.parametrize("size", [1000, 10_240_000, 10_240_007])
def test_models_are_known_by_the_last_10000_kib(tmp_path, size):
    data = np.random.default_rng(0).bytes(size)
    (tmp_path / "a.onnx").write_bytes(data)
    assert tail_md5(tmp_path / "a.onnx") == hashlib.md5(data[-10_240_000:]).hexdigest()


def in_the_table(monkeypatch, path, **values):
    known = {"n_fft": N_FFT, "dim_f": DIM_F, "dim_t": DIM_T, "compensation": 1.25, "stem": "Instrumental"} | values
    monkeypatch.setattr(known_models, "HOP", HOP)
    monkeypatch.setattr(mdx, "HOP", HOP)
    monkeypatch.setattr(known_models, "table", lambda: {tail_md5(path): KnownModel(name="Inst_9", **known)})


def test_a_public_model_needs_no_description(tmp_path, monkeypatch):
    path = mask_model(tmp_path / "renamed.onnx", np.ones(DIM_F))
    in_the_table(monkeypatch, path)
    shape = load_separator(SeparationSettings(str(path))).shape
    assert (shape.target, shape.compensation, shape.hop) == ("instrumental", 1.25, HOP)
    set_here = MdxParameters(compensation=1.0)
    assert load_separator(SeparationSettings(str(path), parameters=set_here)).shape.compensation == 1.0


@pytest.mark.parametrize("place", ["json", "settings"])
def test_a_public_model_with_a_wrong_description_is_refused(tmp_path, monkeypatch, place):
    path = low_pass_model(tmp_path, target="vocals" if place == "json" else "instrumental")
    in_the_table(monkeypatch, path)
    parameters = MdxParameters(target="vocals") if place == "settings" else MdxParameters()
    with pytest.raises(RequestError, match=r"Inst_9, whose target is instrumental, but .* says vocals"):
        load_separator(SeparationSettings(str(path), parameters=parameters))


def test_a_public_model_of_another_stem_is_refused(tmp_path, monkeypatch):
    path = mask_model(tmp_path / "bass.onnx", np.ones(DIM_F))
    in_the_table(monkeypatch, path, stem="Bass")
    with pytest.raises(RequestError, match="writes 'Bass', not vocals"):
        load_separator(SeparationSettings(str(path)))


class FallingBack:
    """onnxruntime that offers CUDA, and runs on the CPU after all."""

    __version__ = "9.9"

    def __init__(self, onnxruntime, offered, started):
        self._real, self._offered, self._started = onnxruntime, offered, started
        self.SessionOptions = onnxruntime.SessionOptions

    def get_available_providers(self):
        return self._offered

    def InferenceSession(self, path, options, providers):
        session = self._real.InferenceSession(path, options, ["CPUExecutionProvider"])
        session.get_providers = lambda: self._started
        return session


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.mark.parametrize(("offered", "reason"), [([CUDA, CPU], "did not start"), ([CPU], "has no CUDA provider")])
def test_a_gpu_that_is_not_used_is_refused_or_said(tmp_path, monkeypatch, offered, reason):
    import onnxruntime

    path = low_pass_model(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", FallingBack(onnxruntime, offered, [CPU]))
    with pytest.raises(RequestError, match=reason):
        load_separator(SeparationSettings(str(path), device="cuda"))
    runtime = load_separator(SeparationSettings(str(path), device="auto")).runtime
    assert runtime.provider == CPU
    assert reason in runtime.note
    assert load_separator(SeparationSettings(str(path), device="cpu")).runtime.note == ""


def test_a_gpu_that_is_used_is_named_with_its_speed(tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setitem(sys.modules, "onnxruntime", FallingBack(onnxruntime, [CUDA, CPU], [CUDA, CPU]))
    separator = load_separator(SeparationSettings(str(low_pass_model(tmp_path)), device="auto"))
    assert (separator.runtime.provider, separator.runtime.note) == (CUDA, "")
    separator.separate(np.zeros((2, 88_200), np.float32))
    assert separator.runtime.audio_s == pytest.approx(2.0)
    assert separator.runtime.busy_s > 0


def test_a_model_is_found_in_its_folder_and_where_demucs_stored_it(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    path = low_pass_model(tmp_path / "models")
    assert find_model(str(tmp_path / "models")) == path
    (tmp_path / "models" / "second.onnx").write_bytes(b"")
    with pytest.raises(RequestError, match=r"must hold one model .* it holds 2"):
        find_model(str(tmp_path / "models"))
    for name in ("HF_HUB_CACHE", "HF_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RequestError, match=r"(?s)no 955717e8-8726e21a\.th in .*run demucs once"):
        find_model("htdemucs")
    stored = tmp_path / "cache" / "torch" / "hub" / "checkpoints" / "955717e8-8726e21a.th"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"x")
    assert find_model("htdemucs") == stored
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    own = tmp_path / "torch" / "hub" / "checkpoints" / "955717e8-8726e21a.th"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"x")
    assert find_model("htdemucs") == own
    own.unlink(), stored.unlink()
    snapshot = tmp_path / "cache" / "huggingface" / "hub" / "models--someone--demucs" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "htdemucs.safetensors").write_bytes(b"x")
    assert find_model("htdemucs") == snapshot / "htdemucs.safetensors"
