"""The log-mel front end of VGGish, the two ways in use to cut its patches, and the embedding ``logmel``.

Recipe: 16 kHz mono; frames of 400 samples every 160 (25 ms every 10 ms), no padding at the ends; periodic Hann window;
512-point FFT; **magnitude**, not power; 64 triangles, straight-sided on the HTK mel scale, between 125 and 7500 Hz;
``log(x + 0.01)``; patches of 96 frames. Two framings exist, and their numbers cannot be compared:

* ``contiguous``: the frames of the whole clip are cut in patches of 0.96 s without overlap (10 s: 10 rows).
* ``google``: the waveform is divided by its peak (by 0.1 where that is less), then cut in windows of 1 s every 0.5 s,
  and the first 96 frames of each are its patch (10 s: 19 rows), as the program of the FAD paper does.

Sources: Hershey et al., *CNN architectures for large-scale audio classification* (arXiv 1609.09430); Kilgour et al.,
*Frechet Audio Distance* (arXiv 1812.08466).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.tokenizers.spectra import cosine_transform, hann

RATE_HZ = 16000
FRAME_SAMPLES, HOP_SAMPLES, FFT_SAMPLES = 400, 160, 512
BANDS, LOW_HZ, HIGH_HZ = 64, 125.0, 7500.0
LOG_OFFSET = 0.01
PATCH_FRAMES = 96
FRAMINGS = ("contiguous", "google")
GOOGLE_WINDOW_S, GOOGLE_HOP_S = 1.0, 0.5
TIME_COEFFICIENTS, BAND_COEFFICIENTS = 8, 16
"""Coefficients of ``logmel``, over time (up to 3.6 Hz) and over mel bands."""


def mel_weights() -> Tensor:
    """Matrix ``[257, 64]`` (float64) from FFT magnitudes to mel bands; the bin at 0 Hz belongs to none."""
    bins_hz = torch.linspace(0, RATE_HZ / 2, FFT_SAMPLES // 2 + 1, dtype=torch.float64)
    limits_hz = torch.tensor([LOW_HZ, HIGH_HZ], dtype=torch.float64)
    bins_mel, limits = (1127.0 * torch.log1p(hz / 700.0) for hz in (bins_hz, limits_hz))  # HTK's mel scale
    low, high = limits.tolist()
    edges = torch.linspace(low, high, BANDS + 2, dtype=torch.float64)
    rising = (bins_mel[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])  # [257, 64]
    falling = (edges[2:] - bins_mel[:, None]) / (edges[2:] - edges[1:-1])
    weights = torch.minimum(rising, falling).clamp_min(0.0)
    weights[0] = 0.0
    return weights


def log_mel(audio: Tensor) -> Tensor:
    """Waveforms ``[..., L]`` at 16 kHz -> log-mel frames float32 ``[..., T, 64]``, ``T = 1 + (L - 400) // 160``.

    Raises:
        ValueError: Fewer samples than one frame.
    """
    if audio.shape[-1] < FRAME_SAMPLES:
        raise ValueError(f"the log-mel front end needs at least {FRAME_SAMPLES} samples, got {audio.shape[-1]}")
    frames = audio.to(torch.float64).unfold(-1, FRAME_SAMPLES, HOP_SAMPLES)  # [..., T, 400]
    window = hann(FRAME_SAMPLES).to(audio.device)
    magnitude = torch.fft.rfft(frames * window, n=FFT_SAMPLES).abs()  # [..., T, 257]
    return torch.log(magnitude @ mel_weights().to(audio.device) + LOG_OFFSET).to(torch.float32)


def patches(audio: Tensor, framing: str) -> Tensor:
    """Waveform ``[L]`` at 16 kHz -> patches float32 ``[n, 96, 64]``; what does not fill a last patch is left out.

    Raises:
        ValueError: Less audio than one patch.
    """
    google = framing == "google"
    needed = round(GOOGLE_WINDOW_S * RATE_HZ) if google else FRAME_SAMPLES + (PATCH_FRAMES - 1) * HOP_SAMPLES
    if audio.dim() != 1 or audio.shape[0] < needed:
        raise ValueError(
            f"{framing} framing needs a mono waveform of at least {needed} samples ({math.ceil(needed / 160) / 100} s "
            f"at {RATE_HZ} Hz), got shape {tuple(audio.shape)}"
        )
    if google:
        windows = audio.unfold(0, needed, round(GOOGLE_HOP_S * RATE_HZ))  # [n, 16000]
        return log_mel(windows)[:, :PATCH_FRAMES]
    frames = log_mel(audio)  # [T, 64]
    count = frames.shape[0] // PATCH_FRAMES
    return frames[: count * PATCH_FRAMES].reshape(count, PATCH_FRAMES, BANDS)


def check_framing(framing: str) -> None:
    """ValueError unless ``framing`` is one of :data:`FRAMINGS`."""
    if framing not in FRAMINGS:
        raise ValueError(f"unknown framing {framing!r}; choose one of {', '.join(FRAMINGS)}")


def level_of(framing: str) -> str:
    """The level of the clips that belongs to a framing."""
    return "peak" if framing == "google" else "recorded"


class LogMelEmbedding(Embedding):
    """Low 2-D cosine coefficients of VGGish's log-mel patch: 8 over time x 16 over mel = 128.

    It needs no download and no network and ranks recordings by timbre and rhythm; it is **not** VGGish. Coefficients
    are divided by the square root of the patch's size, so that the first is the patch's mean and squared distances are
    in squared nats of magnitude. ``framing``: ``contiguous`` (0.96 s without overlap) or ``google`` (1 s every 0.5 s).
    """

    def __init__(self, framing: str = "contiguous") -> None:
        check_framing(framing)
        settings = {
            "framing": framing,
            "time_coefficients": TIME_COEFFICIENTS,
            "band_coefficients": BAND_COEFFICIENTS,
            "transform": "orthonormal DCT-II of the VGGish log-mel patch / sqrt(its size)",
        }
        width, level = TIME_COEFFICIENTS * BAND_COEFFICIENTS, level_of(framing)
        super().__init__("logmel", RATE_HZ, width, settings, level=level)
        self.framing = framing
        self._over_time = (cosine_transform(PATCH_FRAMES, TIME_COEFFICIENTS) / math.sqrt(PATCH_FRAMES)).float()
        self._over_bands = (cosine_transform(BANDS, BAND_COEFFICIENTS) / math.sqrt(BANDS)).float()

    def clip_rows(self, waveform: Tensor) -> Tensor:
        """Rows ``[n, 128]``; coefficient (time i, band j) is at column ``16 i + j``."""
        log_mels = patches(waveform, self.framing)  # [n, 96, 64]
        return (self._over_time @ log_mels @ self._over_bands.T).flatten(1)
