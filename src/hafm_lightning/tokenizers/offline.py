"""Tokenizers that need no download: trained in seconds by faiss on the corpus at hand.

Same frame rates, codebooks and shapes as HuBERT with k-means and EnCodec, so that the whole chain runs and sounds on a
machine without weights. These are not the paper's tokens and never presented as such.

Choices:

* Semantic: k-means over MFCCs (what HuBERT's own first iteration was trained on) joined with chroma, loudness and onset
  strength (:class:`~hafm_lightning.tokenizers.frontends.SemanticFrontEnd`), each group scaled to a stated share of the
  variance that k-means sees.
* Acoustic: log-mel frames, projected on their principal components, through a greedy residual quantizer: each codebook
  is trained by k-means on what the ones before it leave over. So 4 codebooks already carry harmony and rhythm, and the
  other 4 refine them. Back to sound by mel inversion and Griffin-Lim.
* Tokens are decided in float64, clip by clip, on one thread: neither the batch nor the number of threads shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hafm_lightning.tokenizers import spectra
from hafm_lightning.tokenizers.base import (
    ACOUSTIC_HOP,
    SEMANTIC_HOP,
    TokenizerIdentity,
    check_audio,
    check_codes,
    check_sha256,
    content_sha256,
    read_arrays,
    read_description,
    whole_clips,
    write_folder,
)
from hafm_lightning.tokenizers.frontends import (
    AcousticFrontEnd,
    AcousticSettings,
    SemanticFrontEnd,
    SemanticSettings,
    settings_as_dict,
    settings_from_dict,
)
from hafm_lightning.tokenizers.kmeans import assign, check_enough, sample_frames, train_kmeans
from hafm_lightning.tokens import ACOUSTIC_CODEBOOKS, ACOUSTIC_VOCABULARY, SEMANTIC_VOCABULARY

SEMANTIC_KIND = "offline-semantic"
ACOUSTIC_KIND = "offline-acoustic"

TRAINING_FRAMES = 60_000
"""Most frames on which centroids and codebooks are trained."""
SILENT_SHARE = 50
"""Frames of sound for each frame of silence in the training data; silence must sound silent after any corpus."""
ACOUSTIC_ITERATIONS = 8
"""Lloyd iterations a codebook; there are eight of them, and each corrects the one before."""


class _OfflineTokenizer:
    """Arrays, identity and report of an offline tokenizer, and their folder.

    Attributes:
        identity: What decides the tokens.
        context_s: Seconds on each side of a frame's centre on which its tokens depend.
        report: How the training went, JSON values.
    """

    identity: TokenizerIdentity
    context_s: float
    report: dict[str, Any]
    _arrays: dict[str, Tensor]

    def save(self, folder: str | Path, *, include_weights: bool = True) -> None:
        """Write the tokenizer to ``folder``, whole or not at all; it is small and always complete."""
        write_folder(folder, self.identity, self._arrays, self.report)


class OfflineSemanticTokenizer(_OfflineTokenizer):
    """MFCC, loudness, onset and chroma frames at 50 Hz -> one of 500 centroids.

    Attributes:
        centroids: Feature vector of each token, float32 ``[V, d]``.
    """

    def __init__(
        self,
        offset: Tensor,
        scale: Tensor,
        centroids: Tensor,
        settings: SemanticSettings | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        offset: Mean of the raw features, float32 ``[d]``.
        scale: Factor of each centred feature, float32 ``[d]``.
        centroids: Float32 ``[V, d]`` in the scaled space.
        settings: The front end's; None is the default.
        report: How the training went, JSON values.
        """
        settings = SemanticSettings() if settings is None else settings
        self.centroids = centroids.float()
        self._arrays = {"offset": offset.float(), "scale": scale.float(), "centroids": self.centroids}
        self._front_end = SemanticFrontEnd(settings)
        self.context_s, self.report = self._front_end.context_s, dict(report or {})
        values = settings_as_dict(settings)
        sha256 = content_sha256(self._arrays, values)
        self.identity = TokenizerIdentity.semantic(SEMANTIC_KIND, sha256, len(centroids), values)

    @classmethod
    def train(
        cls,
        clips: Iterable[NDArray[np.float32]],
        seed: int = 0,
        *,
        vocabulary: int = SEMANTIC_VOCABULARY,
        max_frames: int = TRAINING_FRAMES,
        settings: SemanticSettings | None = None,
    ) -> OfflineSemanticTokenizer:
        """Train on mono clips ``[L]`` at 16 kHz: vocals and accompaniments alike, since one tokenizer serves both.

        Args:
            clips: Read once, one at a time; a remainder below one frame is cut off.
            seed: Of the sampled frames and of the first centroids.
            vocabulary: Number of centroids.
            max_frames: Most frames to train on, drawn uniformly from all clips.
            settings: The front end's; None is the default.

        Raises:
            RequestError: No clips, fewer frames than centroids, or NaN samples.
        """
        front_end = SemanticFrontEnd(SemanticSettings() if settings is None else settings)
        frames_of_clips = (_frames(front_end, samples) for samples in whole_clips(clips, SEMANTIC_HOP))
        sample = sample_frames(frames_of_clips, max_frames, seed)
        frames = torch.from_numpy(sample.frames()).double()
        with spectra.one_thread():
            offset, scale = frames.mean(dim=0).float(), front_end.scales(frames).float()
        centroids, report = train_kmeans(((frames - offset) * scale).float().numpy(), vocabulary, seed=seed)
        notes = {"clips": sample.clips, "frames_seen": sample.seen, "kmeans": asdict(report)}
        return cls(offset, scale, torch.from_numpy(centroids), front_end.settings, notes)

    def features(self, audio: Tensor) -> Tensor:
        """Scaled features of one clip ``[L]``: float64 ``[T, d]``, the space in which centroids live."""
        return (self._front_end(audio) - self._arrays["offset"]) * self._arrays["scale"]

    def encode(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 16 kHz, ``[B, L]`` -> ids int64 ``[B, 1, T]``, ``T = L / 320``."""
        check_audio(self.identity, audio)
        with spectra.one_thread():
            return torch.stack([assign(self.features(clip), self.centroids)[None] for clip in audio.detach().cpu()])

    @classmethod
    def load(cls, folder: str | Path) -> OfflineSemanticTokenizer:
        """The tokenizer saved in ``folder``; RequestError when it is missing, damaged or of another kind."""
        identity, report = read_description(folder, SEMANTIC_KIND)
        settings = settings_from_dict(SemanticSettings, identity.settings)
        tokenizer = cls(**read_arrays(folder, {"offset", "scale", "centroids"}), settings=settings, report=report)
        check_sha256(folder, identity, tokenizer.identity.sha256)
        return tokenizer


class OfflineAcousticTokenizer(_OfflineTokenizer):
    """Log-mel frames at 75 Hz <-> 8 codebooks of 1024."""

    def __init__(
        self,
        mean: Tensor,
        basis: Tensor,
        codebooks: Tensor,
        settings: AcousticSettings | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        mean: Mean log-mel frame, float32 ``[M]``.
        basis: Orthonormal rows, the principal components, float32 ``[P, M]``.
        codebooks: Float32 ``[K, V, P]``.
        settings: The front end's; None is the default.
        report: How the training went, JSON values.
        """
        settings = AcousticSettings() if settings is None else settings
        self._arrays = {"mean": mean.float(), "basis": basis.float(), "codebooks": codebooks.float()}
        self._front_end = AcousticFrontEnd(settings)
        self.context_s, self.report = self._front_end.context_s, dict(report or {})
        values = settings_as_dict(settings)
        sha256 = content_sha256(self._arrays, values)
        count, vocabulary, _ = codebooks.shape
        self.identity = TokenizerIdentity.acoustic(ACOUSTIC_KIND, sha256, count, vocabulary, values)

    @classmethod
    def train(
        cls,
        clips: Iterable[NDArray[np.float32]],
        seed: int = 0,
        *,
        codebooks: int = ACOUSTIC_CODEBOOKS,
        vocabulary: int = ACOUSTIC_VOCABULARY,
        max_frames: int = TRAINING_FRAMES,
        settings: AcousticSettings | None = None,
    ) -> OfflineAcousticTokenizer:
        """Train on mono clips ``[L]`` of accompaniments at 24 kHz.

        Args:
            clips: Read once, one at a time; a remainder below one frame is cut off.
            seed: Of the sampled frames and of the first centroids.
            codebooks: Number of codebooks, ``K``.
            vocabulary: Entries a codebook, ``V``.
            max_frames: Most frames to train on, drawn uniformly from all clips.
            settings: The front end's; None is the default.

        Raises:
            RequestError: No clips, fewer frames than entries, or NaN samples.
        """
        settings = AcousticSettings() if settings is None else settings
        front_end = AcousticFrontEnd(settings)
        frames_of_clips = (_frames(front_end, samples) for samples in whole_clips(clips, ACOUSTIC_HOP))
        sample = sample_frames(frames_of_clips, max_frames, seed)
        sound = torch.from_numpy(sample.frames()).double()
        check_enough(len(sound), vocabulary)
        silence = front_end(torch.zeros(ACOUSTIC_HOP, dtype=torch.float32)).expand(-(-len(sound) // SILENT_SHARE), -1)
        frames = torch.cat((sound, silence))
        with spectra.one_thread():
            mean = frames.mean(dim=0)
            centred = frames - mean
            basis = _principal_components(centred, settings.components)
            residual = (centred @ basis.T).float()
        variance_share = float((centred @ basis.T).square().sum() / centred.square().sum().clamp(min=1e-12))
        books, reports = [], []
        for level in range(codebooks):
            book, report = train_kmeans(residual.numpy(), vocabulary, seed=seed + level, iterations=ACOUSTIC_ITERATIONS)
            books.append(torch.from_numpy(book))
            residual = residual - books[-1][assign(residual, books[-1])]
            reports.append(asdict(report))
        notes = {"clips": sample.clips, "frames_seen": sample.seen, "variance_kept": variance_share, "kmeans": reports}
        return cls(mean, basis, torch.stack(books), settings, notes)

    def encode(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 24 kHz, ``[B, L]`` -> ids int64 ``[B, 8, T]``, ``T = L / 320``."""
        check_audio(self.identity, audio)
        with spectra.one_thread():
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
        """Log-mel frames that the codes ``[k, T]`` of one clip stand for: float64 ``[T, M]``."""
        books = self._arrays["codebooks"].double()
        with spectra.one_thread():
            components = torch.stack([books[level][ids] for level, ids in enumerate(codes)]).sum(dim=0)
            return components @ self._arrays["basis"].double() + self._arrays["mean"]

    def decode(self, codes: Tensor) -> Tensor:
        """Ids int64 ``[B, k, T]`` of the first ``k`` codebooks -> float32 ``[B, T * 320]`` at 24 kHz."""
        check_codes(self.identity, codes)
        return torch.stack([self.sound(self.decode_log_mel(clip)) for clip in codes.detach().cpu()])

    def sound(self, log_mel: Tensor) -> Tensor:
        """Sound of log-mel frames ``[T, M]``: float32 ``[T * 320]``."""
        with spectra.one_thread():
            magnitudes = self._front_end.magnitudes(log_mel)
        return self._front_end.sound(magnitudes)  # made of transforms and sums of rows: threads do not show

    @classmethod
    def load(cls, folder: str | Path) -> OfflineAcousticTokenizer:
        """The tokenizer saved in ``folder``; RequestError when it is missing, damaged or of another kind."""
        identity, report = read_description(folder, ACOUSTIC_KIND)
        settings = settings_from_dict(AcousticSettings, identity.settings)
        tokenizer = cls(**read_arrays(folder, {"mean", "basis", "codebooks"}), settings=settings, report=report)
        check_sha256(folder, identity, tokenizer.identity.sha256)
        return tokenizer


def _frames(front_end: SemanticFrontEnd | AcousticFrontEnd, samples: Tensor) -> NDArray[np.float32]:
    """Feature frames float32 ``[T, d]`` of one clip ``[L]``."""
    with spectra.one_thread():
        frames: NDArray[np.float32] = front_end(samples).float().numpy()
    return frames


def _principal_components(centred: Tensor, components: int) -> Tensor:
    """Orthonormal rows ``[P, M]`` along which ``centred [n, M]`` varies most, each with a positive largest entry."""
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    basis: Tensor = vectors.T.flip(0)[:components]
    return basis * basis.gather(1, basis.abs().argmax(dim=1, keepdim=True)).sign()
