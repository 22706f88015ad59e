"""The one check that parts belong together: checkpoints, shards, tokenizers and model folders.

An id means a sound only to the tokenizer that made it. So a checkpoint, a manifest and a model folder carry the
identities of their tokenizers (:class:`~hafm_lightning.tokenizers.base.TokenizerIdentity`, as plain values), and
whoever joins two of them compares these here. All functions take plain descriptions and name in their messages what
differs, in which part, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from hafm_lightning.audio import RESAMPLER
from hafm_lightning.errors import RequestError
from hafm_lightning.tokens import STYLE, VOCAL_ACOUSTIC, VOCAL_SEMANTIC

GIVEN_STREAMS = (VOCAL_SEMANTIC.name, VOCAL_ACOUSTIC.name, STYLE.name)
"""Conditions that come from the request; all others are written by an earlier stage."""
SHOWN_DIFFERENCES = 3


def describe_difference(
    first: Mapping[str, Any], second: Mapping[str, Any], where: tuple[str, str] = ("in the checkpoint", "here")
) -> str:
    """The first keys in which two plain descriptions differ, nested keys with dots.

    Args:
        first: One description.
        second: The other one.
        where: Where each of them stands, for the message.
    """
    differences = []

    def walk(a: Any, b: Any, name: str) -> None:
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            for key in {**a, **b}:
                walk(a.get(key), b.get(key), f"{name}.{key}" if name else str(key))
        elif a != b:
            differences.append(f"{name}: {a!r} {where[0]}, {b!r} {where[1]}")

    walk(first, second, "")
    return "; ".join(differences[:SHOWN_DIFFERENCES])


def tokenizer_difference(
    part: str,
    identities: Mapping[str, Any],
    other: str,
    other_identities: Mapping[str, Any],
    *,
    verb: Literal["trained", "prepared"] = "trained",
) -> str | None:
    """A sentence that two parts come from different tokenizers; None if they do not, or one does not name its own."""
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
    """Refuse a part that was trained with other tokenizers than the part beside it.

    Args:
        trained: Identities (or digests) of the tokenizers of ``part``; empty if unknown.
        data: The same of ``other``; empty if unknown.
        part: What was trained, for the message.
        other: What is joined with it.
        advice: What the user can do, as the message's second line.

    Raises:
        RequestError: Both are known and differ.
    """
    difference = tokenizer_difference(part, trained, other, data)
    if difference is not None:
        raise RequestError("\n".join(filter(None, (difference, advice))))


def check_stages(stages: Mapping[str, Mapping[str, Any]], tokenizers: Mapping[str, Any] | None) -> None:
    """Refuse stages and tokenizers that cannot make one model.

    Args:
        stages: The name of each stage for messages, such as ``the coarse stage (coarse.ckpt)``, and the description in
            its checkpoint, in the order in which they write.
        tokenizers: Identities of the pair that turns sound into tokens and back; None checks the stages alone.

    Raises:
        RequestError: A condition that no earlier stage writes, no tokenizers named, or different tokenizers,
            styles or resamplers.
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
    styled = {name: s for name, s in stages.items() if STYLE.name in s["model"]["conditions"]}
    for name, description in styled.items():
        reference = next(iter(styled))
        if list(description.get("styles") or ()) != list(styled[reference].get("styles") or ()):
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
