"""Embeddings by name: :func:`load_embedding` builds the one that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings.base import LEVELS, Embedding
from hafm_lightning.evaluation.embeddings.hub import ClapEmbedding, EncodecEmbedding, HubertEmbedding
from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding
from hafm_lightning.evaluation.embeddings.vggish import VGGishEmbedding

__all__ = ["EMBEDDINGS", "EmbeddingSource", "load_embedding"]


@dataclass(frozen=True)
class EmbeddingSource:
    """Which embedding to load, as a configuration names it. Keys that do not apply to the named one must stay unset.

    Attributes:
        name: One of :data:`EMBEDDINGS`.
        weights: Local file or ``hf://OWNER/NAME/PATH`` (``vggish``), local folder or Hub id (the others); None for the
            published model.
        sha256: Expected sha256 of the weights file; another file is refused.
        revision: Commit of the Hub repository.
        framing: ``contiguous`` or ``google``, for ``logmel`` and ``vggish``.
        window_s: Seconds a row covers, for ``clap``, ``encodec`` and ``hubert``.
        layer: Hidden layer, for ``hubert``.
        level: ``loudness``: every clip at -20 LUFS, so that systems are compared at one level; ``recorded``: levels
            count too; ``peak``: as Google's program. By default ``peak`` for its framing and ``loudness`` otherwise.
    """

    name: str = "logmel"
    weights: str | None = None
    sha256: str | None = None
    revision: str | None = None
    framing: str | None = None
    window_s: float | None = None
    layer: int | None = None
    level: str | None = None


_KINDS: Mapping[str, tuple[Callable[..., Embedding], tuple[str, ...]]] = {
    "logmel": (LogMelEmbedding, ("framing",)),
    "vggish": (VGGishEmbedding, ("weights", "sha256", "framing")),
    "clap": (ClapEmbedding, ("weights", "sha256", "revision", "window_s")),
    "encodec": (EncodecEmbedding, ("weights", "sha256", "revision", "window_s")),
    "hubert": (HubertEmbedding, ("weights", "sha256", "revision", "window_s", "layer")),
}
EMBEDDINGS = tuple(_KINDS)


def load_embedding(source: EmbeddingSource) -> Embedding:
    """Build the embedding that ``source`` names.

    Raises:
        RequestError: Unknown name, a key that the named embedding does not have, or weights that cannot be loaded.
    """
    if source.name not in _KINDS:
        raise RequestError(f"unknown embedding {source.name!r}; choose one of {', '.join(EMBEDDINGS)}")
    kind, keys = _KINDS[source.name]
    given = {key: value for key, value in asdict(source).items() if key not in ("name", "level") and value is not None}
    foreign = sorted(set(given) - set(keys))
    if foreign:
        raise RequestError(f"embedding {source.name!r} does not take {', '.join(foreign)}; it takes {', '.join(keys)}")
    google = given.get("framing") == "google"
    level = source.level or ("peak" if google else "loudness")
    if level not in LEVELS or (google and level != "peak"):
        raise RequestError(
            f"embedding {source.name!r}: unknown level {level!r}; choose one of {', '.join(LEVELS)}"
            if level not in LEVELS
            else f"embedding {source.name!r}: framing google divides by the peak; leave `level` out, or take contiguous"
        )
    embedding = kind(**given)
    embedding.level = level
    return embedding
