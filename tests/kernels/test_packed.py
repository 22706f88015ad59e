"""Packed layers: the same function as the plain ones, as far as their precision goes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_decoding import EVERY, FRAMES, GUIDED, PATTERNS, TARGET, setting
from tiny_models import tiny_config, tiny_model, tiny_streams
from torch import nn

from hafm_lightning.kernels.cpu import processor, step_kernel, step_tiles
from hafm_lightning.kernels.cpu.codegen import vector_code
from hafm_lightning.kernels.cpu.packed import KERNEL_PARAMETERS, PackedLinear, pack
from hafm_lightning.modeling import decoding, filling
from hafm_lightning.modeling.cache import CachedSteps, KeyValueCache
from hafm_lightning.modeling.sampling import SamplingOptions, guided
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.transformer import BackboneConfig

pytestmark = pytest.mark.cpu
BACKBONE = BackboneConfig(width=32, layers=2, heads=2, feedforward=50)
TOLERANCE = {"fp32": 2e-6, "bf16": 1e-2, "int8": 2e-2}


WAYS = {
    "as found": processor.OPERATIONS,
    "fp32 alone": ("packed fp32",),
    "oneDNN without bf16": ("packed fp32", "int8 rows fp32"),
    "nothing": (),
}
"""What the processor is taken to have, of what it has."""


def pretend(monkeypatch: pytest.MonkeyPatch, operations: Sequence[str]) -> None:
    """Let the processor have no more than these operations."""
    has = processor.has
    monkeypatch.setattr(processor, "has", lambda operation: operation in operations and has(operation))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of :data:`WAYS` in turn."""
    pretend(monkeypatch, WAYS[request.param])
    return str(request.param)


def steps_of(*precisions: str) -> pytest.MarkDecorator:
    """For tests of the compiled step: skipped where the processor was found to have none."""
    missing = [name for name in precisions if not processor.has(f"step {name}")]
    return pytest.mark.skipif(bool(missing), reason=f"this processor compiles no steps in {', '.join(missing)}")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 70])
def test_a_packed_layer_computes_what_the_plain_one_does(precision: str, rows: int) -> None:
    plain = nn.Linear(64, 96)
    packed = PackedLinear(plain.weight, plain.bias, precision)
    x = torch.randn(1, rows, 64)
    with torch.inference_mode():
        expected, found = plain(x), packed(x)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert (found - expected).std() <= TOLERANCE[precision] * expected.std()


def networks(pattern: str, conditioning: str, bias: str = "time") -> tuple[TokenModel, dict[str, torch.Tensor]]:
    """A loud network with weights in every norm, and its conditions."""
    model, _, conditions = setting(pattern, conditioning, bias, backbone=BACKBONE)
    return model, conditions


def packed_copy(model: TokenModel, precision: str, kernel: bool = False) -> TokenModel:
    return pack(copy.deepcopy(model), precision, kernel=kernel)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Logits of every row of every step, before guidance."""
    logits_seen: list[torch.Tensor] = []

    def record(logits: torch.Tensor, rows: int, options: SamplingOptions) -> torch.Tensor:
        logits_seen.append(logits.clone())
        return guided(logits, rows, options)

    for module in (decoding, filling):
        monkeypatch.setattr(module, "guided", record)
    return logits_seen


def run(
    model: TokenModel, conditions: dict[str, torch.Tensor], seen: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and all logits of a short decoding."""
    seen.clear()
    seeds = list(range(len(next(iter(conditions.values())))))
    decoder = decoding.Decoder(model, FRAMES, GUIDED, seeds)
    decoder.condition(conditions)
    return decoder.advance(FRAMES), torch.stack(seen)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", [*PATTERNS, "nonautoregressive"])
def test_a_packed_network_gives_the_same_logits(pattern: str, conditioning: str) -> None:
    plain, conditions = networks(pattern, conditioning)
    streams = conditions | {TARGET: torch.randint(1024, (2, 4, FRAMES))}
    with torch.inference_mode():
        expected = plain(streams)
        torch.testing.assert_close(packed_copy(plain, "fp32")(streams), expected, atol=1e-5, rtol=1e-5)
        for precision in ("bf16", "int8"):
            lost = packed_copy(plain, precision)(streams) - expected
            assert 0 < lost.std() < 5 * TOLERANCE[precision] * expected.std()


@pytest.mark.parametrize("by", ["operations", pytest.param("kernel", marks=steps_of("fp32")), "plain layers"])
@pytest.mark.parametrize(("pattern", "conditioning", "bias"), EVERY)
def test_packed_steps_equal_plain_ones(
    pattern: str,
    conditioning: str,
    bias: str,
    by: str,
    seen: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if by == "plain layers":
        pretend(monkeypatch, ())
    plain, conditions = networks(pattern, conditioning, bias)
    packed = packed_copy(plain, "fp32", kernel=by == "kernel")
    expected, found = run(plain, conditions, seen), run(packed, conditions, seen)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)


@steps_of("fp32")
@pytest.mark.parametrize("clips", [1, 2, 3])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_any_number_of_rows_gives_the_same_logits(clips: int, guidance: float, seen: list[torch.Tensor]) -> None:
    plain, conditions = networks("delay", "aligned")
    conditions = {name: torch.cat((ids, ids[:1]))[:clips] for name, ids in conditions.items()}
    options = SamplingOptions(guidance=guidance)
    logits = []
    for model in (plain, packed_copy(plain, "fp32", kernel=True)):
        seen.clear()
        decoding.generate(model, conditions, options, list(range(clips)))
        logits.append(torch.stack(seen))
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)


@steps_of("bf16", "int8")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_compiled_step_loses_no_more_than_the_operations_do(precision: str, seen: list[torch.Tensor]) -> None:
    plain, conditions = networks("delay", "aligned")
    first = run(plain, conditions, seen)[1][0]  # later steps hear other tokens
    lost = [
        (run(packed_copy(plain, precision, kernel), conditions, seen)[1][0] - first).square().mean().sqrt()
        for kernel in (False, True)
    ]
    assert 0 < lost[1] < 1.2 * lost[0]
    assert lost[1] < 5 * TOLERANCE[precision] * first.std()


@steps_of("bf16", "int8")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_cache_in_bf16_loses_little_beside_the_weights(precision: str, seen: list[torch.Tensor]) -> None:
    wide = BackboneConfig(width=64, layers=2, heads=2, feedforward=50)  # heads of 32
    plain, streams, conditions = setting("flattened", backbone=wide)
    known, found, caches = streams[TARGET][:, :, : FRAMES - 2], [], []
    for model in (plain, packed_copy(plain, precision), packed_copy(plain, precision, kernel=True)):
        seen.clear()
        decoder = decoding.Decoder(model, FRAMES, GUIDED, [0, 1], prefix=known)
        decoder.condition(conditions)
        decoder.advance(FRAMES)
        found.append(seen[0])  # the first step that is not prefilled; later ones hear other tokens
        caches.append(decoder.cache.entries[..., : decoder.plan.condition_steps + 4 * known.shape[2] + 1, :])
    assert caches[2].dtype == torch.bfloat16
    assert caches[1].dtype == torch.float32
    torch.testing.assert_close(caches[2].float(), caches[1], rtol=0.02, atol=0.03)
    operations, compiled = ((logits - found[0]).square().mean().sqrt() for logits in found[1:])
    assert 0 < compiled < 1.3 * operations
    assert compiled < 5 * TOLERANCE[precision] * found[0].std()


@steps_of("fp32")
def test_compiled_heads_of_a_vocabulary_that_fills_no_whole_block(seen: list[torch.Tensor]) -> None:
    config = tiny_config("flattened", "aligned", conditions=("vocal_semantic",), target="instrumental_semantic")
    plain = tiny_model(replace(config, backbone=BACKBONE))
    conditions = {"vocal_semantic": tiny_streams(plain.layout, FRAMES)["vocal_semantic"]}
    logits = []
    for model in (plain, packed_copy(plain, "fp32", kernel=True)):
        seen.clear()
        decoding.generate(model, conditions, GUIDED, [0, 1])
        logits.append(torch.stack(seen))
    assert logits[1].shape[-1] == 500
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)


FIRST_STEP = """
import torch
torch.set_num_threads(1)
from hafm_lightning.kernels.cpu.processor import has
assert has("step fp32")
print(torch.get_num_threads())
"""


@steps_of("fp32")
def test_the_first_compiled_step_of_a_process_leaves_pytorchs_number_of_threads() -> None:
    """Numba's pool starts with it, and sets OpenMP's number of threads to that of the processors."""
    environment = os.environ | {"NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", FIRST_STEP], env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("1", 0), done.stderr


@steps_of("fp32")
def test_the_compiled_step_does_not_depend_on_the_number_of_threads(seen: list[torch.Tensor]) -> None:
    plain, conditions = networks("flattened", "prefix")
    packed, threads = packed_copy(plain, "fp32", kernel=True), torch.get_num_threads()
    one = run(packed, conditions, seen)
    try:
        torch.set_num_threads(2)
        two = run(packed, conditions, seen)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0], two[0])
    torch.testing.assert_close(one[1], two[1], atol=1e-6, rtol=1e-6)  # the heads are oneDNN's


def test_a_change_of_the_tiles_makes_the_step_be_compiled_anew() -> None:
    sources = (Path(module.__file__).read_bytes() for module in (step_tiles, vector_code))
    assert zlib.crc32(b"".join(sources)) == step_kernel.TILES_CHECKSUM, "write the new checksum into step_kernel.py"


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint16, torch.int8])
def test_tiles_hold_each_weight_once_in_reading_order(dtype: torch.dtype) -> None:
    weights = torch.arange(2 * 8 * 64).view(2, 8, 64).remainder(120).to(dtype)
    found = step_tiles.tiled(weights).numpy()
    for layer, output, i in [(0, 0, 0), (0, 1, 17), (1, 6, 31), (1, 7, 32), (1, 5, 50)]:
        within = i % 32
        if dtype == torch.uint16:  # inputs 16 apart are neighbours
            within = 2 * (within % 16) + within // 16
        place = i // 32 * 128 + output % 4 * 32 + within
        assert found[layer, output // 4, place] == weights.numpy()[layer, output, i]


def test_only_large_networks_are_compiled() -> None:
    plain, _ = networks("parallel", "aligned")
    assert pack(plain, "fp32").compiled_step is None
    assert BackboneConfig().layers * BackboneConfig().width ** 2 * 4 > KERNEL_PARAMETERS  # the paper's are


def test_the_same_precision_means_the_same_weights_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = nn.Linear(64, 96), torch.randn(1, 70, 64)
    with torch.inference_mode():
        expected = nn.functional.linear(x, plain.weight.bfloat16().float(), plain.bias.bfloat16().float())
        for operations in WAYS.values():
            for precision in ("bf16", "int8"):
                with monkeypatch.context() as patch:
                    pretend(patch, operations)
                    layer = PackedLinear(plain.weight, plain.bias, precision)
                    if layer.dtype == torch.float32:
                        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("operations", [("step bf16",), ()])
def test_a_step_that_the_compiled_function_turns_away_takes_the_layers(
    operations: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bf16 cache was made for the compiled step; five rows or a fixed shape still get their step."""
    pretend(monkeypatch, operations)
    plain, _ = networks("parallel", "aligned")
    packed = packed_copy(plain, "bf16")
    caches = [KeyValueCache(BACKBONE, 2, 3, "cpu", dtype) for dtype in (torch.float32, torch.bfloat16)]
    x, bias = torch.randn(2, 1, BACKBONE.width), torch.zeros(BACKBONE.heads, 1, 1)
    with torch.inference_mode():
        exact, found = (packed.step_logits(x, CachedSteps(cache, 0, bias), None) for cache in caches)
    assert (found - exact).std() < 0.05 * exact.std()


def test_an_operation_is_had_only_if_it_runs_and_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(error: type[Exception]) -> bool:
        raise error("not here")

    trials = {
        "packed fp32": lambda: raises(RuntimeError),
        "packed bf16": lambda: raises(NotImplementedError),
        "int8 rows fp32": lambda: raises(AttributeError),
        "step fp32": lambda: raises(ImportError),
        "step int8": lambda: True,
    }
    monkeypatch.setattr(processor, "_TRIALS", trials)
    state = torch.random.get_rng_state()
    assert [processor.has.__wrapped__(name) for name in trials] == [False] * 4 + [True]
    assert torch.equal(torch.random.get_rng_state(), state)
    monkeypatch.undo()
    monkeypatch.setattr(processor.F, "linear", lambda x, weight, bias=None: -(x @ weight.t()))
    for name in ("packed fp32", "packed bf16", "int8 rows fp32", "int8 rows bf16"):
        assert not processor.has.__wrapped__(name), "a result that differs from PyTorch's"


def test_several_steps_at_once_equal_plain_ones() -> None:
    plain, _ = networks("parallel", "aligned")
    x, bias = torch.randn(2, 7, BACKBONE.width), torch.randn(BACKBONE.heads, 7, 7)
    found = []
    with torch.inference_mode():
        for model in (plain, packed_copy(plain, "fp32")):
            cache = KeyValueCache(BACKBONE, 2, 9, "cpu", torch.float32)
            parts = []
            for first, last in ((0, 3), (3, 7)):
                parts.append(model.backbone(x[:, first:last], CachedSteps(cache, first, bias[:, first:last, :last])))
            found.append(torch.cat(parts, dim=1))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
