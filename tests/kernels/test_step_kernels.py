"""The Triton kernels of a decoding step in Triton's interpreter, each against float64 arithmetic.

They need ``TRITON_INTERPRET=1`` before Triton is first imported, so they run in a process of their own: ``make
test-triton``.
"""

import math
import os

import pytest
import torch
import torch.nn.functional as F

from hafm_lightning.modeling.decoding import UNKNOWN
from hafm_lightning.modeling.sampling import LARGEST_UNIFORM, SamplingOptions, choose, guided
from hafm_lightning.tokens import EMPTY

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not interpreted, reason="Triton's interpreter has a process of its own: make test-triton"
)
if interpreted:
    pytest.importorskip("triton", reason="the extra triton is not installed")
    from hafm_lightning.kernels.cuda.decoding import step_kernels

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
"""The largest difference over the largest value; numbers of bfloat16 are 2^-8 apart."""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def index(step):
    return torch.tensor([step])


def rms(x, weight, epsilon):
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


def difference(found, true):
    return float((found.double() - true.double()).abs().max() / true.abs().max())


# --- input -------------------------------------------------------------------------------------------------


def run_input(grid, step, tables, special, begin, places, clocked, frame_of_step, rows):
    books, vocabulary, width = tables.shape
    x = torch.full((rows, width), torch.nan)
    step_kernels.input_kernel[(rows, 2)](
        grid, tables, special, begin, places, places if clocked is None else clocked, frame_of_step, x, index(step),
        grid.shape[0], grid.shape[2], 1 if clocked is None else clocked.shape[1],
        WIDTH=width, TOKENS=grid.shape[1], BOOKS=books, VOCABULARY=vocabulary, EMPTY=EMPTY, CLOCKED=clocked is not None,
        BLOCK=16,
    )  # fmt: skip
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("aligned", [True, False])
def test_the_input_is_the_sum_of_token_place_and_conditions(tokens, aligned, dtype):
    width, clips, steps, books, vocabulary = 24, 2, 7, 3, 5
    tables = torch.randn(books, vocabulary, width).to(dtype)
    special, begin, places = (torch.randn(*shape, width).to(dtype) for shape in ((), (), (steps,)))
    clocked = torch.randn(2 * clips, 4, width).to(dtype) if aligned else None
    frame_of_step = torch.arange(steps) // 2
    grid = torch.randint(vocabulary, (clips, tokens, steps))
    grid[1, 0, 3] = EMPTY
    for step in (0, 1, 4, 6):
        found = run_input(grid, step, tables, special, begin, places, clocked, frame_of_step, 2 * clips)
        for row in range(2 * clips):
            true = places[step].double()
            if step == 0:
                true = true + begin.double()
            for token in range(tokens if step else 0):
                number = int(grid[row % clips, token, step - 1])
                book = (step - 1) % books if tokens == 1 else token
                true = true + (special if number == EMPTY else tables[book, number]).double()
            if aligned:
                true = true + clocked[row, frame_of_step[step]].double()
            torch.testing.assert_close(found[row].double(), true, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("number", [UNKNOWN, 5, 1 << 40])
def test_an_id_that_is_no_token_shows(number):
    tables, grid = torch.randn(2, 5, 24), torch.zeros(1, 1, 3, dtype=torch.int64)
    grid[0, 0, 0] = number
    vector = torch.zeros(24)
    found = run_input(grid, 1, tables, vector, vector, torch.zeros(3, 24), None, torch.zeros(3, dtype=torch.int64), 1)
    assert found.isnan().all()


# --- products ----------------------------------------------------------------------------------------------


def run_linear(x, weight, bias, output, *, factors=None, step=0, epsilon=1e-3, tiles=(16, 16, 32), **kind):
    outputs = weight.shape[-2] // (2 if kind.get("GATED") else 1)
    rows, columns, depth = tiles
    flags = {"BOOKS": 0, "NORM": factors is not None, "GATED": False, "RESIDUAL": False} | kind
    step_kernels.linear_kernel[(-(-outputs // columns), -(-len(x) // rows))](
        x, weight, bias, bias if factors is None else factors, output, index(step), len(x), output.shape[1], epsilon,
        INPUTS=x.shape[1], OUTPUTS=outputs, WIDE=True, ROWS=rows, COLUMNS=columns, DEPTH=depth, PRECISION="ieee",
        **flags,
    )  # fmt: skip
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("tiles", [(16, 16, 32), (16, 32, 16)])
def test_products_of_normalised_rows(rows, tiles, dtype):
    """Widths that no tile divides."""
    x, factors = torch.randn(rows, 40) * 3, torch.randn(40).to(dtype)
    weight, bias = torch.randn(27, 40).to(dtype), torch.randn(27).to(dtype)
    found = run_linear(x, weight, bias, torch.zeros(rows, 27, dtype=dtype), factors=factors, tiles=tiles)
    true = rms(x.double(), factors.double(), 1e-3) @ weight.double().t() + bias.double()
    assert difference(found, true) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_gates_leave_what_is_padding_alone(dtype):
    x, factors = torch.randn(3, 40), torch.randn(40).to(dtype)
    weight, bias = torch.randn(2 * 19, 40).to(dtype), torch.randn(2 * 19).to(dtype)
    found = run_linear(x, weight, bias, torch.zeros(3, 32, dtype=dtype), factors=factors, GATED=True)
    values, gates = (rms(x.double(), factors.double(), 1e-3) @ weight.double().t() + bias.double()).chunk(2, -1)
    true = values * gates * 0.5 * (1 + torch.erf(gates / math.sqrt(2)))
    assert difference(found[:, :19], true) < TOLERANCE[dtype]
    assert not found[:, 19:].any()


def test_sums_onto_the_residual_stream_stay_float32():
    x, weight, bias = torch.randn(5, 32).bfloat16(), torch.randn(24, 32).bfloat16(), torch.randn(24).bfloat16()
    stream = torch.randn(5, 24) * 100
    true = stream.double() + x.double() @ weight.double().t() + bias.double()
    assert difference(run_linear(x, weight, bias, stream, RESIDUAL=True), true) < 1e-6


@pytest.mark.parametrize("step", [0, 2, 5])
def test_the_steps_codebook_chooses_the_weight(step):
    x, weight, bias = torch.randn(2, 32), torch.randn(3, 20, 32), torch.randn(3, 20)
    found = run_linear(x, weight, bias, torch.zeros(2, 20), step=step, BOOKS=3)
    true = F.linear(x.double(), weight[step % 3].double(), bias[step % 3].double())
    assert difference(found, true) < 1e-6


# --- attention ---------------------------------------------------------------------------------------------

ROWS, HEADS, BEFORE, STEPS = 2, 3, 5, 60


def attention_setting(head, dtype):
    """Projections of one step, norms, a cache whose later steps are poison, rows of the table, and the table."""
    projected = torch.randn(ROWS, 3 * HEADS * head).to(dtype)
    factors = torch.randn(2, head).to(dtype)
    cache = torch.randn(2, ROWS, HEADS, BEFORE + STEPS, head).to(dtype)
    rows = torch.randint(6, (STEPS, BEFORE + STEPS)).int()
    table = torch.cat((torch.randn(HEADS, 6), torch.full((HEADS, 1), -math.inf)), dim=1)
    return projected, factors, cache, rows, table


@pytest.mark.parametrize(("head", "dtype"), [(16, torch.float32), (24, torch.float32), (24, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("span", [None, 16, 32])
@pytest.mark.parametrize("step", [0, 11, 58])
def test_attention_of_one_step_over_the_cache_in_one_part_or_several(head, dtype, span, step):
    projected, factors, cache, rows, table = attention_setting(head, dtype)
    now = BEFORE + step
    cache[:, :, :, now:] = torch.nan
    rows[step, 1] = 6  # a step of the past that is hidden
    before, width = cache.clone(), 1 << (head - 1).bit_length()
    parts = 1 if span is None else -(-cache.shape[3] // span)
    mixed, sums = torch.zeros(ROWS, HEADS * head, dtype=dtype), torch.zeros(ROWS * HEADS, parts, width + 2)
    scale = math.log2(math.e) / math.sqrt(head)
    step_kernels.attention_kernel[(ROWS * HEADS, parts)](
        projected, *factors, *cache, rows, table * math.log2(math.e), mixed, sums, index(step),
        BEFORE, rows.shape[1], cache.shape[3], span or cache.shape[3], 1e-3, 1e-4, scale,
        HEADS=HEADS, HEAD=head, WIDTH=width, TABLE_ROWS=table.shape[1], KEYS=16, WHOLE=span is None,
    )  # fmt: skip
    if span is not None:
        step_kernels.join_kernel[(ROWS * HEADS,)](sums, mixed, parts, HEAD=head, WIDTH=width, PARTS=8)

    query, key, value = projected.double().view(ROWS, 3, HEADS, head).unbind(1)
    query, key = rms(query, factors[0].double(), 1e-3), rms(key, factors[1].double(), 1e-4)
    assert difference(cache[0, :, :, now], key) < TOLERANCE[dtype]
    assert torch.equal(cache[1, :, :, now].double(), value)
    others = torch.arange(cache.shape[3]) != now
    torch.testing.assert_close(cache[:, :, :, others], before[:, :, :, others], rtol=0, atol=0, equal_nan=True)
    keys, values = cache[:, :, :, : now + 1].double()
    scores = (keys @ query[..., None]).squeeze(-1) / math.sqrt(head) + table[:, rows[step, : now + 1]].double()
    true = (scores.softmax(-1)[..., None, :] @ values).flatten(1)
    assert difference(mixed, true) < TOLERANCE[dtype]


# --- draws -------------------------------------------------------------------------------------------------


def run_draw(logits, uniform, grid, step, options, clips):
    tokens, vocabulary = logits.shape[1:]
    kept = min(options.top_k or vocabulary, vocabulary)
    step_kernels.draw_kernel[(clips, tokens)](
        logits, uniform, grid, index(step), clips, grid.shape[2], kept,
        float(options.guidance), float(options.temperature), LARGEST_UNIFORM,
        TOKENS=tokens, VOCABULARY=vocabulary, PADDED=1 << (vocabulary - 1).bit_length(), GUIDED=len(logits) > clips,
        GREEDY=options.temperature == 0 or options.top_k == 1, LIMITED=kept < vocabulary,
        UNKNOWN=UNKNOWN,
    )  # fmt: skip
    return grid[:, :, step]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(),
        SamplingOptions(guidance=1.7, temperature=0.5, top_k=3),
        SamplingOptions(temperature=1.3, top_k=None),
        SamplingOptions(top_k=1),
        SamplingOptions(temperature=0),
        SamplingOptions(temperature=100.0, top_k=1000),
    ],
    ids=str,
)
def test_draws_are_those_of_choose_with_ties_too(options, ties):
    """Steps of 2 clips and 2 tokens, of 45 ids; ties are whole logits, of which many share the k-th place."""
    uniform = torch.rand(2, 2, 8)
    uniform[0, 0, :3] = torch.tensor([0.0, LARGEST_UNIFORM, 0.5])
    for guided_rows in (1, 2):
        grid = torch.full((2, 2, 8), UNKNOWN)
        for step in range(8):
            logits = torch.randn(2 * guided_rows, 2, 45) * 3
            if ties:
                logits = logits.round().clamp(-2, 2) * 0.5
            expected = choose(guided(logits, guided_rows, options), uniform[:, :, step], options)
            assert torch.equal(run_draw(logits, uniform, grid, step, options, 2), expected)
        assert (grid != UNKNOWN).all()


def test_known_tokens_stay_and_impossible_ones_are_never_drawn():
    logits = torch.full((1, 1, 33), -200.0)
    logits[0, 0, [7, 20]] = torch.tensor([0.0, -0.0])
    options = SamplingOptions(guidance=1.0, temperature=1.0, top_k=None)
    uniform = torch.tensor([0.0, 0.49, 0.5, 0.51, 1 - 2**-24]).view(1, 1, -1)
    grid = torch.full((1, 1, 6), UNKNOWN)
    drawn = [int(run_draw(logits, uniform, grid, step, options, 1)) for step in range(5)]
    assert drawn == [7, 7, 20, 20, 20]
    grid[0, 0, 2] = EMPTY
    run_draw(logits, uniform, grid, 2, options, 1)
    assert grid[0, 0].tolist() == [7, 7, EMPTY, 20, 20, UNKNOWN]
