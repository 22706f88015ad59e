"""Sound <-> tokens: the paper's tokenizers (HuBERT with k-means, EnCodec) and offline ones that need no download.

Start at :mod:`~hafm_lightning.tokenizers.base`: the two interfaces, and the identity that travels with every token.
This module loads and saves tokenizers of any kind.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers.base import AcousticTokenizer, SemanticTokenizer, TokenizerIdentity, read_description
from hafm_lightning.tokenizers.encodec import ENCODEC_KIND, EncodecTokenizer
from hafm_lightning.tokenizers.hubert import HUBERT_KIND, HubertTokenizer
from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer, OfflineSemanticTokenizer

__all__ = [
    "AcousticTokenizer",
    "SemanticTokenizer",
    "TokenizerIdentity",
    "Tokenizers",
    "load_tokenizer",
    "load_tokenizers",
    "save_tokenizers",
]

KINDS = {
    "semantic": (OfflineSemanticTokenizer.kind, HUBERT_KIND),
    "acoustic": (OfflineAcousticTokenizer.kind, ENCODEC_KIND),
}
"""Kinds of tokenizers in each folder of a pair."""


@dataclass(frozen=True)
class Tokenizers:
    """The pair that a corpus of shards was made with."""

    semantic: SemanticTokenizer  # for vocals and accompaniments
    acoustic: AcousticTokenizer  # for accompaniments, in both directions

    def identities(self) -> dict[str, dict[str, Any]]:
        """Identity of each as JSON values, under ``semantic`` and ``acoustic``."""
        return {"semantic": asdict(self.semantic.identity), "acoustic": asdict(self.acoustic.identity)}


def load_tokenizer(
    folder: str | Path, *, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> SemanticTokenizer | AcousticTokenizer:
    """The tokenizer of any kind in ``folder``, on ``device``; the offline tokenizers run on the CPU.

    ``weights`` is the new place of HuBERT's or EnCodec's weights if they have moved. RequestError if the tokenizer is
    missing, damaged or of an unknown kind, or the weights are not reachable.
    """
    kind = read_description(folder)[0].kind
    if kind == OfflineSemanticTokenizer.kind:
        return OfflineSemanticTokenizer.load(folder)
    if kind == OfflineAcousticTokenizer.kind:
        return OfflineAcousticTokenizer.load(folder)
    if kind == HUBERT_KIND:
        return HubertTokenizer.load(folder, weights=weights, device=device)
    if kind == ENCODEC_KIND:
        return EncodecTokenizer.load(folder, weights=weights, device=device)
    raise RequestError(f"{folder} holds a tokenizer of unknown kind {kind!r}; was it written by a newer version?")


def save_tokenizers(
    semantic: SemanticTokenizer, acoustic: AcousticTokenizer, folder: str | Path, *, include_weights: bool = False
) -> None:
    """Write both to ``folder/semantic`` and ``folder/acoustic``.

    ``include_weights`` keeps pretrained weights there too, so that the folder is complete by itself.
    """
    semantic.save(Path(folder) / "semantic", include_weights=include_weights)
    acoustic.save(Path(folder) / "acoustic", include_weights=include_weights)


def load_tokenizers(folder: str | Path, device: str | torch.device = "cpu") -> Tokenizers:
    """The pair in ``folder/semantic`` and ``folder/acoustic``; RequestError if either is missing or of a wrong kind."""
    pair: list[Any] = []
    for use, kinds in KINDS.items():
        path = Path(folder) / use
        kind = read_description(path)[0].kind
        if kind not in kinds:
            raise RequestError(f"{path} holds a tokenizer of kind {kind!r}; {use} ones are {', '.join(kinds)}")
        pair.append(load_tokenizer(path, device=device))
    return Tokenizers(*pair)
