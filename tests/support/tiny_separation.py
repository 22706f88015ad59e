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
    mask = (np.arange(DIM_F) < SPLIT_BIN).astype(np.float32)
    path = mask_model(folder / "model.onnx", mask)
    (folder / "model.json").write_text(
        json.dumps({"n_fft": N_FFT, "hop": HOP, "dim_f": DIM_F, "dim_t": DIM_T} | json_values)
    )
    return path
