"""What the tests of decoding share: small networks of every pattern, conditioning and bias, and options."""

import pytest
from tiny_models import tiny_config, tiny_model, tiny_streams

from hafm_lightning.modeling import decoding, filling
from hafm_lightning.modeling.sampling import SamplingOptions

FRAMES = 6
TARGET = "instrumental_coarse"
PATTERNS = ("flattened", "delay", "parallel")
EVERY = [
    pytest.param(pattern, conditioning, bias, id=f"{pattern}-{conditioning}-{bias}")
    for pattern in PATTERNS
    for conditioning in ("prefix", "aligned")
    for bias in ("time", "index")
]
PLAIN = SamplingOptions(guidance=1.0, temperature=1.0, top_k=None)
GUIDED = SamplingOptions(guidance=3.0, temperature=0.9, top_k=250)


def setting(pattern, conditioning="prefix", bias="time", batch=2, **settings):
    """A network, streams for it, and its conditions alone."""
    model = tiny_model(tiny_config(pattern, conditioning, bias, look_ahead_s=0.04, look_behind_s=0.03, **settings))
    streams = tiny_streams(model.layout, FRAMES, batch)
    return model, streams, {name: ids for name, ids in streams.items() if name != TARGET}


def record_logits(monkeypatch, name):
    """Have ``name`` keep a copy of its first argument, logits, wherever tokens are drawn; the list, in order."""
    function, seen = getattr(decoding, name), []

    def record(logits, *others):
        seen.append(logits.clone())
        return function(logits, *others)

    for module in (decoding, filling):
        monkeypatch.setattr(module, name, record)
    return seen
