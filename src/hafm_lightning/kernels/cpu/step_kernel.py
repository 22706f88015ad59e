"""One decoding step of a whole backbone as one compiled function, for CPUs.

With one or two rows, PyTorch spends most of a step on starting some three hundred small operations and on waking its
threads for each. Here the layers run inside one function that Numba compiles for the processor at hand: for some ten
seconds, once for each precision. Choices:

* threads start once a step and meet at counters in memory, which costs far less than starting them for each product;
* weights are read in the precision that they are kept in and widened to float32 on the way; all sums are float32;
* every sum is made in the same order whatever the number of threads, so that a seed gives the same take.

Imported only where it is used: Numba is slow to import.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from hafm_lightning.kernels.cpu import step_tiles as tiles

OUTPUTS_AT_ONCE = 16
"""Outputs of a matrix product that are handed to a thread together; the gates' width must be a multiple of this."""
PHASES = 5
"""Times in a layer that all threads wait for each other."""
TILES_CHECKSUM = 3003498323
"""CRC-32 of `step_tiles.py` and `vector_code.py`: Numba compiles again when the text of this file alone changes."""
SUMS_MAY_BE_REORDERED = {"reassoc", "contract", "nsz", "arcp"}
"""What vector instructions need; infinities stay what they are."""

_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LEAST_EXPONENT = np.float32(-87.0)
_E0, _E1, _E2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E3, _E4, _E5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_SQRT_HALF = np.float32(0.70710678118654752)
_A0, _A1, _A2 = np.float32(0.3275911), np.float32(0.254829592), np.float32(-0.284496736)
_A3, _A4, _A5 = np.float32(1.421413741), np.float32(-1.453152027), np.float32(1.061405429)


@njit(fastmath=SUMS_MAY_BE_REORDERED, inline="always")
def _exponential(v: Any) -> Any:
    """e^v for v <= 0 in float32, by Cephes' polynomial: vectorises, unlike a call of the C library."""
    v = max(v, _LEAST_EXPONENT)
    n = np.floor(v * _LOG2_E + _HALF)
    r = v - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    power = np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * r * r + r + _ONE) * power


@njit(fastmath=SUMS_MAY_BE_REORDERED)
def _normalise(x: Any, least: Any, out: Any) -> None:
    """``x / sqrt(|x|^2 + least)`` of each row."""
    for row in range(x.shape[0]):
        total = _ZERO
        for i in range(x.shape[1]):
            total += x[row, i] * x[row, i]
        factor = _ONE / np.sqrt(total + least)
        for i in range(x.shape[1]):
            out[row, i] = x[row, i] * factor


@njit(fastmath=SUMS_MAY_BE_REORDERED)
def _multiply(parts: Any, layer: Any, block: Any, x: Any, out: Any, keep: Any) -> None:
    """A block of outputs: ``x @ weights.T * factors + biases``, added to what is there with ``keep``."""
    rows, (weights, factors, biases) = x.shape[0], parts
    last = min((block + 1) * OUTPUTS_AT_ONCE, out.shape[1]) // tiles.OUTPUTS_IN_TILE
    for group in range(block * OUTPUTS_AT_ONCE // tiles.OUTPUTS_IN_TILE, last):
        for row in range(0, rows - 1, 2):
            tiles.multiply_two_rows(weights, factors, biases, layer, group, x, row, out, keep)
        if rows % 2:
            tiles.multiply_one_row(weights, factors, biases, layer, group, x, rows - 1, out, keep)


@njit(fastmath=SUMS_MAY_BE_REORDERED)
def _gate(inner: Any, block: Any, out: Any) -> None:
    """A block of ``value * gelu(gate)`` from ``inner [rows, 2 I]``, values before gates."""
    width = out.shape[1]
    first = block * OUTPUTS_AT_ONCE
    for row in range(out.shape[0]):
        for n in range(first, min(first + OUTPUTS_AT_ONCE, width)):
            gate = inner[row, width + n]
            # the error function is Abramowitz and Stegun's 7.1.26, which is off by 1.5e-7 at most
            v = abs(gate) * _SQRT_HALF
            t = _ONE / (_ONE + _A0 * v)
            tail = ((((_A5 * t + _A4) * t + _A3) * t + _A2) * t + _A1) * t * _exponential(-v * v)
            upper = _ONE - _HALF * tail  # the normal distribution at |gate|
            out[row, n] = inner[row, n] * gate * (upper if gate > _ZERO else _ONE - upper)


@njit(fastmath=SUMS_MAY_BE_REORDERED)
def _score(query: Any, keys: Any, bias: Any, head: Any, steps: Any, scores: Any) -> Any:
    """``keys @ query + bias`` of the first ``steps`` steps into ``scores``; the largest of them."""
    whole = steps // tiles.STEPS_AT_ONCE * tiles.STEPS_AT_ONCE
    for step in range(0, whole, tiles.STEPS_AT_ONCE):
        tiles.score_steps(query, keys, bias, head, step, scores)
    for step in range(whole, steps):
        total = _ZERO
        for i in range(keys.shape[1]):
            total += tiles.widen(keys[step, i]) * query[i]
        scores[step] = total + bias[head, step]
    largest = scores[0]
    for step in range(1, steps):
        largest = max(largest, scores[step])
    return largest


@njit(fastmath=SUMS_MAY_BE_REORDERED)
def _mix(scores: Any, values: Any, steps: Any, factor: Any, out: Any) -> None:
    """``scores @ values * factor`` of the first ``steps`` steps."""
    for i in range(out.shape[0]):
        out[i] = _ZERO
    whole = steps // tiles.STEPS_AT_ONCE * tiles.STEPS_AT_ONCE
    for step in range(0, whole, tiles.STEPS_AT_ONCE):
        tiles.mix_steps(scores, values, step, out)
    for step in range(whole, steps):
        for i in range(out.shape[0]):
            out[i] += scores[step] * tiles.widen(values[step, i])
    for i in range(out.shape[0]):
        out[i] *= factor


@njit(fastmath=SUMS_MAY_BE_REORDERED)
def _attend(
    projected: Any, head: Any, least: Any, factors: Any, keys: Any, values: Any, bias: Any, at: Any,
    scores: Any, mixed: Any,
) -> None:  # fmt: skip
    """One head of one row: store its key and value at step ``at``, and mix the values of all steps up to it.

    ``projected [3 D]`` holds the row's queries, keys and values, ``mixed [D]`` receives the result.
    """
    width, stride = keys.shape[1], mixed.shape[0]
    first = head * width
    for which in range(2):  # query and key are normalised in place
        place = which * stride + first
        total = _ZERO
        for i in range(width):
            total += projected[place + i] * projected[place + i]
        factor = _ONE / np.sqrt(total + least)
        for i in range(width):
            projected[place + i] *= factor * factors[which, i]
    for i in range(width):
        keys[at, i] = tiles.narrow(projected[stride + first + i], keys)
        values[at, i] = tiles.narrow(projected[2 * stride + first + i], values)
    largest = _score(projected[first : first + width], keys, bias, head, at + 1, scores)
    total = _ZERO
    for step in range(at + 1):
        scores[step] = _exponential(scores[step] - largest)
        total += scores[step]
    _mix(scores, values, at + 1, _ONE / total, mixed[first : first + width])


@njit(fastmath=SUMS_MAY_BE_REORDERED, inline="always")
def _blocks(outputs: Any) -> Any:
    return (outputs + OUTPUTS_AT_ONCE - 1) // OUTPUTS_AT_ONCE


@njit(fastmath=SUMS_MAY_BE_REORDERED)
def _run_layers(
    worker: Any, x: Any, project_in: Any, project_out: Any, expand: Any, contract: Any, output_heads: Any,
    head_factors: Any, cache: Any, bias: Any, at: Any, least: Any, wanted: Any, logits: Any, spaces: Any,
    taken: Any, done: Any,
) -> None:  # fmt: skip
    """What one of the threads does of a step; arguments as :func:`decode_step`'s.

    Each of the five phases of a layer, and the output heads at the end, is a number of items in as many shares as there
    are threads. A thread takes the items of its own share, then those that others have left, and waits until all are
    done. So a phase ends even if some threads never come, and one that comes late finds nothing to do.
    """
    every_normed, projected, mixed, inner, gated, scores = spaces
    normed, rows, heads, workers = every_normed[worker], x.shape[0], bias.shape[0], taken.shape[1]
    gates, outputs = _blocks(gated.shape[1]), _blocks(x.shape[1])
    items_of = (_blocks(projected.shape[1]), rows * heads, outputs, gates, outputs, wanted[1] - wanted[0])
    for phase in range(taken.shape[0]):
        layer, kind = phase // PHASES, phase % PHASES
        if layer == head_factors.shape[0]:
            kind = PHASES  # the output heads
        if kind == 0 or kind == 3 or kind == PHASES:  # by each thread for itself
            # used only if items are left, that is if x is complete
            _normalise(x, least[0], normed)
        items, finished = items_of[kind], 0
        for turn in range(workers):
            share = (worker + turn) % workers
            first, end = items * share // workers, items * (share + 1) // workers
            while True:
                item = first + tiles.add_to(taken, phase, share, 1)
                if item >= end:
                    break
                if kind == 0:
                    _multiply(project_in, layer, item, normed, projected, False)
                elif kind == 1:
                    row, head = item // heads, item % heads
                    _attend(
                        projected[row], head, least[1], head_factors[layer], cache[layer, 0, row, head],
                        cache[layer, 1, row, head], bias, at, scores[item], mixed[row],
                    )  # fmt: skip
                elif kind == 2:
                    _multiply(project_out, layer, item, mixed, x, True)
                elif kind == 3:
                    _multiply(expand, layer, item, normed, inner, False)
                    _multiply(expand, layer, gates + item, normed, inner, False)
                    _gate(inner, item, gated)
                elif kind == 4:
                    _multiply(contract, layer, item, gated, x, True)
                else:
                    _multiply(output_heads, 0, wanted[0] + item, normed, logits, False)
                finished += 1
        count = tiles.add_to(done, phase, 0, finished) + finished
        while count < items:
            tiles.pause()
            count = tiles.add_to(done, phase, 0, 0)


@njit(fastmath=SUMS_MAY_BE_REORDERED, parallel=True, nogil=True, cache=True)
def decode_step(
    x: Any,  # [rows, D], overwritten by what the last layer gives
    project_in: Any,  # weights of all layers as `tiled` gives them, factors [layers, out] and biases [layers, out]
    project_out: Any,
    expand: Any,
    contract: Any,
    output_heads: Any,  # the same of the output heads, as one layer
    head_factors: Any,  # [layers, 2, d]
    cache: Any,  # float32, or bf16 as its 16 bits, [layers, 2, rows, H, capacity, d]
    bias: Any,  # [H, at + 1]
    at: Any,  # step that is written
    least: Any,  # (D, d) times epsilon
    wanted: Any,  # first block of the output heads that is computed, and the block after the last one
    logits: Any,  # [rows, outputs of all heads], of which those blocks receive the result
    spaces: Any,  # work space: [threads, rows, D], [rows, 3 D], [rows, D], [rows, 2 I], [rows, I], [rows H, at + 1]
    taken: Any,  # zeros int64 [phases + 1, threads, 8] and [.., 1, 8]: counters, each in a cache line of its own
    done: Any,
) -> None:
    """All layers, the final norm and output heads for one step of a few rows."""
    for worker in prange(taken.shape[1]):
        _run_layers(
            worker, x, project_in, project_out, expand, contract, output_heads, head_factors, cache, bias, at, least,
            wanted, logits, spaces, taken, done,
        )  # fmt: skip
