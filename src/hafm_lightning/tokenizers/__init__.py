"""Sound <-> tokens: the paper's tokenizers (HuBERT with k-means, EnCodec) and offline ones that need no download.

Start at :mod:`~hafm_lightning.tokenizers.base`: the two interfaces, and the identity that travels with every token.
This module loads and saves a pair of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers.base import AcousticTokenizer, SemanticTokenizer, TokenizerIdentity, read_description

__all__ = [
    "AcousticTokenizer",
    "SemanticTokenizer",
    "TokenizerIdentity",
    "Tokenizers",
    "load_tokenizer",
    "load_tokenizers",
    "save_tokenizers",
]

SEMANTIC_FOLDER = "semantic"
ACOUSTIC_FOLDER = "acoustic"
KINDS = {SEMANTIC_FOLDER: ("offline-semantic", "hubert"), ACOUSTIC_FOLDER: ("offline-acoustic", "encodec")}
"""Kinds of tokenizers that each folder may hold."""


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


def load_tokenizer(
    folder: str | Path, *, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> SemanticTokenizer | AcousticTokenizer:
    """The tokenizer in ``folder``, of any kind.

    Args:
        folder: What its ``save`` wrote.
        weights: Where HuBERT's or EnCodec's weights are now, if they have moved; the offline tokenizers have none.
        device: Where to run; the offline tokenizers run on the CPU.

    Raises:
        RequestError: Missing, damaged or of an unknown kind, or the weights are not reachable.
    """
    kind = read_description(folder)[0].kind
    if kind == "offline-semantic":
        from hafm_lightning.tokenizers.offline import OfflineSemanticTokenizer

        return OfflineSemanticTokenizer.load(folder)
    if kind == "offline-acoustic":
        from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer

        return OfflineAcousticTokenizer.load(folder)
    if kind == "hubert":
        from hafm_lightning.tokenizers.hubert import HubertTokenizer

        return HubertTokenizer.load(folder, weights=weights, device=device)
    if kind == "encodec":
        from hafm_lightning.tokenizers.encodec import EncodecTokenizer

        return EncodecTokenizer.load(folder, weights=weights, device=device)
    raise RequestError(f"{folder} holds a tokenizer of unknown kind {kind!r}; was it written by a newer version?")


def save_tokenizers(
    semantic: SemanticTokenizer, acoustic: AcousticTokenizer, folder: str | Path, *, include_weights: bool = False
) -> None:
    """Write both to ``folder/semantic`` and ``folder/acoustic``.

    Args:
        semantic: Written to ``semantic``.
        acoustic: Written to ``acoustic``.
        folder: Where to.
        include_weights: Keep pretrained weights there too, so that nothing outside the folder is needed to load it.
    """
    semantic.save(Path(folder) / SEMANTIC_FOLDER, include_weights=include_weights)
    acoustic.save(Path(folder) / ACOUSTIC_FOLDER, include_weights=include_weights)


def load_tokenizers(folder: str | Path, *, device: str | torch.device = "cpu") -> Tokenizers:
    """The pair that :func:`save_tokenizers` wrote; RequestError when either is missing, damaged or of the other use."""
    pair: list[Any] = []
    for use, kinds in KINDS.items():
        path = Path(folder) / use
        kind = read_description(path)[0].kind
        if kind not in kinds:
            raise RequestError(f"{path} holds a tokenizer of kind {kind!r}; {use} ones are {', '.join(kinds)}")
        pair.append(load_tokenizer(path, device=device))
    return Tokenizers(*pair)
