"""What a music evaluation takes from elsewhere: later stages, embeddings, and the paper's values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from hafm_lightning.callbacks.dashboard import PAPER_TOKENIZERS
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings import EmbeddingSource, load_embedding

FALLBACK = EmbeddingSource()
"""The embedding that needs no weights (``logmel``)."""

PAPER_FAD = {4: 2.10, 8: 1.71}
"""Codebooks -> FAD in the paper (table 4): semantic and coarse stage, and all three."""
PAPER_PROTOCOL = (
    "the paper: 33 clips of 3 s of MUSDB18's test songs, VGGish; reference set, weights and framing are not stated, "
    "and every stage has the tokens that the stage before it has written (here: true tokens)"
)
PAPER_CLIPS, PAPER_DURATION_S = 33, 3.0

RUN, STEP = re.compile(r"run-(\d+)"), re.compile(r"step-(\d+)\.ckpt")


def paper_fad(
    embedding: str, codebooks: int, clips: int, duration_s: float, identities: Mapping[str, Mapping[str, Any]]
) -> float | None:
    """The paper's FAD for as many codebooks, if this run measures in its protocol."""
    kinds = {name: identity.get("kind") for name, identity in identities.items()}
    same = embedding == "vggish" and kinds == PAPER_TOKENIZERS
    return PAPER_FAD.get(codebooks) if same and (clips, duration_s) == (PAPER_CLIPS, PAPER_DURATION_S) else None


def available(sources: Sequence[EmbeddingSource]) -> list[EmbeddingSource]:
    """The embeddings that can be loaded, with ``logmel`` in the place of those whose published weights cannot be had.

    Raises:
        RequestError: An embedding with weights named by the configuration cannot be loaded.
    """
    found: list[EmbeddingSource] = []
    for source in sources:
        try:
            load_embedding(source)
        except (RequestError, OSError) as error:
            if source.weights is not None or source.name == FALLBACK.name:
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            rank_zero_info(
                f"MusicEvaluation measures with {FALLBACK.name} in the place of {source.name}, so its FAD cannot be "
                f"compared with the literature: {reason}"
            )
            source = FALLBACK
        if source not in found:
            found.append(source)
    return found


def checkpoints_beside(run: Path) -> dict[str, str]:
    """The newest coarse and fine checkpoints of the runs beside a semantic one: by the name of the folder of runs.

    Beside ``logs/aligned-semantic/run-002`` they are in the newest run of ``logs/aligned-coarse`` and
    ``logs/aligned-fine``: ``best.ckpt``, or the one of the most steps. Without a coarse one there is none.
    """
    runs = run.parent
    later: dict[str, str] = {}
    for role in ("coarse", "fine") if "semantic" in runs.name else ():
        checkpoint = _newest(runs.with_name(runs.name.replace("semantic", role)))
        if checkpoint is None:
            break
        later[role] = str(checkpoint)
    return later


def _newest(runs: Path) -> Path | None:
    """The checkpoint of the newest run that has one."""
    numbered = [(int(match[1]), path) for path in runs.glob("run-*") if (match := RUN.fullmatch(path.name))]
    for _, run in sorted(numbered, reverse=True):
        best = run / "checkpoints" / "best.ckpt"
        if best.is_file():
            return best
        saved = (run / "checkpoints").glob("step-*.ckpt")
        steps = [(int(match[1]), path) for path in saved if (match := STEP.fullmatch(path.name))]
        if steps:
            return max(steps)[1]
    return None
