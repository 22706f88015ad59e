"""A tiny separation model in the format of MDX-Net."""

import json

import numpy as np

RATE = 44_100


N_FFT, HOP, DIM_F, DIM_T = 512, 128, 200, 33


SPLIT_BIN = 60  # the model calls everything below this bin vocals


def mask_model(path, mask, batch=None, dim_t=DIM_T):
    """An MDX-Net whose whole knowledge is a fixed mask over frequency: float32 ``[dim_f]``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    batch = "batch" if batch is None else batch
    shape = [batch, 4, len(mask), dim_t]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["input", "mask"], ["output"])],
        "mask",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(mask.reshape(1, 1, -1, 1).astype(np.float32), "mask")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def low_pass_model(folder, **json_values):
    """A model that writes what is below :data:`SPLIT_BIN`, as vocals unless ``target`` says otherwise."""
    mask = (np.arange(DIM_F) < SPLIT_BIN).astype(np.float32)
    path = mask_model(folder / "model.onnx", mask)
    (folder / "model.json").write_text(
        json.dumps({"n_fft": N_FFT, "hop": HOP, "dim_f": DIM_F, "dim_t": DIM_T, "target": "vocals"} | json_values)
    )
    return path


def si_sdr_db(estimate, target):
    """Scale-invariant signal-to-distortion ratio of two waveforms."""
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
