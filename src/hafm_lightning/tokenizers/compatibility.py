"""The one check that parts belong together: checkpoints, shards, tokenizers and model folders.

An id means a sound only to the tokenizer that made it. So checkpoints, manifests and model folders carry the identities
of their tokenizers (:class:`~hafm_lightning.tokenizers.base.TokenizerIdentity`, as plain values), and everything that
joins two of them compares these here. Messages name the parts, the difference, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from hafm_lightning.audio import RESAMPLER
from hafm_lightning.errors import RequestError
from hafm_lightning.tokens import STYLE, VOCAL_ACOUSTIC, VOCAL_SEMANTIC

GIVEN_STREAMS = (VOCAL_SEMANTIC.name, VOCAL_ACOUSTIC.name, STYLE.name)
"""Conditions that come from the request; all others are written by an earlier stage."""
_SHOWN_DIFFERENCES = 3


def describe_difference(
    first: Mapping[str, Any], second: Mapping[str, Any], where: tuple[str, str] = ("in the checkpoint", "here")
) -> str:
    """The first keys in which two plain descriptions differ, nested keys with dots; ``where`` names their places."""
    differences = []

    def walk(a: Any, b: Any, name: str) -> None:
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            for key in {**a, **b}:
                walk(a.get(key), b.get(key), f"{name}.{key}" if name else str(key))
        elif a != b:
            differences.append(f"{name}: {a!r} {where[0]}, {b!r} {where[1]}")

    walk(first, second, "")
    return "; ".join(differences[:_SHOWN_DIFFERENCES])


def tokenizer_difference(
    part: str,
    identities: Mapping[str, Any],
    other: str,
    other_identities: Mapping[str, Any],
    *,
    verb: Literal["trained", "prepared"] = "trained",
) -> str | None:
    """A sentence if two parts come from different tokenizers; None if they agree or one does not name its own."""
    if not identities or not other_identities or identities == other_identities:
        return None
    difference = describe_difference(identities, other_identities, ("in the first", "in the second"))
    return f"{part} was {verb} with a different tokenizer than {other}: {difference}"


def check_same_tokenizers(
    trained: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    part: str = "this checkpoint",
    other: str = "this data",
    advice: str = "",
) -> None:
    """RequestError if ``part`` was trained with other tokenizers than ``other``.

    ``trained`` and ``data`` are the identities (or digests) of their tokenizers, empty if unknown; ``advice`` is the
    message's second line.
    """
    if difference := tokenizer_difference(part, trained, other, data):
        raise RequestError("\n".join(filter(None, (difference, advice))))


def check_stages(stages: Mapping[str, Mapping[str, Any]], tokenizers: Mapping[str, Any] | None) -> None:
    """RequestError if stages and tokenizers cannot make one model.

    ``stages`` maps the name of each, such as ``the coarse stage (coarse.ckpt)``, to the description in its checkpoint,
    in the order of generation; ``tokenizers`` are the identities of the pair, None checks the stages alone.
    """
    provided = set(GIVEN_STREAMS)
    for name, description in stages.items():
        missing = [stream for stream in description["model"]["conditions"] if stream not in provided]
        if missing:
            raise RequestError(f"{name} needs {missing[0]!r}, which no stage before it writes")
        provided.add(description["model"]["target"])
    first, described = next(iter(stages.items()))
    for name, description in stages.items():
        if not description["tokenizers"]:
            raise RequestError(f"{name} does not name the tokenizers of its data; train it on shards made by `prepare`")
        check_same_tokenizers(description["tokenizers"], described["tokenizers"], part=name, other=first)
    styles = {n: list(s.get("styles") or ()) for n, s in stages.items() if STYLE.name in s["model"]["conditions"]}
    for name, names in styles.items():
        reference = next(iter(styles))
        if names != styles[reference]:
            raise RequestError(
                f"{name} was trained with different styles than {reference}; train both on the same shards"
            )
    if tokenizers is None:
        return
    check_same_tokenizers(described["tokenizers"], tokenizers, part=first, other="the given tokenizers")
    for use, identity in tokenizers.items():
        if identity["resampler"] != RESAMPLER:
            raise RequestError(
                f"the {use} tokenizer was trained with resampler {identity['resampler']!r}, this program resamples "
                f"with {RESAMPLER!r}; prepare the shards and train again"
            )
