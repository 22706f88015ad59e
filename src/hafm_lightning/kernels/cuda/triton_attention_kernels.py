"""Attention with a learned bias as Triton kernels over classed tiles (:mod:`hafm_lightning.kernels.tiles`).

Each program takes one tile of queries (or, for the gradients of keys and values, of keys) of one head of one clip, and
walks through its list of tiles: first the runs of constant tiles, whose bias is one number and which need no mask, then
the look-ups, whose bias comes from a pattern: the head's entry for each pair of a tile, -inf for a masked one.

A look-up is spread out before the kernels start, once for each pattern and head, because a gather from the table inside
of a loop is slow: on an H200 a tile that gathered took as long as seven constant ones.

Lengths, lists and distances between rows are arguments at run time, so that one compilation serves every length. Scores
are kept as powers of two: ``scale`` and the table hold a factor log2(e). Sums are float32.

Triton compiles these functions from their source: it knows neither classes nor most of Python. With the environment
variable ``TRITON_INTERPRET=1`` they run on a CPU, for tests.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LENGTHS = [
    "lines",
    "heads",
    "steps",
    "table_rows",
    "patterns",
    "items",
    "clips",
    "clips_at_once",
    "shares",
    "first_share",
]


@triton.jit
def _rows(
    pointer, first, stride, steps,
    COUNT: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """Steps ``first : first + COUNT`` as ``[COUNT, WIDTH]``; zeros beyond the head's width, and after the last step."""
    step = first + tl.arange(0, COUNT)
    column = tl.arange(0, WIDTH)
    at = pointer + step.to(tl.int64)[:, None] * stride + column[None, :]
    if INSIDE and HEAD == WIDTH:
        rows = tl.load(at)
    elif INSIDE:
        rows = tl.load(at, mask=(column < HEAD)[None, :], other=0.0)
    elif HEAD == WIDTH:
        rows = tl.load(at, mask=(step < steps)[:, None], other=0.0)
    else:
        rows = tl.load(at, mask=(step < steps)[:, None] & (column < HEAD)[None, :], other=0.0)
    return rows


@triton.jit
def _store_rows(
    pointer, first, stride, steps, rows, COUNT: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Write what :func:`_rows` reads."""
    step = first + tl.arange(0, COUNT)
    column = tl.arange(0, WIDTH)
    at = pointer + step.to(tl.int64)[:, None] * stride + column[None, :]
    inside = (step < steps)[:, None] & (column < HEAD)[None, :]
    tl.store(at, rows.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _pattern(patterns, number, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """What a pattern holds for each pair of a look-up, ``[QUERIES, KEYS]``: a bias, or a row of the table."""
    query, key = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    return tl.load(patterns + number.to(tl.int64) * (QUERIES * KEYS) + query[:, None] * KEYS + key[None, :])


@triton.jit
def _absorb(scores, value, largest, total, mixed, PRECISION: tl.constexpr):
    """Add a tile to the running softmax: its scores ``[QUERIES, KEYS]`` and values ``[KEYS, WIDTH]``."""
    above = tl.maximum(largest, tl.max(scores, 1))
    level = tl.where(above == float("-inf"), 0.0, above)  # a query that has seen no key so far
    weight = tl.exp2(scores - level[:, None])
    shrink = tl.exp2(largest - level)
    total = total * shrink + tl.sum(weight, 1)
    mixed = tl.dot(weight.to(value.dtype), value, mixed * shrink[:, None], input_precision=PRECISION)
    return above, total, mixed


@triton.jit(do_not_specialize=_LENGTHS)
def forward_kernel(
    query, query_b, query_h, query_s,
    key, key_b, key_h, key_s,
    value, value_b, value_h, value_s,
    output, output_b, output_h, output_s,
    logarithm, table,
    order, edges, lookups, tile, pattern, run_edges, run_row, run_start, run_stop, biases,
    lines, heads, steps, table_rows, patterns, scale,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Output and the logarithm (base 2) of each query's sum of weights, for a tile of queries."""
    program = tl.program_id(0)
    line = tl.load(order + program % lines)
    number = program // lines
    clip, head = (number // heads).to(tl.int64), (number % heads).to(tl.int64)
    key += clip * key_b + head * key_h
    value += clip * value_b + head * value_h
    table += head * table_rows
    biases += head * patterns * (QUERIES * KEYS)
    first = line * QUERIES
    queries = _rows(query + clip * query_b + head * query_h, first, query_s, steps, QUERIES, HEAD, WIDTH, False)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, WIDTH], tl.float32)
    for run in range(tl.load(run_edges + line), tl.load(run_edges + line + 1)):
        bias = tl.load(table + tl.load(run_row + run))
        for n in range(tl.load(run_start + run), tl.load(run_stop + run)):
            at = tl.load(tile + n) * KEYS
            keys = _rows(key, at, key_s, steps, KEYS, HEAD, WIDTH, True)
            scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale + bias
            values = _rows(value, at, value_s, steps, KEYS, HEAD, WIDTH, True)
            largest, total, mixed = _absorb(scores, values, largest, total, mixed, PRECISION)
    for n in tl.range(tl.load(lookups + line), tl.load(edges + line + 1), num_stages=AHEAD):
        at = tl.load(tile + n) * KEYS
        keys = _rows(key, at, key_s, steps, KEYS, HEAD, WIDTH, False)
        bias = _pattern(biases, tl.load(pattern + n), QUERIES, KEYS)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale + bias
        values = _rows(value, at, value_s, steps, KEYS, HEAD, WIDTH, False)
        largest, total, mixed = _absorb(scores, values, largest, total, mixed, PRECISION)
    mixed = mixed / total[:, None]
    output += clip * output_b + head * output_h
    _store_rows(output, first, output_s, steps, mixed, QUERIES, HEAD, WIDTH)
    step = first + tl.arange(0, QUERIES)
    at_step = logarithm + number.to(tl.int64) * steps + step
    tl.store(at_step, largest + tl.log2(total), mask=step < steps)


@triton.jit(do_not_specialize=_LENGTHS)
def level_kernel(
    output, output_b, output_h, output_s,
    gradient, gradient_b, gradient_h, gradient_s,
    level, lines, heads, steps,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """The product of each query's output and its gradient: what softmax takes off all gradients of its scores."""
    program = tl.program_id(0)
    first, number = (program % lines) * QUERIES, program // lines
    clip, head = (number // heads).to(tl.int64), (number % heads).to(tl.int64)
    output += clip * output_b + head * output_h
    gradient += clip * gradient_b + head * gradient_h
    mixed = _rows(output, first, output_s, steps, QUERIES, HEAD, WIDTH, False).to(tl.float32)
    slope = _rows(gradient, first, gradient_s, steps, QUERIES, HEAD, WIDTH, False).to(tl.float32)
    step = first + tl.arange(0, QUERIES)
    tl.store(level + number.to(tl.int64) * steps + step, tl.sum(mixed * slope, 1), mask=step < steps)


@triton.jit(do_not_specialize=_LENGTHS)
def query_gradient_kernel(
    query, query_b, query_h, query_s,
    key, key_b, key_h, key_s,
    value, value_b, value_h, value_s,
    gradient, gradient_b, gradient_h, gradient_s,
    logarithm, level, table,
    grad_query, grad_b, grad_h, grad_s,
    grad_table,
    order, edges, lookups, tile, pattern, run_edges, run_row, run_start, run_stop, biases,
    lines, heads, steps, table_rows, patterns, scale, score_scale, shares,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries, and the share of its constant tiles in the gradient of the head's bias table."""
    program = tl.program_id(0)
    line = tl.load(order + program % lines)
    number = program // lines
    clip, head = (number // heads).to(tl.int64), (number % heads).to(tl.int64)
    key += clip * key_b + head * key_h
    value += clip * value_b + head * value_h
    table += head * table_rows
    biases += head * patterns * (QUERIES * KEYS)
    grad_table += (head * shares + clip * lines + line) * table_rows
    first = line * QUERIES
    queries = _rows(query + clip * query_b + head * query_h, first, query_s, steps, QUERIES, HEAD, WIDTH, False)
    slopes = _rows(
        gradient + clip * gradient_b + head * gradient_h, first, gradient_s, steps, QUERIES, HEAD, WIDTH, False
    )
    step = first + tl.arange(0, QUERIES)
    at_step = number.to(tl.int64) * steps + step
    logarithms = tl.load(logarithm + at_step, mask=step < steps, other=float("inf"))  # weight 0
    levels = tl.load(level + at_step, mask=step < steps, other=0.0)
    result = tl.zeros([QUERIES, WIDTH], tl.float32)
    for run in range(tl.load(run_edges + line), tl.load(run_edges + line + 1)):
        row = tl.load(run_row + run)
        shift = tl.load(table + row) - logarithms
        sums = tl.zeros([QUERIES], tl.float32)
        for n in range(tl.load(run_start + run), tl.load(run_stop + run)):
            at = tl.load(tile + n) * KEYS
            keys = _rows(key, at, key_s, steps, KEYS, HEAD, WIDTH, True)
            values = _rows(value, at, value_s, steps, KEYS, HEAD, WIDTH, True)
            scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
            weights = tl.exp2(scores + shift[:, None])
            changes = tl.dot(slopes, tl.trans(values), input_precision=PRECISION)
            grad_scores = weights * (changes - levels[:, None])
            sums += tl.sum(grad_scores, 1)
            result = tl.dot(grad_scores.to(keys.dtype), keys, result, input_precision=PRECISION)
        tl.store(grad_table + row, tl.sum(sums, 0))  # a line has one run of each row
    for n in tl.range(tl.load(lookups + line), tl.load(edges + line + 1), num_stages=AHEAD):
        at = tl.load(tile + n) * KEYS
        keys = _rows(key, at, key_s, steps, KEYS, HEAD, WIDTH, False)
        values = _rows(value, at, value_s, steps, KEYS, HEAD, WIDTH, False)
        bias = _pattern(biases, tl.load(pattern + n), QUERIES, KEYS)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale + bias
        weights = tl.exp2(scores - logarithms[:, None])
        changes = tl.dot(slopes, tl.trans(values), input_precision=PRECISION)
        grad_scores = weights * (changes - levels[:, None])
        result = tl.dot(grad_scores.to(keys.dtype), keys, result, input_precision=PRECISION)
    grad_query += clip * grad_b + head * grad_h
    _store_rows(grad_query, first, grad_s, steps, result * score_scale, QUERIES, HEAD, WIDTH)


@triton.jit
def _collect(scores, logarithms, queries, values, slopes, levels, grad_keys, grad_values, PRECISION: tl.constexpr):
    """Add a tile to the gradients of its keys and values, from scores with bias ``[KEYS, QUERIES]``."""
    weights = tl.exp2(scores - logarithms[None, :])
    grad_values = tl.dot(weights.to(slopes.dtype), slopes, grad_values, input_precision=PRECISION)
    changes = tl.dot(values, tl.trans(slopes), input_precision=PRECISION)
    grad_scores = weights * (changes - levels[None, :])
    grad_keys = tl.dot(grad_scores.to(queries.dtype), queries, grad_keys, input_precision=PRECISION)
    return grad_keys, grad_values


@triton.jit(do_not_specialize=_LENGTHS)
def key_gradient_kernel(
    query, query_b, query_h, query_s,
    key, key_b, key_h, key_s,
    value, value_b, value_h, value_s,
    gradient, gradient_b, gradient_h, gradient_s,
    logarithm, level, table,
    grad_key, grad_value, grad_b, grad_h, grad_s,
    order, edges, lookups, tile, pattern, run_edges, run_row, run_start, run_stop, biases,
    lines, heads, steps, table_rows, patterns, scale, score_scale,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and of its values; the lists hold tiles of queries, ``biases`` tiles ``[K, Q]``."""
    program = tl.program_id(0)
    line = tl.load(order + program % lines)
    number = program // lines
    clip, head = (number // heads).to(tl.int64), (number % heads).to(tl.int64)
    query += clip * query_b + head * query_h
    gradient += clip * gradient_b + head * gradient_h
    logarithm += number.to(tl.int64) * steps
    level += number.to(tl.int64) * steps
    table += head * table_rows
    biases += head * patterns * (QUERIES * KEYS)
    first = line * KEYS
    keys = _rows(key + clip * key_b + head * key_h, first, key_s, steps, KEYS, HEAD, WIDTH, False)
    values = _rows(value + clip * value_b + head * value_h, first, value_s, steps, KEYS, HEAD, WIDTH, False)
    grad_keys = tl.zeros([KEYS, WIDTH], tl.float32)
    grad_values = tl.zeros([KEYS, WIDTH], tl.float32)
    for run in range(tl.load(run_edges + line), tl.load(run_edges + line + 1)):
        bias = tl.load(table + tl.load(run_row + run))
        for n in range(tl.load(run_start + run), tl.load(run_stop + run)):
            at = tl.load(tile + n) * QUERIES
            step = at + tl.arange(0, QUERIES)
            queries = _rows(query, at, query_s, steps, QUERIES, HEAD, WIDTH, False)
            slopes = _rows(gradient, at, gradient_s, steps, QUERIES, HEAD, WIDTH, False)
            logarithms = tl.load(logarithm + step, mask=step < steps, other=float("inf"))  # weight 0
            levels = tl.load(level + step, mask=step < steps, other=0.0)
            scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * scale + bias
            grad_keys, grad_values = _collect(
                scores, logarithms, queries, values, slopes, levels, grad_keys, grad_values, PRECISION
            )
    for n in tl.range(tl.load(lookups + line), tl.load(edges + line + 1), num_stages=AHEAD):
        at = tl.load(tile + n) * QUERIES
        step = at + tl.arange(0, QUERIES)
        queries = _rows(query, at, query_s, steps, QUERIES, HEAD, WIDTH, False)
        slopes = _rows(gradient, at, gradient_s, steps, QUERIES, HEAD, WIDTH, False)
        logarithms = tl.load(logarithm + step, mask=step < steps, other=float("inf"))
        levels = tl.load(level + step, mask=step < steps, other=0.0)
        bias = _pattern(biases, tl.load(pattern + n), KEYS, QUERIES)
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * scale + bias
        grad_keys, grad_values = _collect(
            scores, logarithms, queries, values, slopes, levels, grad_keys, grad_values, PRECISION
        )
    offset = clip * grad_b + head * grad_h
    _store_rows(grad_key + offset, first, grad_s, steps, grad_keys * score_scale, KEYS, HEAD, WIDTH)
    _store_rows(grad_value + offset, first, grad_s, steps, grad_values, KEYS, HEAD, WIDTH)


@triton.jit(do_not_specialize=_LENGTHS)
def table_gradient_kernel(
    query, query_b, query_h, query_s,
    key, key_b, key_h, key_s,
    value, value_b, value_h, value_s,
    gradient, gradient_b, gradient_h, gradient_s,
    logarithm, level,
    grad_table,
    item_pattern, item_start, item_stop, line_of, column_of, biases, rows_of, row_edges, row_list,
    items, heads, clips, clips_at_once, steps, table_rows, patterns, scale, shares, first_share,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The share of some look-ups in the gradient of the head's bias table: equal tiles of some clips, in a row.

    Gradients of their scores add up pair by pair, and then once for each row of the table, in an order that is the same
    in every run; each program has sums of its own.
    """
    program = tl.program_id(0)
    item, head = program % items, (program // items) % heads
    first_clip = program // (items * heads) * clips_at_once
    number = tl.load(item_pattern + item)
    start = tl.load(item_start + item)
    tiles = tl.load(item_stop + item) - start
    biases += head.to(tl.int64) * patterns * (QUERIES * KEYS)
    bias = _pattern(biases, number, QUERIES, KEYS).to(tl.float32)
    sums = tl.zeros([QUERIES, KEYS], tl.float32)
    for n in range(tiles * tl.minimum(clips_at_once, clips - first_clip)):
        clip = (first_clip + n // tiles).to(tl.int64)
        first = tl.load(line_of + start + n % tiles) * QUERIES
        at = tl.load(column_of + start + n % tiles) * KEYS
        queries = _rows(query + clip * query_b + head * query_h, first, query_s, steps, QUERIES, HEAD, WIDTH, False)
        slopes = _rows(
            gradient + clip * gradient_b + head * gradient_h, first, gradient_s, steps, QUERIES, HEAD, WIDTH, False
        )
        keys = _rows(key + clip * key_b + head * key_h, at, key_s, steps, KEYS, HEAD, WIDTH, False)
        values = _rows(value + clip * value_b + head * value_h, at, value_s, steps, KEYS, HEAD, WIDTH, False)
        step = first + tl.arange(0, QUERIES)
        at_step = (clip * heads + head) * steps + step
        logarithms = tl.load(logarithm + at_step, mask=step < steps, other=float("inf"))  # weight 0
        levels = tl.load(level + at_step, mask=step < steps, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale + bias
        weights = tl.exp2(scores - logarithms[:, None])
        sums += weights * (tl.dot(slopes, tl.trans(values), input_precision=PRECISION) - levels[:, None])
    share = first_share + program // (items * heads) * items + item
    grad_table += (head.to(tl.int64) * shares + share) * table_rows
    rows = _pattern(rows_of, number, QUERIES, KEYS)
    for m in range(tl.load(row_edges + number), tl.load(row_edges + number + 1)):
        row = tl.load(row_list + m)
        tl.store(grad_table + row, tl.sum(tl.sum(tl.where(rows == row, sums, 0.0), 1), 0))
