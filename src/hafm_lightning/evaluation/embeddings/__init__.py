"""Embeddings by name: :func:`load_embedding` builds the one that a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.evaluation.embeddings.hub import ClapEmbedding, EncodecEmbedding, HubertEmbedding
from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding
from hafm_lightning.evaluation.embeddings.vggish import VGGishEmbedding

EMBEDDINGS = ("logmel", "vggish", "clap", "encodec", "hubert")


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
    """

    name: str = "logmel"
    weights: str | None = None
    sha256: str | None = None
    revision: str | None = None
    framing: str | None = None
    window_s: float | None = None
    layer: int | None = None


_KEYS: Mapping[str, tuple[str, ...]] = {
    "logmel": ("framing",),
    "vggish": ("weights", "sha256", "framing"),
    "clap": ("weights", "sha256", "revision", "window_s"),
    "encodec": ("weights", "sha256", "revision", "window_s"),
    "hubert": ("weights", "sha256", "revision", "window_s", "layer"),
}


def load_embedding(source: EmbeddingSource) -> Embedding:
    """Build the embedding that ``source`` names.

    Raises:
        RequestError: Unknown name, a key that the named embedding does not have, or weights that cannot be had.
    """
    if source.name not in _KEYS:
        raise RequestError(f"unknown embedding {source.name!r}; choose one of {', '.join(EMBEDDINGS)}")
    given = {key: value for key, value in asdict(source).items() if key != "name" and value is not None}
    foreign = sorted(set(given) - set(_KEYS[source.name]))
    if foreign:
        raise RequestError(
            f"embedding {source.name!r} does not take {', '.join(foreign)}; it takes {', '.join(_KEYS[source.name])}"
        )
    if source.name == "logmel":
        return LogMelEmbedding(**given)
    if source.name == "vggish":
        return VGGishEmbedding(**given)
    if "weights" in given:
        given["source"] = given.pop("weights")
    classes: dict[str, type[Embedding]] = {
        "clap": ClapEmbedding,
        "encodec": EncodecEmbedding,
        "hubert": HubertEmbedding,
    }
    return classes[source.name](**given)
