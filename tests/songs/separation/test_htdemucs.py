"""HTDemucs: the same protocol, compared with demucs-infer itself."""

import json

import numpy as np
import pytest

from hafm_lightning.errors import RequestError
from hafm_lightning.songs.separation import SeparationSettings, load_separator


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


def checkpoint_of_demucs(folder, *, klass_name="HTDemucs", sources=("drums", "vocals"), **changes):
    """A ``.th`` file as demucs writes it: a pickle that names its class, a Fraction, and scores of numpy."""
    import hashlib
    import sys
    import types
    from fractions import Fraction

    import torch

    _, model = tiny_htdemucs(folder, sources)
    settings = {"channels": 8, "t_layers": 1, "t_heads": 2, "segment": Fraction(2), "t_hidden_scale": 1.0}
    settings |= {"bottom_channels": 16, "forgotten": 3}
    module = types.ModuleType("demucs.htdemucs")
    named = type(klass_name, (), {"__module__": "demucs.htdemucs"})
    setattr(module, klass_name, named)
    sys.modules |= {"demucs": types.ModuleType("demucs"), "demucs.htdemucs": module}
    package = {"klass": named, "args": [list(sources)], "kwargs": settings, "state": model.state_dict()}
    package |= {"training_args": {"sdr": np.float64(9.0)}} | changes
    try:
        torch.save(package, folder / "x.th")
    finally:
        del sys.modules["demucs"], sys.modules["demucs.htdemucs"]
    digest = hashlib.sha256((folder / "x.th").read_bytes()).hexdigest()
    return (folder / "x.th").rename(folder / f"955717e8-{digest[:8]}.th"), model


def test_a_checkpoint_that_demucs_downloaded_gives_the_same_stems(tmp_path):
    pytest.importorskip("demucs_infer")
    path, _ = checkpoint_of_demucs(tmp_path)
    mixture = np.random.default_rng(0).normal(0, 0.1, (2, 44_100)).astype(np.float32)
    original = load_separator(SeparationSettings(str(path), device="cpu")).separate(mixture)
    plain = load_separator(SeparationSettings(str(tmp_path / "htdemucs.safetensors"), device="cpu")).separate(mixture)
    np.testing.assert_array_equal(original.vocals, plain.vocals)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(RequestError, match="is damaged: its sha256 begins with"):
        load_separator(SeparationSettings(str(path)))


class Payload:
    def __reduce__(self):
        import os

        return os.mkdir, (f"{self.folder}/ran",)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    pytest.importorskip("demucs_infer")
    payload = Payload()
    payload.folder = str(tmp_path)
    for changes in ({"training_args": payload}, {"kwargs": payload}):
        path, _ = checkpoint_of_demucs(tmp_path, **changes)
        with pytest.raises(RequestError, match="is not an HTDemucs"):
            load_separator(SeparationSettings(str(path)))
        assert not (tmp_path / "ran").exists()
    path, _ = checkpoint_of_demucs(tmp_path, klass_name="Demucs")
    with pytest.raises(RequestError, match="is not an HTDemucs"):
        load_separator(SeparationSettings(str(path)))
    path, _ = checkpoint_of_demucs(tmp_path, kwargs={"channels": 10**9})
    with pytest.raises(RequestError, match="at most 65536 are built"):
        load_separator(SeparationSettings(str(path)))


def test_htdemucs_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    import sys

    for name in ("demucs_infer", "demucs_infer.apply"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(RequestError, match="pip install 'demucs-infer"):
        load_separator(SeparationSettings(str(tmp_path / "model.safetensors")))
