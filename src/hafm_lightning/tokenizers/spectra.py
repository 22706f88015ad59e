"""Spectra for the offline tokenizers: framing, mel and chroma filters, and the inverse by Griffin-Lim.

Frame ``t`` is centred on the samples ``[t * hop, (t + 1) * hop)`` and the clip is padded with silence, so ``L`` samples
give exactly ``L / hop`` frames. Analysis runs in float64: a token is a comparison, whose result must not depend on the
batch, the number of threads or the machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, so that the rounding of sums does not depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def hann(length: int) -> Tensor:
    """Periodic Hann window, float64 ``[length]``."""
    return torch.hann_window(length, periodic=True, dtype=torch.float64)


def frame(audio: Tensor, window: int, hop: int) -> Tensor:
    """``[L]`` -> overlapping frames ``[L / hop, window]``, each centred on its hop; silence beyond the ends."""
    before = (window - hop) // 2
    padded = torch.nn.functional.pad(audio, (before, window - hop - before))
    return padded.unfold(0, window, hop)


def magnitudes(audio: Tensor, window: int, hop: int) -> Tensor:
    """Magnitude spectrum of ``audio [L]``: float64 ``[L / hop, window / 2 + 1]``; a full-scale sine peaks at 1."""
    shape = hann(window)
    spectrum: Tensor = torch.fft.rfft(frame(audio.double(), window, hop) * (shape * (2 / shape.sum())))
    return spectrum.abs()


def mel_filters(sample_rate_hz: int, window: int, bands: int, low_hz: float, high_hz: float) -> Tensor:
    """Triangular filters, equally spaced in HTK's mel scale: float64 ``[bands, window / 2 + 1]``, each summing to 1.

    A filter narrower than the spacing of the spectrum's bins is widened to that spacing, so that none is empty.
    """
    bins_hz = torch.arange(window // 2 + 1, dtype=torch.float64) * (sample_rate_hz / window)
    low, high = (1127.0 * torch.log1p(torch.tensor([low_hz, high_hz], dtype=torch.float64) / 700.0)).tolist()
    edges_hz = 700.0 * torch.expm1(torch.linspace(low, high, bands + 2, dtype=torch.float64) / 1127.0)
    centre, spacing = edges_hz[1:-1, None], sample_rate_hz / window
    lower = torch.minimum(edges_hz[:-2, None], centre - spacing)
    upper = torch.maximum(edges_hz[2:, None], centre + spacing)
    rising, falling = (bins_hz - lower) / (centre - lower), (upper - bins_hz) / (upper - centre)
    filters = torch.minimum(rising, falling).clamp(min=0)
    return filters / filters.sum(dim=1, keepdim=True)


def chroma_filters(sample_rate_hz: int, window: int, low_hz: float, high_hz: float) -> Tensor:
    """Weight of each spectrum bin in each pitch class (C = 0, A4 = 440 Hz): float64 ``[12, window / 2 + 1]``.

    It falls linearly to 0 at a distance of a semitone, and is 0 outside ``low_hz..high_hz``.
    """
    bins_hz = torch.arange(window // 2 + 1, dtype=torch.float64) * (sample_rate_hz / window)
    inside = (bins_hz >= low_hz) & (bins_hz <= high_hz)
    midi = 69 + 12 * torch.log2(bins_hz.clamp(min=1.0) / 440.0)
    distance = (midi[None, :] - torch.arange(12, dtype=torch.float64)[:, None] + 6) % 12 - 6
    return (1 - distance.abs()).clamp(min=0) * inside


def cosine_transform(size: int, coefficients: int) -> Tensor:
    """Orthonormal DCT-II: float64 ``[coefficients, size]``."""
    angle = math.pi / size * (torch.arange(size, dtype=torch.float64) + 0.5)
    basis = torch.cos(torch.arange(coefficients, dtype=torch.float64)[:, None] * angle) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Sum of frames ``[T, R * hop]`` placed ``hop`` apart, without the padding of :func:`frame`: ``[T * hop]``."""
    count, window = frames.shape
    rows = window // hop
    total = frames.new_zeros(count + rows - 1, hop)
    for row, part in enumerate(frames.view(count, rows, hop).unbind(1)):
        total[row : row + count] += part
    before = (window - hop) // 2
    return total.view(-1)[before : before + count * hop]


def griffin_lim(target: Tensor, hop: int, iterations: int, seed: int, momentum: float = 0.99) -> Tensor:
    """Sound float32 ``[T * hop]`` whose :func:`magnitudes` come near ``target [T, window / 2 + 1]``.

    The window is a multiple of ``hop``, the first phases are drawn from ``seed``, ``momentum`` 0 is plain Griffin-Lim.
    Source: Perraudin, Balazs and Sondergaard, "A fast Griffin-Lim algorithm", WASPAA 2013.
    """
    window = 2 * (target.shape[1] - 1)
    target = target.float()
    shape = hann(window).float()
    scale = shape * (2 / shape.sum())
    ones = torch.ones(target.shape[0], 1, dtype=torch.float32) * (scale * scale)
    # Near the ends fewer windows overlap; the floor avoids a division by almost 0.
    norm = overlap_add(ones, hop)
    norm = norm.clamp(min=float(norm.max()) * 1e-3)

    def sound(spectrum: Tensor) -> Tensor:
        return overlap_add(torch.fft.irfft(spectrum, n=window) * scale, hop) / norm

    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(target.shape, generator=generator, dtype=torch.float32) * (2 * math.pi)
    spectrum = torch.polar(target, phase)
    previous = torch.zeros_like(spectrum)
    for _ in range(iterations):
        consistent = torch.fft.rfft(frame(sound(spectrum), window, hop) * scale)
        spectrum = consistent + momentum * (consistent - previous)
        previous = consistent
        spectrum = target * spectrum / spectrum.abs().clamp(min=1e-12)
    return sound(spectrum)
