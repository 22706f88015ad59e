"""Triton kernels of a decoding step: everything between the token of the last step and that of this one.

A step of few rows multiplies hardly anything; it is a chain of short kernels, and each link costs a few microseconds.
So neighbours are joined: norms go into the products that read them, GEGLU and residual sums into those that write them,
query and key norms and the writing of the cache into attention, and a token is drawn in one kernel.

The step number is read from a tensor, and with it the codebook and all that is seen: one recorded step serves all
steps. Sums are float32. As in :mod:`.triton_attention_kernels`, scores are powers of two (``scale`` and the table hold
a factor log2(e)), the masked row of the table is -inf, and lengths are arguments at run time.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["clips", "steps", "frames"])
def input_kernel(
    grid, vectors, special, begin, places, clocked, frame_of_step, x, step,
    clips, steps, frames,
    WIDTH: tl.constexpr, TOKENS: tl.constexpr, BOOKS: tl.constexpr, VOCABULARY: tl.constexpr, EMPTY: tl.constexpr,
    CLOCKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Input of the step, float32: what the step before wrote (or the begin vector), its place, and its conditions."""
    row = tl.program_id(0)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < WIDTH
    now = tl.load(step)
    before = tl.maximum(now - 1, 0)
    clip = (row % clips).to(tl.int64)
    total = tl.load(begin + lane, mask=lane < tl.where(now == 0, WIDTH, 0), other=0.0).to(tl.float32)
    empty = tl.load(special + lane, mask=inside, other=0.0).to(tl.float32)
    for token in tl.static_range(TOKENS):
        number = tl.load(grid + (clip * TOKENS + token) * steps + before)
        book = before % BOOKS if TOKENS == 1 else token
        readable = tl.where((number >= 0) & (number < VOCABULARY), WIDTH, 0)
        at = vectors + (book * VOCABULARY + number) * WIDTH + lane
        vector = tl.load(at, mask=lane < readable, other=float("nan")).to(tl.float32)  # no other id becomes a vector
        vector = tl.where(number == EMPTY, empty, vector)
        total += tl.where(now > 0, vector, 0.0)
    total += tl.load(places + now * WIDTH + lane, mask=inside, other=0.0).to(tl.float32)
    if CLOCKED:
        frame = tl.load(frame_of_step + now)
        at = clocked + (row.to(tl.int64) * frames + frame) * WIDTH + lane
        total += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + row * WIDTH + lane, total, mask=inside)


@triton.jit(do_not_specialize=["rows", "output_stride"])
def linear_kernel(
    x, weight, bias, factors, output, step,
    rows, output_stride, epsilon,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, BOOKS: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``x [rows, INPUTS] @ weight.T + bias``: of the RMS-normalised x, as values and gates, or added to the output.

    With ``BOOKS`` the weight is that of one of so many codebooks, the step's. ``WIDE`` multiplies in float32.
    """
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real, inside = row < rows, column < OUTPUTS
    if BOOKS > 0:
        book = tl.load(step) % BOOKS
        weight += book * OUTPUTS * INPUTS
        bias += book * OUTPUTS
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    gates = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for first in range(0, INPUTS, DEPTH):
        depth = first + tl.arange(0, DEPTH)
        within = depth < INPUTS
        part = tl.load(x + row[:, None] * INPUTS + depth[None, :], mask=real[:, None] & within[None, :], other=0.0)
        at = weight + column[None, :] * INPUTS + depth[:, None]
        mask = inside[None, :] & within[:, None]
        weights = tl.load(at, mask=mask, other=0.0)
        if NORM:
            part = part.to(tl.float32)
            squares += tl.sum(part * part, 1)
            part = part * tl.load(factors + depth, mask=within, other=0.0).to(tl.float32)[None, :]
        if WIDE:
            part, weights = part.to(tl.float32), weights.to(tl.float32)
        else:
            part = part.to(weight.dtype.element_ty)
        total = tl.dot(part, weights, total, input_precision=PRECISION)
        if GATED:
            weights = tl.load(at + OUTPUTS * INPUTS, mask=mask, other=0.0)
            if WIDE:
                weights = weights.to(tl.float32)
            gates = tl.dot(part, weights, gates, input_precision=PRECISION)
    if NORM:
        level = tl.rsqrt(squares / INPUTS + epsilon)[:, None]
        total, gates = total * level, gates * level
    total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if GATED:
        gates += tl.load(bias + OUTPUTS + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        total *= 0.5 * gates * (1.0 + tl.erf(gates * 0.7071067811865476))
    place = output + row[:, None] * output_stride + column[None, :]
    mask = real[:, None] & inside[None, :]
    if RESIDUAL:
        total += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, total.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _normalised(at, factors, lane, epsilon, HEAD: tl.constexpr):
    """A head's numbers over their root mean square, float32 ``[WIDTH]``; zeros beyond the head's width."""
    inside = lane < HEAD
    numbers = tl.load(at + lane, mask=inside, other=0.0).to(tl.float32)
    level = tl.rsqrt(tl.sum(numbers * numbers, 0) / HEAD + epsilon)
    return numbers * level * tl.load(factors + lane, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["before", "all_steps", "capacity", "span"])
def attention_kernel(
    projected, query_factors, key_factors, keys, values, rows_of_step, table, output, sums, step,
    before, all_steps, capacity, span, query_epsilon, key_epsilon, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, TABLE_ROWS: tl.constexpr, KEYS: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """One new step against a part of the cache, ``span`` steps long, of one head of one row.

    The part that the new step belongs to stores its key and value. Each of ``KEYS`` places of a tile has a softmax of
    its own, joined at the end, so that warps do not wait for each other in the loop. ``WHOLE``: the part is all there
    is, and the result goes to the output; else largest score, sum of weights and weighted sum of values go to ``sums``.
    """
    pair, part = tl.program_id(0), tl.program_id(1)
    row, head = pair // HEADS, pair % HEADS
    lane, place = tl.arange(0, WIDTH), tl.arange(0, KEYS)
    wide = lane < HEAD
    target = tl.load(step)
    now = before + target.to(tl.int32)
    first = part * span
    stop = tl.minimum(first + span, now)
    mine = (first <= now) & (now < first + span)
    written = lane < tl.where(mine, HEAD, 0)
    start = pair.to(tl.int64) * capacity * HEAD
    keys += start
    values += start
    rows_of_step += target * all_steps
    table += head * TABLE_ROWS
    at = projected + (row * 3 * HEADS + head) * HEAD
    query = _normalised(at, query_factors, lane, query_epsilon, HEAD) * scale
    key = _normalised(at + HEADS * HEAD, key_factors, lane, key_epsilon, HEAD).to(keys.dtype.element_ty)
    value = tl.load(at + 2 * HEADS * HEAD + lane, mask=wide, other=0.0).to(values.dtype.element_ty)
    tl.store(keys + now * HEAD + lane, key, mask=written)
    tl.store(values + now * HEAD + lane, value, mask=written)

    own = place == tl.where(mine, 0, -1)
    score = tl.sum(query * key.to(tl.float32), 0) + tl.load(table + tl.load(rows_of_step + now))
    largest = tl.where(own, score, float("-inf"))
    total = tl.where(own, 1.0, 0.0)
    mixed = tl.where(own[:, None], value.to(tl.float32)[None, :], 0.0)
    for begin in range(first, stop, KEYS):
        number = begin + place
        seen = number < stop
        offset = number[:, None] * HEAD + lane[None, :]
        mask = seen[:, None] & wide[None, :]
        old_keys = tl.load(keys + offset, mask=mask, other=0.0)
        old_values = tl.load(values + offset, mask=mask, other=0.0)
        bias = tl.load(table + tl.load(rows_of_step + number, mask=seen, other=TABLE_ROWS - 1))
        scores = tl.sum(old_keys.to(tl.float32) * query[None, :], 1) + bias
        above = tl.maximum(largest, scores)
        level = tl.where(above == float("-inf"), 0.0, above)  # a place that has seen no key so far
        weight, shrink = tl.exp2(scores - level), tl.exp2(largest - level)
        total = total * shrink + weight
        mixed = mixed * shrink[:, None] + weight[:, None] * old_values.to(tl.float32)
        largest = above
    top = tl.max(largest, 0)
    weight = tl.exp2(largest - tl.where(top == float("-inf"), 0.0, top))
    whole = tl.sum(total * weight, 0)
    result = tl.sum(mixed * weight[:, None], 0)
    if WHOLE:
        tl.store(output + pair * HEAD + lane, (result / whole).to(output.dtype.element_ty), mask=wide)
    else:
        sums += (pair * tl.num_programs(1) + part) * (WIDTH + 2)
        tl.store(sums, top)
        tl.store(sums + 1, whole)
        tl.store(sums + 2 + lane, result)


@triton.jit(do_not_specialize=["parts"])
def join_kernel(sums, output, parts, HEAD: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """The output of one head of one row from the sums of all parts of its cache."""
    pair = tl.program_id(0)
    part, lane = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    real = part < parts
    sums += (pair * parts + part) * (WIDTH + 2)
    top = tl.load(sums, mask=real, other=float("-inf"))
    weight = tl.exp2(top - tl.max(top, 0))
    whole = tl.sum(weight * tl.load(sums + 1, mask=real, other=0.0), 0)
    mixed = tl.load(sums[:, None] + 2 + lane[None, :], mask=real[:, None], other=0.0)
    result = tl.sum(weight[:, None] * mixed, 0) / whole
    tl.store(output + pair * HEAD + lane, result.to(output.dtype.element_ty), mask=lane < HEAD)


@triton.jit
def _ordered(numbers):
    """Whole numbers from 0 on, in the order of floating-point numbers."""
    bits = (numbers + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) + 2147483648


@triton.jit(do_not_specialize=["clips", "steps", "top_k"])
def draw_kernel(
    logits, uniform, grid, step, clips, steps, top_k, guidance, temperature, largest_uniform,
    TOKENS: tl.constexpr, VOCABULARY: tl.constexpr, PADDED: tl.constexpr, GUIDED: tl.constexpr, GREEDY: tl.constexpr,
    LIMITED: tl.constexpr, UNKNOWN: tl.constexpr,
):  # fmt: skip
    """Draw one token of one clip, as ``sampling.choose`` does, into the grid where it is unknown."""
    clip, token = tl.program_id(0), tl.program_id(1)
    number = tl.arange(0, PADDED)
    inside = number < VOCABULARY
    now = tl.load(step)
    scores = tl.load(logits + (clip * TOKENS + token) * VOCABULARY + number, mask=inside, other=float("-inf"))
    if GUIDED:
        at = logits + ((clips + clip) * TOKENS + token) * VOCABULARY + number
        null = tl.load(at, mask=inside, other=0.0)
        scores = null + guidance * (scores - null)
        scores = tl.where(inside, scores, float("-inf"))
    if GREEDY:
        likeliest = tl.where(inside & (scores == tl.max(scores, 0)), number, PADDED)
        drawn = tl.minimum(tl.min(likeliest, 0), VOCABULARY - 1)
    else:
        scores = tl.div_rn(scores, temperature)
        kept = inside
        if LIMITED:
            ordered = _ordered(scores)
            least = tl.full([], 0, tl.int64)
            for bit in range(32):  # the largest number that top_k scores reach
                higher = least + (tl.full([], 2147483648, tl.int64) >> bit)
                least = tl.where(tl.sum((ordered >= higher).to(tl.int32), 0) >= top_k, higher, least)
            kept = inside & (ordered >= least)
        weight = tl.where(kept, tl.exp(scores - tl.max(scores, 0)), 0.0)
        weight = weight / tl.sum(weight, 0)
        cumulative = tl.cumsum(weight, 0)
        whole = tl.sum(tl.where(number == PADDED - 1, cumulative, 0.0), 0)
        place = (clip * TOKENS + token).to(tl.int64) * steps + now
        threshold = tl.minimum(tl.load(uniform + place), largest_uniform) * whole
        # sums of a tree need not grow from one number to the next: only a possible token is drawn
        found = tl.min(tl.where((weight > 0) & (cumulative > threshold), number, PADDED), 0)
        last = tl.max(tl.where(weight > 0, number, 0), 0)
        drawn = tl.where(found < PADDED, found, last)
    at = grid + (clip * TOKENS + token).to(tl.int64) * steps + now
    tl.store(at, drawn.to(tl.int64), mask=tl.load(at) == UNKNOWN)
