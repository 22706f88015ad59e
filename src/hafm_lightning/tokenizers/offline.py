"""Tokenizers that need no download: trained in seconds by faiss on the corpus at hand.

Same frame rates, codebooks and shapes as HuBERT with k-means and EnCodec, so that the whole chain runs, and can be
heard, on a machine without weights. These are not the paper's tokens and never presented as such.

Choices:

* Semantic: k-means over MFCCs (what HuBERT's own first iteration was trained on) joined with chroma, so that harmony
  can be read from a token, and with loudness and onset strength, so that rhythm can. Each group is scaled to a stated
  share of the variance that k-means sees.
* Acoustic: log-mel frames, projected on their principal components, through a greedy residual quantizer of 8 codebooks,
  each trained by k-means on what the codebooks before it leave over. So 4 codebooks already carry harmony and rhythm,
  and the other 4 refine them. Back to sound by mel inversion and Griffin-Lim.
* A soft floor under every logarithm: what lies far below the music does not move tokens, be it silence, dither, or the
  noise that preparation adds to vocals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hafm_lightning.audio import RESAMPLER
from hafm_lightning.tokenizers import spectra
from hafm_lightning.tokenizers.base import (
    ACOUSTIC_HOP,
    ACOUSTIC_SAMPLE_RATE_HZ,
    SEMANTIC_HOP,
    SEMANTIC_SAMPLE_RATE_HZ,
    TokenizerIdentity,
    check_audio,
    check_codes,
    check_sha256,
    content_sha256,
    read_arrays,
    read_description,
    whole_frames,
    write_folder,
)
from hafm_lightning.tokenizers.kmeans import FrameSample, assign, train_kmeans
from hafm_lightning.tokens import (
    ACOUSTIC_CODEBOOKS,
    ACOUSTIC_RATE_HZ,
    ACOUSTIC_VOCABULARY,
    SEMANTIC_RATE_HZ,
    SEMANTIC_VOCABULARY,
)

SEMANTIC_KIND = "offline-semantic"
ACOUSTIC_KIND = "offline-acoustic"

SEMANTIC_SETTINGS: Mapping[str, Any] = {
    "front_end": 1,
    "mel_window": 1024,
    "mel_bands": 48,
    "mel_low_hz": 40.0,
    "mel_high_hz": 7600.0,
    "floor": 1e-3,
    "cepstra": 12,
    "chroma_window": 4096,
    "chroma_low_hz": 60.0,
    "chroma_high_hz": 2000.0,
    "chroma_floor": 3e-3,
    "onset_bands": 3,
    "weights": {"cepstra": 0.3, "loudness": 0.15, "onset": 0.2, "chroma": 1.0},
}
"""Settings of the semantic front end; windows in samples at 16 kHz, floors as magnitudes of a full-scale sine."""

ACOUSTIC_SETTINGS: Mapping[str, Any] = {
    "front_end": 1,
    "window": 6 * ACOUSTIC_HOP,
    "mel_bands": 128,
    "mel_low_hz": 30.0,
    "mel_high_hz": 12000.0,
    "floor": 1e-3,
    "components": 64,
}
"""Settings of the acoustic front end; windows in samples at 24 kHz, floors as magnitudes of a full-scale sine."""

SEMANTIC_TRAINING_FRAMES = 60_000
ACOUSTIC_TRAINING_FRAMES = 60_000
ACOUSTIC_ITERATIONS = 8
GRIFFIN_LIM_ITERATIONS = 24


class OfflineSemanticTokenizer:
    """MFCC, chroma, loudness and onset frames at 50 Hz -> one of 500 centroids."""

    def __init__(
        self,
        offset: Tensor,
        scale: Tensor,
        centroids: Tensor,
        settings: Mapping[str, Any] = SEMANTIC_SETTINGS,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        offset: Mean of the raw features, float32 ``[d]``.
        scale: Factor of each centred feature, float32 ``[d]``.
        centroids: Float32 ``[V, d]`` in the scaled space.
        settings: See :data:`SEMANTIC_SETTINGS`.
        report: How the training went, JSON values.
        """
        self._arrays = {"offset": offset.float(), "scale": scale.float(), "centroids": centroids.float()}
        self._front_end = _SemanticFrontEnd(settings)
        self.report = dict(report or {})
        self._identity = TokenizerIdentity(
            kind=SEMANTIC_KIND,
            sha256=content_sha256(self._arrays, settings),
            sample_rate_hz=SEMANTIC_SAMPLE_RATE_HZ,
            rate_hz=SEMANTIC_RATE_HZ,
            codebooks=1,
            vocabulary=len(centroids),
            resampler=RESAMPLER,
            settings=dict(settings),
        )

    @property
    def identity(self) -> TokenizerIdentity:
        """What decides the tokens."""
        return self._identity

    @property
    def centroids(self) -> Tensor:
        """Feature vector of each token, float32 ``[V, d]``."""
        return self._arrays["centroids"]

    @classmethod
    def train(
        cls,
        clips: Iterable[NDArray[np.float32]],
        seed: int = 0,
        *,
        vocabulary: int = SEMANTIC_VOCABULARY,
        max_frames: int = SEMANTIC_TRAINING_FRAMES,
        settings: Mapping[str, Any] = SEMANTIC_SETTINGS,
    ) -> OfflineSemanticTokenizer:
        """Train on mono clips ``[L]`` at 16 kHz: vocals and accompaniments alike, since one tokenizer serves both.

        Args:
            clips: Read once, one at a time; a remainder below one frame is cut off.
            seed: Of the sampled frames and of the first centroids.
            vocabulary: Number of centroids.
            max_frames: At most so many frames are trained on, drawn uniformly from all clips.
            settings: See :data:`SEMANTIC_SETTINGS`.

        Raises:
            RequestError: No clips, fewer frames than centroids, or NaN samples.
        """
        front_end = _SemanticFrontEnd(settings)
        sample = FrameSample(max_frames, seed)
        for clip in clips:
            samples = whole_frames(clip, SEMANTIC_HOP)
            if len(samples):
                sample.add(front_end(samples).float().numpy())
        frames = torch.from_numpy(sample.frames()).double()
        offset = frames.mean(dim=0).float()
        scale = front_end.scales(frames).float()
        points = ((frames - offset) * scale).float().numpy()
        centroids, report = train_kmeans(points, vocabulary, seed=seed)
        notes = {"clips": sample.clips, "frames_seen": sample.seen, "kmeans": report.as_dict()}
        return cls(offset, scale, torch.from_numpy(centroids), settings, notes)

    def features(self, audio: Tensor) -> Tensor:
        """Scaled features of one clip ``[L]``: float64 ``[T, d]``, the space in which centroids live."""
        return (self._front_end(audio) - self._arrays["offset"]) * self._arrays["scale"]

    def encode(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 16 kHz, ``[B, L]`` -> ids int64 ``[B, 1, T]``, ``T = L / 320``."""
        check_audio(self._identity, audio)
        return torch.stack([assign(self.features(clip), self.centroids)[None] for clip in audio.detach().cpu()])

    def save(self, folder: str | Path, *, include_weights: bool = True) -> None:
        """Write the tokenizer to ``folder``, whole or not at all; it is small and always complete."""
        write_folder(folder, self._identity, self._arrays, self.report)

    @classmethod
    def load(cls, folder: str | Path) -> OfflineSemanticTokenizer:
        """The tokenizer kept in ``folder``; RequestError when it is missing, damaged or of another kind."""
        identity, report = read_description(folder, SEMANTIC_KIND)
        tokenizer = cls(
            **read_arrays(folder, {"offset", "scale", "centroids"}), settings=identity.settings, report=report
        )
        check_sha256(folder, identity, tokenizer.identity.sha256)
        return tokenizer


class _SemanticFrontEnd:
    """Raw features of a clip: cepstra, loudness, onset strengths, chroma."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        rate, bands = SEMANTIC_SAMPLE_RATE_HZ, settings["mel_bands"]
        self._mel = spectra.mel_filters(
            rate, settings["mel_window"], bands, settings["mel_low_hz"], settings["mel_high_hz"]
        )
        self._cosines = spectra.cosine_transform(bands, settings["cepstra"] + 1)
        self._chroma = spectra.chroma_filters(
            rate, settings["chroma_window"], settings["chroma_low_hz"], settings["chroma_high_hz"]
        )

    def __call__(self, audio: Tensor) -> Tensor:
        """``[L]`` -> float64 ``[T, d]``."""
        settings = self._settings
        mel = spectra.magnitudes(audio, settings["mel_window"], SEMANTIC_HOP) @ self._mel.T
        log_mel = torch.log(mel + settings["floor"])
        cepstra = log_mel @ self._cosines.T  # [T, 1 + cepstra]; the first is the mean of the bands
        rise = torch.diff(log_mel, dim=0, prepend=log_mel[:1]).clamp(min=0)
        onset = torch.stack([part.mean(dim=1) for part in rise.tensor_split(settings["onset_bands"], dim=1)], dim=1)
        power = spectra.magnitudes(audio, settings["chroma_window"], SEMANTIC_HOP).square() @ self._chroma.T
        chroma = torch.log1p(power / settings["chroma_floor"] ** 2)
        chroma = chroma - chroma.mean(dim=1, keepdim=True)
        return torch.cat((cepstra[:, 1:], cepstra[:, :1], onset, chroma), dim=1)

    def scales(self, frames: Tensor) -> Tensor:
        """Factor of each feature, given raw ``frames [n, d]``: every group gets its weight of the variance.

        Cepstra are scaled one by one (the higher ones are small but tell timbres apart); the features of the other
        groups keep their proportions.
        """
        settings = self._settings
        weights, deviation = settings["weights"], frames.std(dim=0, correction=0).clamp(min=1e-6)
        sizes = {"cepstra": settings["cepstra"], "loudness": 1, "onset": settings["onset_bands"], "chroma": 12}
        parts = []
        for (group, size), part in zip(sizes.items(), torch.split(deviation, list(sizes.values())), strict=True):
            spread = part * math.sqrt(size) if group == "cepstra" else part.norm().expand(size)
            parts.append(math.sqrt(weights[group]) / spread)
        return torch.cat(parts)


class OfflineAcousticTokenizer:
    """Log-mel frames at 75 Hz <-> 8 codebooks of 1024."""

    def __init__(
        self,
        mean: Tensor,
        basis: Tensor,
        codebooks: Tensor,
        settings: Mapping[str, Any] = ACOUSTIC_SETTINGS,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        mean: Mean log-mel frame, float32 ``[M]``.
        basis: Orthonormal rows, the principal components, float32 ``[P, M]``.
        codebooks: Float32 ``[K, V, P]``.
        settings: See :data:`ACOUSTIC_SETTINGS`.
        report: How the training went, JSON values.
        """
        self._arrays = {"mean": mean.float(), "basis": basis.float(), "codebooks": codebooks.float()}
        self._front_end = _AcousticFrontEnd(settings)
        self.report = dict(report or {})
        self._identity = TokenizerIdentity(
            kind=ACOUSTIC_KIND,
            sha256=content_sha256(self._arrays, settings),
            sample_rate_hz=ACOUSTIC_SAMPLE_RATE_HZ,
            rate_hz=ACOUSTIC_RATE_HZ,
            codebooks=codebooks.shape[0],
            vocabulary=codebooks.shape[1],
            resampler=RESAMPLER,
            settings=dict(settings),
        )

    @property
    def identity(self) -> TokenizerIdentity:
        """What decides the tokens."""
        return self._identity

    @classmethod
    def train(
        cls,
        clips: Iterable[NDArray[np.float32]],
        seed: int = 0,
        *,
        codebooks: int = ACOUSTIC_CODEBOOKS,
        vocabulary: int = ACOUSTIC_VOCABULARY,
        max_frames: int = ACOUSTIC_TRAINING_FRAMES,
        settings: Mapping[str, Any] = ACOUSTIC_SETTINGS,
    ) -> OfflineAcousticTokenizer:
        """Train on mono clips ``[L]`` of accompaniments at 24 kHz.

        Args:
            clips: Read once, one at a time; a remainder below one frame is cut off.
            seed: Of the sampled frames and of the first centroids.
            codebooks: Number of codebooks, ``K``.
            vocabulary: Entries a codebook, ``V``.
            max_frames: At most so many frames are trained on, drawn uniformly from all clips.
            settings: See :data:`ACOUSTIC_SETTINGS`.

        Raises:
            RequestError: No clips, fewer frames than entries, or NaN samples.
        """
        front_end = _AcousticFrontEnd(settings)
        sample = FrameSample(max_frames, seed)
        for clip in clips:
            samples = whole_frames(clip, ACOUSTIC_HOP)
            if len(samples):
                sample.add(front_end(samples).float().numpy())
        frames = torch.from_numpy(sample.frames()).double()
        mean = frames.mean(dim=0)
        centred = frames - mean
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        basis = vectors.T.flip(0)[: settings["components"]]
        # An eigenvector's sign is arbitrary: make its largest entry positive.
        basis = basis * basis.gather(1, basis.abs().argmax(dim=1, keepdim=True)).sign()
        residual = (centred @ basis.T).float()
        books, reports = [], []
        for level in range(codebooks):
            book, report = train_kmeans(residual.numpy(), vocabulary, seed=seed + level, iterations=ACOUSTIC_ITERATIONS)
            books.append(torch.from_numpy(book))
            residual = residual - books[-1][assign(residual, books[-1])]
            reports.append(report.as_dict())
        kept = 1 - float((centred - centred @ basis.T @ basis).square().sum() / centred.square().sum())
        notes = {"clips": sample.clips, "frames_seen": sample.seen, "variance_kept": kept, "kmeans": reports}
        return cls(mean, basis, torch.stack(books), settings, notes)

    def encode(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 24 kHz, ``[B, L]`` -> ids int64 ``[B, 8, T]``, ``T = L / 320``."""
        check_audio(self._identity, audio)
        return torch.stack([self._encode_clip(clip) for clip in audio.detach().cpu()])

    def _encode_clip(self, audio: Tensor) -> Tensor:
        residual = (self._front_end(audio) - self._arrays["mean"]) @ self._arrays["basis"].double().T
        ids = []
        for book in self._arrays["codebooks"]:
            ids.append(assign(residual, book))
            residual = residual - book[ids[-1]]
        return torch.stack(ids)

    def log_mel(self, audio: Tensor) -> Tensor:
        """Log-mel frames of one clip ``[L]``: float64 ``[T, M]``."""
        return self._front_end(audio)

    def decode_log_mel(self, codes: Tensor) -> Tensor:
        """Log-mel frames that codes ``[k, T]`` stand for: float64 ``[T, M]``."""
        books = self._arrays["codebooks"].double()
        components = torch.stack([books[level][ids] for level, ids in enumerate(codes)]).sum(dim=0)
        return components @ self._arrays["basis"].double() + self._arrays["mean"]

    def decode(self, codes: Tensor) -> Tensor:
        """Ids int64 ``[B, k, T]`` of the first ``k`` codebooks -> float32 ``[B, T * 320]`` at 24 kHz."""
        check_codes(self._identity, codes)
        return torch.stack([self._front_end.sound(self.decode_log_mel(clip)) for clip in codes.detach().cpu()])

    def save(self, folder: str | Path, *, include_weights: bool = True) -> None:
        """Write the tokenizer to ``folder``, whole or not at all; it is small and always complete."""
        write_folder(folder, self._identity, self._arrays, self.report)

    @classmethod
    def load(cls, folder: str | Path) -> OfflineAcousticTokenizer:
        """The tokenizer kept in ``folder``; RequestError when it is missing, damaged or of another kind."""
        identity, report = read_description(folder, ACOUSTIC_KIND)
        tokenizer = cls(
            **read_arrays(folder, {"mean", "basis", "codebooks"}), settings=identity.settings, report=report
        )
        check_sha256(folder, identity, tokenizer.identity.sha256)
        return tokenizer


class _AcousticFrontEnd:
    """Log-mel frames of a clip, and back."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._window, self._floor = settings["window"], settings["floor"]
        self._mel = spectra.mel_filters(
            ACOUSTIC_SAMPLE_RATE_HZ,
            self._window,
            settings["mel_bands"],
            settings["mel_low_hz"],
            settings["mel_high_hz"],
        )
        # Each bin takes the mean of the bands that it contributes to, weighted by how much it does.
        self._spread = self._mel / self._mel.sum(dim=0, keepdim=True).clamp(min=1e-12)

    def __call__(self, audio: Tensor) -> Tensor:
        """``[L]`` -> float64 ``[T, M]``."""
        return torch.log(spectra.magnitudes(audio, self._window, ACOUSTIC_HOP) @ self._mel.T + self._floor)

    def sound(self, log_mel: Tensor) -> Tensor:
        """Inverse of the call, as far as there is one: ``[T, M]`` -> float32 ``[T * 320]``."""
        mel = (log_mel.exp() - self._floor).clamp(min=0)
        return spectra.griffin_lim(mel @ self._spread, ACOUSTIC_HOP, GRIFFIN_LIM_ITERATIONS, seed=0)
