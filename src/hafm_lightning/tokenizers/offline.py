"""Tokenizers that need no download: trained in seconds by faiss on the corpus at hand.

Frame rates, codebooks and shapes are those of HuBERT with k-means and EnCodec, so that the whole chain runs without
pretrained weights. These are not the paper's tokens and never presented as such.

Choices:

* Semantic: k-means over MFCCs (as in the first iteration of HuBERT's own training) joined with chroma, loudness and
  onset strength.
* Acoustic: log-mel frames, projected on their principal components, through a greedy residual quantizer: k-means trains
  each codebook on the residual of the ones before it. So 4 codebooks already carry harmony and rhythm, and the other 4
  refine them. Back to sound by mel inversion and Griffin-Lim.
* Tokens are computed in float64, clip by clip, on one thread: they depend on neither the batch nor the threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers import base, frontends
from hafm_lightning.tokenizers.kmeans import assign, check_enough, sample_frames, train_kmeans
from hafm_lightning.tokenizers.spectra import one_thread
from hafm_lightning.tokens import ACOUSTIC_CODEBOOKS, ACOUSTIC_VOCABULARY, SEMANTIC_VOCABULARY
from hafm_lightning.untrusted import checked

TRAINING_FRAMES = 60_000  # at most, for centroids and codebooks
SILENT_SHARE = 50  # frames of sound for each frame of silence in training, so that silence sounds silent
ACOUSTIC_ITERATIONS = 8  # Lloyd iterations per codebook; there are eight of them, and each corrects the one before

AnyOffline = TypeVar("AnyOffline", bound="_OfflineTokenizer")


class _OfflineTokenizer(base.SavedTokenizer):
    """A tokenizer made of arrays and the settings of a front end."""

    kind: ClassVar[str]
    array_names: ClassVar[set[str]]
    settings_type: ClassVar[Any]
    context_s: float

    def __init__(self, arrays: Mapping[str, Tensor], settings: Any, report: Mapping[str, Any]) -> None:
        self.arrays = {name: array.float() for name, array in arrays.items()}
        self.report = report
        self._settings = {"front_end": frontends.FRONT_END_VERSION, **asdict(settings)}
        self._sha256 = base.content_sha256(self.arrays, self._settings)

    @classmethod
    def load(cls: type[AnyOffline], folder: str | Path) -> AnyOffline:
        """The tokenizer in ``folder``; RequestError if it is missing, damaged or of another kind."""
        identity, report = base.read_description(folder, cls.kind)
        settings = {name: value for name, value in identity.settings.items() if name != "front_end"}
        made_by, wanted = identity.settings.get("front_end"), frontends.FRONT_END_VERSION
        if type(made_by) is not int or made_by != wanted or settings.keys() != asdict(cls.settings_type()).keys():
            raise RequestError(
                f"the offline tokenizer was made by front end {made_by!a:.40}, this program has {wanted}: "
                "prepare the shards (or train the tokenizers) again"
            )
        where = f"{folder}: the settings of the tokenizer"
        made_with = checked(settings, cls.settings_type, where, base.ADVICE)
        try:
            tokenizer = cls(base.read_arrays(folder, cls.array_names), made_with, report)
        except (RuntimeError, IndexError, TypeError, OverflowError) as error:
            raise RequestError(f"{folder}: its arrays do not fit its settings; {base.ADVICE}") from error
        base.check_identity(folder, identity, tokenizer.identity)
        return tokenizer


class OfflineSemanticTokenizer(_OfflineTokenizer):
    """MFCC, loudness, onset and chroma frames at 50 Hz -> one of 500 centroids.

    Arrays: ``offset`` and ``scale`` of the raw features, ``[d]``, and the scaled ``centroids [V, d]``.

    Attributes:
        centroids: Feature vector of each token, float32 ``[V, d]``.
    """

    kind = "offline-semantic"
    array_names = {"offset", "scale", "centroids"}
    settings_type = frontends.SemanticSettings

    def __init__(
        self, arrays: Mapping[str, Tensor], settings: frontends.SemanticSettings, report: Mapping[str, Any]
    ) -> None:
        super().__init__(arrays, settings, report)
        self.centroids = self.arrays["centroids"]
        self._front_end = frontends.SemanticFrontEnd(settings)
        self.context_s = self._front_end.context_s
        self.identity = base.TokenizerIdentity.semantic(self.kind, self._sha256, len(self.centroids), self._settings)

    @classmethod
    def train(
        cls,
        clips: Iterable[NDArray[np.float32]],
        seed: int = 0,
        *,
        vocabulary: int = SEMANTIC_VOCABULARY,
        max_frames: int = TRAINING_FRAMES,
    ) -> OfflineSemanticTokenizer:
        """Train on mono clips ``[L]`` at 16 kHz: vocals and accompaniments alike, since one tokenizer serves both.

        Clips are read once, one at a time, and at most ``max_frames`` of their frames are drawn. RequestError for no
        clips, fewer frames than centroids, or NaN samples.
        """
        front_end = frontends.SemanticFrontEnd(frontends.SemanticSettings())
        frames_of_clips = (_frames(front_end, samples) for samples in base.whole_clips(clips, base.SEMANTIC_HOP))
        sample = sample_frames(frames_of_clips, max_frames, seed)
        frames = torch.from_numpy(sample.frames).double()
        with one_thread():
            offset, scale = frames.mean(dim=0).float(), front_end.scales(frames).float()
        centroids, report = train_kmeans(((frames - offset) * scale).float().numpy(), vocabulary, seed=seed)
        arrays = {"offset": offset, "scale": scale, "centroids": torch.from_numpy(centroids)}
        notes = {"clips": sample.clips, "frames_seen": sample.seen, "kmeans": asdict(report)}
        return cls(arrays, front_end.settings, notes)

    def features(self, audio: Tensor) -> Tensor:
        """Scaled features of one clip ``[L]``, in the space of the centroids: float64 ``[T, d]``."""
        return (self._front_end(audio) - self.arrays["offset"]) * self.arrays["scale"]

    @one_thread()
    def encode(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 16 kHz, ``[B, L]`` -> ids int64 ``[B, 1, T]``, ``T = L / 320``."""
        base.check_audio(self.identity, audio)
        return torch.stack([assign(self.features(clip), self.centroids)[None] for clip in audio.detach().cpu()])


class OfflineAcousticTokenizer(_OfflineTokenizer):
    """Log-mel frames at 75 Hz <-> 8 codebooks of 1024.

    Arrays: ``mean`` log-mel frame ``[M]``, ``basis [P, M]`` (principal components, orthonormal rows), and ``codebooks
    [K, V, P]``.
    """

    kind = "offline-acoustic"
    array_names = {"mean", "basis", "codebooks"}
    settings_type = frontends.AcousticSettings

    def __init__(
        self, arrays: Mapping[str, Tensor], settings: frontends.AcousticSettings, report: Mapping[str, Any]
    ) -> None:
        super().__init__(arrays, settings, report)
        self._front_end = frontends.AcousticFrontEnd(settings)
        self.context_s = self._front_end.context_s
        count, vocabulary, _ = self.arrays["codebooks"].shape
        self.identity = base.TokenizerIdentity.acoustic(self.kind, self._sha256, count, vocabulary, self._settings)

    @classmethod
    def train(
        cls,
        clips: Iterable[NDArray[np.float32]],
        seed: int = 0,
        *,
        vocabulary: int = ACOUSTIC_VOCABULARY,
        max_frames: int = TRAINING_FRAMES,
    ) -> OfflineAcousticTokenizer:
        """Train 8 codebooks of ``vocabulary`` entries on mono clips ``[L]`` of accompaniments at 24 kHz.

        Clips are read once, one at a time, and at most ``max_frames`` of their frames are drawn. RequestError for no
        clips, fewer frames than entries, or NaN samples.
        """
        settings = frontends.AcousticSettings()
        front_end = frontends.AcousticFrontEnd(settings)
        frames_of_clips = (_frames(front_end, samples) for samples in base.whole_clips(clips, base.ACOUSTIC_HOP))
        sample = sample_frames(frames_of_clips, max_frames, seed)
        sound = torch.from_numpy(sample.frames).double()
        check_enough(len(sound), vocabulary)
        silence = front_end(torch.zeros(base.ACOUSTIC_HOP, dtype=torch.float32))
        frames = torch.cat((sound, silence.expand(math.ceil(len(sound) / SILENT_SHARE), -1)))
        with one_thread():
            mean = frames.mean(dim=0)
            centred = frames - mean
            basis = _principal_components(centred, settings.components)
            residual = (centred @ basis.T).float()
        variance_share = float((centred @ basis.T).square().sum() / centred.square().sum().clamp(min=1e-12))
        books, reports = [], []
        for level in range(ACOUSTIC_CODEBOOKS):
            book, report = train_kmeans(residual.numpy(), vocabulary, seed=seed + level, iterations=ACOUSTIC_ITERATIONS)
            books.append(torch.from_numpy(book))
            residual = residual - books[-1][assign(residual, books[-1])]
            reports.append(asdict(report))
        arrays = {"mean": mean, "basis": basis, "codebooks": torch.stack(books)}
        notes = {"clips": sample.clips, "frames_seen": sample.seen, "variance_kept": variance_share, "kmeans": reports}
        return cls(arrays, settings, notes)

    @one_thread()
    def encode(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 24 kHz, ``[B, L]`` -> ids int64 ``[B, 8, T]``, ``T = L / 320``."""
        base.check_audio(self.identity, audio)
        return torch.stack([self._encode_clip(clip) for clip in audio.detach().cpu()])

    def _encode_clip(self, audio: Tensor) -> Tensor:
        residual = (self._front_end(audio) - self.arrays["mean"]) @ self.arrays["basis"].double().T
        ids = []
        for book in self.arrays["codebooks"]:
            ids.append(assign(residual, book))
            residual = residual - book[ids[-1]]
        return torch.stack(ids)

    def log_mel(self, audio: Tensor) -> Tensor:
        """Log-mel frames of one clip ``[L]``: float64 ``[T, M]``."""
        return self._front_end(audio)

    @one_thread()
    def decode_log_mel(self, codes: Tensor) -> Tensor:
        """Log-mel frames of the codes ``[k, T]`` of one clip: float64 ``[T, M]``."""
        books = self.arrays["codebooks"].double()
        components = torch.stack([books[level][ids] for level, ids in enumerate(codes)]).sum(dim=0)
        return components @ self.arrays["basis"].double() + self.arrays["mean"]

    def decode(self, codes: Tensor) -> Tensor:
        """Ids int64 ``[B, k, T]`` of the first ``k`` codebooks -> float32 ``[B, T * 320]`` at 24 kHz."""
        base.check_codes(self.identity, codes)
        return torch.stack([self.sound(self.decode_log_mel(clip)) for clip in codes.detach().cpu()])

    def sound(self, log_mel: Tensor) -> Tensor:
        """Sound of log-mel frames ``[T, M]``: float32 ``[T * 320]``."""
        with one_thread():
            magnitudes = self._front_end.magnitudes(log_mel)
        return self._front_end.sound(magnitudes)  # transforms and sums of rows: the same for every number of threads


@one_thread()
def _frames(front_end: frontends.SemanticFrontEnd | frontends.AcousticFrontEnd, samples: Tensor) -> NDArray[np.float32]:
    """Feature frames float32 ``[T, d]`` of one clip ``[L]``."""
    frames: NDArray[np.float32] = front_end(samples).float().numpy()
    return frames


def _principal_components(centred: Tensor, components: int) -> Tensor:
    """Orthonormal rows ``[P, M]`` along which ``centred [n, M]`` varies most, each with a positive largest entry."""
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    basis: Tensor = vectors.T.flip(0)[:components]
    return basis * basis.gather(1, basis.abs().argmax(dim=1, keepdim=True)).sign()
