"""Sound <-> tokens: the paper's tokenizers (HuBERT with k-means, EnCodec) and offline ones that need no download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers.base import AcousticTokenizer, SemanticTokenizer, TokenizerIdentity, read_description

__all__ = [
    "AcousticTokenizer",
    "SemanticTokenizer",
    "TokenizerIdentity",
    "Tokenizers",
    "load_acoustic",
    "load_semantic",
    "load_tokenizer",
    "load_tokenizers",
    "save_tokenizers",
]

SEMANTIC_FOLDER = "semantic"
ACOUSTIC_FOLDER = "acoustic"


@dataclass(frozen=True)
class Tokenizers:
    """The pair that a corpus of shards was made with.

    Attributes:
        semantic: For vocals and accompaniments.
        acoustic: For accompaniments, there and back.
    """

    semantic: SemanticTokenizer
    acoustic: AcousticTokenizer

    def identities(self) -> dict[str, dict[str, Any]]:
        """Identity of each as JSON values, under ``semantic`` and ``acoustic``."""
        return {"semantic": self.semantic.identity.as_dict(), "acoustic": self.acoustic.identity.as_dict()}


def load_semantic(folder: str | Path) -> SemanticTokenizer:
    """The semantic tokenizer kept in ``folder``; RequestError when it is missing, damaged or of another sort."""
    kind = read_description(folder)[0].kind
    if kind == "offline-semantic":
        from hafm_lightning.tokenizers.offline import OfflineSemanticTokenizer

        return OfflineSemanticTokenizer.load(folder)
    raise RequestError(f"{folder} holds a tokenizer of kind {kind!r}, which is not a semantic one")


def load_acoustic(folder: str | Path) -> AcousticTokenizer:
    """The acoustic tokenizer kept in ``folder``; RequestError when it is missing, damaged or of another sort."""
    kind = read_description(folder)[0].kind
    if kind == "offline-acoustic":
        from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer

        return OfflineAcousticTokenizer.load(folder)
    raise RequestError(f"{folder} holds a tokenizer of kind {kind!r}, which is not an acoustic one")


def load_tokenizer(folder: str | Path) -> SemanticTokenizer | AcousticTokenizer:
    """The tokenizer kept in ``folder``, whichever it is; RequestError when it is missing or damaged."""
    kind = read_description(folder)[0].kind
    return load_semantic(folder) if kind in ("offline-semantic", "hubert") else load_acoustic(folder)


def save_tokenizers(semantic: SemanticTokenizer, acoustic: AcousticTokenizer, folder: str | Path) -> None:
    """Write both to ``folder/semantic`` and ``folder/acoustic``."""
    semantic.save(Path(folder) / SEMANTIC_FOLDER)
    acoustic.save(Path(folder) / ACOUSTIC_FOLDER)


def load_tokenizers(folder: str | Path) -> Tokenizers:
    """The pair that :func:`save_tokenizers` wrote; RequestError when either is missing or damaged."""
    return Tokenizers(load_semantic(Path(folder) / SEMANTIC_FOLDER), load_acoustic(Path(folder) / ACOUSTIC_FOLDER))
