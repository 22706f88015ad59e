"""Attention with a learned bias as Triton kernels over classed tiles (:mod:`hafm_lightning.kernels.tiles`).

Each program takes one tile of queries (or, for the gradients of keys and values, of keys) of one head of one clip, and
walks through its list of tiles: first the runs of constant tiles, whose bias is one number and which need no mask, then
the look-ups, whose rows come from a pattern and choose from the head's table; the masked row of that table is -inf.

Lengths, lists and distances between rows are arguments at run time, so that one compilation serves every length. Scores
are kept as powers of two: ``scale`` and the table hold a factor log2(e). Sums are float32.

Triton compiles these functions from their source: it knows neither classes nor most of Python. With the environment
variable ``TRITON_INTERPRET=1`` they run on a CPU, for tests.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LENGTHS = ["lines", "heads", "steps", "table_rows"]


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
    """Row of the table for each pair of a look-up, ``[QUERIES, KEYS]``."""
    query, key = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    at = patterns + number.to(tl.int64) * (QUERIES * KEYS) + query[:, None] * KEYS + key[None, :]
    return tl.load(at).to(tl.int32)


@triton.jit
def _pattern_by_key(patterns, number, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """The same, ``[KEYS, QUERIES]``."""
    query, key = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    at = patterns + number.to(tl.int64) * (QUERIES * KEYS) + query[None, :] * KEYS + key[:, None]
    return tl.load(at).to(tl.int32)


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
    order, edges, lookups, tile, pattern, run_edges, run_row, run_start, run_stop, patterns,
    lines, heads, steps, table_rows, scale,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output and the logarithm (base 2) of each query's sum of weights, for a tile of queries."""
    program = tl.program_id(0)
    line = tl.load(order + program % lines)
    number = program // lines
    clip, head = (number // heads).to(tl.int64), (number % heads).to(tl.int64)
    key += clip * key_b + head * key_h
    value += clip * value_b + head * value_h
    table += head * table_rows
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
    for n in range(tl.load(lookups + line), tl.load(edges + line + 1)):
        at = tl.load(tile + n) * KEYS
        keys = _rows(key, at, key_s, steps, KEYS, HEAD, WIDTH, False)
        rows = _pattern(patterns, tl.load(pattern + n), QUERIES, KEYS)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale + tl.load(table + rows)
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
    order, edges, lookups, tile, pattern, run_edges, run_row, run_start, run_stop, patterns, row_edges, row_list,
    lines, heads, steps, table_rows, scale, score_scale,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries, and this tile's share in the gradient of the head's bias table.

    Each program adds to rows of its own, from one thread in the order of its list: no two programs wait for each other,
    and the sums are the same in every run.
    """
    program = tl.program_id(0)
    line = tl.load(order + program % lines)
    number = program // lines
    clip, head = (number // heads).to(tl.int64), (number % heads).to(tl.int64)
    key += clip * key_b + head * key_h
    value += clip * value_b + head * value_h
    table += head * table_rows
    grad_table += (number.to(tl.int64) * lines + line) * table_rows
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
        tl.atomic_add(grad_table + row, tl.sum(sums, 0), sem="relaxed")
    for n in range(tl.load(lookups + line), tl.load(edges + line + 1)):
        at = tl.load(tile + n) * KEYS
        number_of_pattern = tl.load(pattern + n)
        keys = _rows(key, at, key_s, steps, KEYS, HEAD, WIDTH, False)
        values = _rows(value, at, value_s, steps, KEYS, HEAD, WIDTH, False)
        rows = _pattern(patterns, number_of_pattern, QUERIES, KEYS)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale + tl.load(table + rows)
        weights = tl.exp2(scores - logarithms[:, None])
        changes = tl.dot(slopes, tl.trans(values), input_precision=PRECISION)
        grad_scores = weights * (changes - levels[:, None])
        result = tl.dot(grad_scores.to(keys.dtype), keys, result, input_precision=PRECISION)
        for m in range(tl.load(row_edges + number_of_pattern), tl.load(row_edges + number_of_pattern + 1)):
            row = tl.load(row_list + m)
            share = tl.sum(tl.sum(tl.where(rows == row, grad_scores, 0.0), 1), 0)
            tl.atomic_add(grad_table + row, share, sem="relaxed")
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
    order, edges, lookups, tile, pattern, run_edges, run_row, run_start, run_stop, patterns,
    lines, heads, steps, table_rows, scale, score_scale,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and of its values; the lists hold tiles of queries."""
    program = tl.program_id(0)
    line = tl.load(order + program % lines)
    number = program // lines
    clip, head = (number // heads).to(tl.int64), (number % heads).to(tl.int64)
    query += clip * query_b + head * query_h
    gradient += clip * gradient_b + head * gradient_h
    logarithm += number.to(tl.int64) * steps
    level += number.to(tl.int64) * steps
    table += head * table_rows
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
    for n in range(tl.load(lookups + line), tl.load(edges + line + 1)):
        at = tl.load(tile + n) * QUERIES
        step = at + tl.arange(0, QUERIES)
        queries = _rows(query, at, query_s, steps, QUERIES, HEAD, WIDTH, False)
        slopes = _rows(gradient, at, gradient_s, steps, QUERIES, HEAD, WIDTH, False)
        logarithms = tl.load(logarithm + step, mask=step < steps, other=float("inf"))
        levels = tl.load(level + step, mask=step < steps, other=0.0)
        rows = _pattern_by_key(patterns, tl.load(pattern + n), QUERIES, KEYS)
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * scale + tl.load(table + rows)
        grad_keys, grad_values = _collect(
            scores, logarithms, queries, values, slopes, levels, grad_keys, grad_values, PRECISION
        )
    offset = clip * grad_b + head * grad_h
    _store_rows(grad_key + offset, first, grad_s, steps, grad_keys * score_scale, KEYS, HEAD, WIDTH)
    _store_rows(grad_value + offset, first, grad_s, steps, grad_values, KEYS, HEAD, WIDTH)
