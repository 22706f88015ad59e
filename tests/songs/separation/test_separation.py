"""Loading a separator: weights are checked, and models that cannot run are refused."""

import numpy as np
import pytest
from tiny_separation import DIM_F, N_FFT, low_pass_model, mask_model

from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of
from hafm_lightning.songs.separation import MdxParameters, SeparationSettings, load_separator

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
