"""What devices demand of decoding: static shapes and captured steps (CUDA graphs), and no float64 (Apple's MPS).

Graphs are stood in for on the CPU by :class:`FrozenGraph`; the numbers are held against plain decoding.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tiny_decoding import EVERY, FRAMES, GUIDED, PATTERNS, TARGET, record_logits, setting
from tiny_models import tiny_config, tiny_model, tiny_streams
from torch.utils._python_dispatch import TorchDispatchMode

from hafm_lightning.modeling import relative_position
from hafm_lightning.modeling.decoding import Decoder, generate


@pytest.fixture
def recorded_rows(monkeypatch):
    """Logits of every row before guidance, in order, each ``[rows B, W, V]`` (``[rows B, T, V]``)."""
    return record_logits(monkeypatch, "guided")


@pytest.mark.parametrize(("pattern", "conditioning", "bias"), EVERY)
def test_static_shapes_compute_the_same(pattern, conditioning, bias, recorded_rows):
    model, streams, conditions = setting(pattern, conditioning, bias)
    runs = []
    for static in (False, True):
        recorded_rows.clear()
        decoder = Decoder(model, FRAMES, GUIDED, [0, 1], prefix=streams[TARGET][:, :, :1], static=static)
        decoder.condition(conditions)
        runs.append((decoder.advance(FRAMES), torch.stack(recorded_rows)))
    assert torch.equal(runs[0][0], runs[1][0])
    torch.testing.assert_close(runs[0][1], runs[1][1], atol=1e-5, rtol=1e-5)


class FrozenGraph:
    """Stands in for a CUDA graph on the CPU: what Python knew when the step was recorded is what it knows at replay."""

    def __init__(self, decoder):
        self.decoder, self.step, self.codebook, self.replays = decoder, decoder.step, None, 0

    def replay(self):
        now, self.decoder.step = self.decoder.step, self.step
        self.decoder._compute(self.codebook)
        self.decoder.step = now
        self.replays += 1


@pytest.mark.parametrize("known", [0, 1])
@pytest.mark.parametrize(("pattern", "conditioning", "bias"), EVERY)
def test_replayed_steps_compute_the_same(pattern, conditioning, bias, known, recorded_rows, monkeypatch):
    """A replay may depend on nothing but tensors: step number, grid, conditions, cache."""
    model, streams, conditions = setting(pattern, conditioning, bias)
    prefix = streams[TARGET][:, :, :known] if known else None
    decoders = [Decoder(model, FRAMES, GUIDED, [0, 1], prefix=prefix, capture=capture) for capture in (False, True)]
    replayed, graphs = decoders[1], []

    @contextmanager
    def recording(graph):
        tensors = (replayed.grid, replayed.cache.keys, replayed.cache.values)
        before = [tensor.clone() for tensor in tensors]
        monkeypatch.setattr(replayed, "_compute", partial(recorded_step, graph, replayed._compute))
        seen = len(recorded_rows)
        yield
        del recorded_rows[seen:]
        monkeypatch.setattr(replayed, "_compute", compute)
        for tensor, saved in zip(tensors, before, strict=True):
            tensor.copy_(saved)  # recording runs nothing

    def recorded_step(graph, function, codebook):
        graph.codebook = codebook
        function(codebook)

    compute = replayed._compute
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(FrozenGraph(replayed)) or graphs[-1])
    monkeypatch.setattr(torch.cuda, "graph", recording)
    runs = []
    for decoder in decoders:
        recorded_rows.clear()
        decoder.condition(conditions)
        decoder.advance(2)
        decoder.condition(conditions) if conditioning == "aligned" else None  # captured steps read the same buffer
        runs.append((decoder.advance(FRAMES), recorded_rows[-4:]))
    assert torch.equal(runs[0][0], runs[1][0])
    for plain, again in zip(runs[0][1], runs[1][1], strict=True):
        torch.testing.assert_close(plain, again, atol=1e-5, rtol=1e-5)
    steps = model.layout.target_steps(FRAMES) - (4 * known if pattern == "flattened" else known)
    assert sum(graph.replays for graph in graphs) == steps - (0 if known else 1)  # the first input is no token
    assert len(graphs) == (4 if pattern == "flattened" else 1)


class WithoutFloat64(TorchDispatchMode):
    """A device that has no float64, as Apple's."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        assert getattr(result, "dtype", None) != torch.float64, function
        return result


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", [*PATTERNS, "nonautoregressive"])
def test_generation_needs_no_float64(pattern, conditioning):
    model = tiny_model(tiny_config(pattern, conditioning), attention="dense")
    streams = tiny_streams(model.layout, FRAMES)
    relative_position._bucket_edges(16, relative_position.MAX_DISTANCE_TICKS)  # made once, on the CPU
    for buckets in (16, 32):
        relative_position._bucket_edges(buckets, relative_position.MAX_DISTANCE_STEPS)
    with WithoutFloat64():
        generate(model, streams, replace(GUIDED, top_p=0.9), [0, 1], prefix=streams[TARGET][:, :, :2])
