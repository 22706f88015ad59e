"""The common parts of all tokenizers: identity, interface, and the folder on disk (`tokenizer.json` and safetensors).

A clip's tokens do not depend on its batch, and ``L`` samples give exactly ``L * rate / sample rate`` frames: any other
length is refused rather than cropped.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hafm_lightning.audio import RESAMPLER
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_folder, names_in, sha256_of
from hafm_lightning.sealing import note_without_digest
from hafm_lightning.tokens import ACOUSTIC_RATE_HZ, SEMANTIC_RATE_HZ
from hafm_lightning.untrusted import check_file, checked, child, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEMANTIC_SAMPLE_RATE_HZ = 16_000  # of the input of HuBERT and of the offline semantic tokenizer
ACOUSTIC_SAMPLE_RATE_HZ = 24_000  # of the input and output of EnCodec's 24 kHz model and of the offline acoustic one
SEMANTIC_HOP = SEMANTIC_SAMPLE_RATE_HZ // SEMANTIC_RATE_HZ  # samples per semantic frame
ACOUSTIC_HOP = ACOUSTIC_SAMPLE_RATE_HZ // ACOUSTIC_RATE_HZ  # samples per acoustic frame

FORMAT_VERSION = 2  # of the folder; version 1 has no digests of its files, newer ones are refused
ADVICE = "prepare the shards (or train the tokenizers) again"
DESCRIPTION_FILE = "tokenizer.json"
ARRAYS_FILE = "arrays.safetensors"
MODEL_FOLDER = "model"  # pretrained weights inside a tokenizer's folder, if they were saved with it


@dataclass(frozen=True)
class TokenizerIdentity:
    """Everything that decides which token a sound gets."""

    kind: str  # `offline-semantic`, `offline-acoustic`, `hubert` or `encodec`
    sha256: str  # hex digest over all weights, centroids and settings that change tokens
    sample_rate_hz: int  # of the audio that goes in (and comes out of an acoustic tokenizer)
    rate_hz: int  # frames per second
    codebooks: int  # tokens per frame
    vocabulary: int  # ids run from 0 to `vocabulary - 1`
    resampler: str  # name of the resampler for audio of another rate
    settings: dict[str, Any]  # the settings as JSON values, for people to read

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenizerIdentity:
        """Inverse of ``dataclasses.asdict``; RequestError names missing and unknown keys."""
        names = {field.name for field in fields(cls)}
        missing, unknown = sorted(names - set(values)), sorted(set(values) - names)
        if missing or unknown:
            raise RequestError(
                f"this is not a tokenizer identity: missing keys {missing}, unknown keys {unknown}; "
                "it was written by another version: prepare the shards (or train the tokenizers) again"
            )
        return cls(**values)

    @classmethod
    def semantic(cls, kind: str, sha256: str, vocabulary: int, settings: Mapping[str, Any]) -> TokenizerIdentity:
        """The identity of a semantic tokenizer: 16 kHz, 50 frames per second, one codebook."""
        return cls(kind, sha256, SEMANTIC_SAMPLE_RATE_HZ, SEMANTIC_RATE_HZ, 1, vocabulary, RESAMPLER, dict(settings))

    @classmethod
    def acoustic(
        cls, kind: str, sha256: str, codebooks: int, vocabulary: int, settings: Mapping[str, Any]
    ) -> TokenizerIdentity:
        """The identity of an acoustic tokenizer: 24 kHz, 75 frames per second."""
        rates = ACOUSTIC_SAMPLE_RATE_HZ, ACOUSTIC_RATE_HZ
        return cls(kind, sha256, *rates, codebooks, vocabulary, RESAMPLER, dict(settings))

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.sample_rate_hz // self.rate_hz

    def frames(self, samples: int) -> int:
        """Frames ``T`` of a clip of ``samples`` samples; ValueError unless that is a positive whole number."""
        if samples < self.hop or samples % self.hop:
            raise ValueError(
                f"{self.kind}: {samples} samples at {self.sample_rate_hz} Hz are {samples / self.hop:g} frames at "
                f"{self.rate_hz} Hz; crop or pad the clip to a positive multiple of {self.hop} samples"
            )
        return samples // self.hop


class Tokenizer(Protocol):
    """The common part of both kinds of tokenizers."""

    @property
    def identity(self) -> TokenizerIdentity:
        """Everything that decides the tokens."""

    @property
    def context_s(self) -> float | None:
        """Seconds on each side of a frame's centre on which its tokens depend; None: the whole clip."""

    def encode(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length, float ``[B, L]`` at the identity's sample rate -> ids int64 ``[B, K, T]``."""

    def save(self, folder: str | Path, *, include_weights: bool = False) -> None:
        """Write the tokenizer to ``folder``, whole or not at all; pretrained weights only with ``include_weights``."""


class SemanticTokenizer(Tokenizer, Protocol):
    """Sound -> one token per frame (``K = 1``) for what is sung or played, not for the details of its sound."""

    @property
    def centroids(self) -> Tensor:
        """Feature vector of each token, float32 ``[V, d]``."""


class AcousticTokenizer(Tokenizer, Protocol):
    """Sound -> ``K`` tokens per frame, coarse to fine, and back."""

    def decode(self, codes: Tensor) -> Tensor:
        """Ids int64 ``[B, k, T]`` of the first ``k`` codebooks -> float32 ``[B, L]``, ``L = T * hop``."""


def check_audio(identity: TokenizerIdentity, audio: Tensor) -> int:
    """Number of frames ``T`` of ``audio [B, L]``.

    ValueError for a wrong shape, dtype or length; RequestError names the first clip with NaN or infinite samples.
    """
    if audio.dim() != 2 or not audio.shape[0] or not audio.is_floating_point():
        raise ValueError(f"{identity.kind}: expected float audio [B, L], got {audio.dtype} {tuple(audio.shape)}")
    finite = torch.isfinite(audio).all(dim=1)
    if not bool(finite.all()):
        clip = int((~finite).nonzero()[0])
        raise RequestError(f"{identity.kind}: clip {clip} of the batch holds NaN or infinite samples; repair the audio")
    return identity.frames(audio.shape[1])


def check_codes(identity: TokenizerIdentity, codes: Tensor) -> None:
    """ValueError unless ``codes`` are int64 ids ``[B, k, T]`` of the first ``1 <= k <= K`` codebooks."""
    if codes.dim() != 3 or codes.dtype != torch.int64 or 0 in codes.shape or codes.shape[1] > identity.codebooks:
        raise ValueError(
            f"{identity.kind}: expected int64 codes [B, 1..{identity.codebooks}, T], "
            f"got {codes.dtype} {tuple(codes.shape)}"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= identity.vocabulary:
        raise ValueError(f"{identity.kind}: codes {low}..{high} are outside 0..{identity.vocabulary - 1}")


def whole_clips(clips: Iterable[NDArray[np.float32]], hop: int) -> Iterator[Tensor]:
    """Mono training clips ``[L]`` cut to whole frames of ``hop`` samples; clips below a frame are left out.

    RequestError for NaN or infinite samples.
    """
    for clip in clips:
        samples = torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32))
        if samples.dim() != 1:
            raise ValueError(f"training clips are mono, [L]; got {tuple(samples.shape)}")
        if not bool(torch.isfinite(samples).all()):
            raise RequestError("a clip to train a tokenizer on holds NaN or infinite samples; repair the audio")
        if len(samples) >= hop:
            yield samples[: len(samples) // hop * hop]


def content_sha256(arrays: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """Hex digest over named arrays (name, dtype, shape, bytes) and settings, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.numpy().tobytes())
    digest.update(json.dumps(settings, sort_keys=True, allow_nan=False).encode())
    return digest.hexdigest()


def write_folder(
    folder: str | Path,
    identity: TokenizerIdentity,
    arrays: Mapping[str, Tensor],
    report: Mapping[str, Any],
    model: PreTrainedModel | None = None,
) -> None:
    """Write a tokenizer's folder, whole or not at all; it replaces another tokenizer there, but not its equal.

    The weights of a transformers ``model`` go to a folder `model`. RequestError if ``folder`` is a file or holds
    something else; OSError if the disk is full, and the earlier content stays.
    """
    from safetensors.torch import save

    target = Path(folder)

    def is_complete() -> bool:
        if target.exists() and not target.is_dir():
            raise RequestError(f"{target} is a file; a tokenizer needs a folder")
        names = names_in(target)
        if names and DESCRIPTION_FILE not in names:
            raise RequestError(f"{target} is not empty and holds no tokenizer; name another folder")
        try:
            same = read_description(target)[0].sha256 == identity.sha256
        except RequestError:  # no tokenizer yet, or a damaged one, which is replaced
            return False
        return same and (model is None or (target / MODEL_FOLDER).is_dir())

    if is_complete():
        return
    with atomic_folder(target, is_complete) as draft:
        if arrays:
            content = save({name: array.detach().cpu().contiguous() for name, array in arrays.items()})
            (draft / ARRAYS_FILE).write_bytes(content)  # save_file would hide a full disk behind an error of its own
        if model is not None:
            model.save_pretrained(draft / MODEL_FOLDER)
        description = {"format_version": FORMAT_VERSION, "identity": asdict(identity), "report": dict(report)}
        description["files"] = file_digests(draft)
        (draft / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1, allow_nan=False) + "\n")


class SavedTokenizer:
    """The parts of a tokenizer that go to its folder."""

    identity: TokenizerIdentity
    arrays: Mapping[str, Tensor] = {}
    report: Mapping[str, Any]  # how it was made; for people, not part of the identity
    model: PreTrainedModel | None = None  # a pretrained transformers model

    def save(self, folder: str | Path, *, include_weights: bool = False) -> None:
        """Write the tokenizer to ``folder``, whole or not at all; without weights, their source and sha256 are kept."""
        write_folder(folder, self.identity, self.arrays, self.report, self.model if include_weights else None)


@dataclass(frozen=True)
class _Description:
    """The content of ``tokenizer.json``."""

    format_version: int
    identity: dict[str, Any]
    report: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)  # file in the folder -> sha256; version 2


def read_description(folder: str | Path, kind: str | None = None) -> tuple[TokenizerIdentity, dict[str, Any]]:
    """Identity and report of the tokenizer in ``folder``, without its arrays.

    RequestError if its description is missing, damaged, of another format version, or of another ``kind``. With a
    ``kind``, which is for whoever reads the files next, they are compared with their digests.
    """
    path = Path(folder) / DESCRIPTION_FILE
    if not path.exists():
        raise RequestError(f"no tokenizer in {folder}: {DESCRIPTION_FILE} is missing; prepare the shards first")
    content = read_json(path, what="the description of a tokenizer", advice=ADVICE)
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is int and not 1 <= version <= FORMAT_VERSION:
        raise RequestError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}")
    described = checked(content, _Description, path, ADVICE)
    identity = TokenizerIdentity.from_dict(described.identity)
    checked(described.identity, TokenizerIdentity, path, ADVICE)
    if kind is not None and identity.kind != kind:
        raise RequestError(f"{folder} holds a tokenizer of kind {identity.kind!r:.60}, expected {kind!r}")
    if kind is not None and described.format_version > 1:
        check_file_digests(Path(folder), described.files, ADVICE)
    elif kind is not None:
        note_without_digest(path)
    return identity, described.report


def file_digests(folder: Path) -> dict[str, str]:
    """Path below the folder, with slashes -> sha256, of every file."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def check_file_digests(folder: Path, digests: Mapping[str, str], advice: str) -> None:
    """RequestError unless the folder has exactly these files, with these sha256; hidden ones do not count."""
    try:
        present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        present = {name for name in present if not any(part.startswith(".") for part in name.split("/"))}
        if strange := sorted(present - set(digests) - {DESCRIPTION_FILE}):
            raise RequestError(f"{folder} has a file that its description does not list: {strange[0]!r:.80}; {advice}")
        for name, sha256 in digests.items():
            *folders, last = name.split("/")
            place = functools.reduce(lambda parent, part: child(parent, part, "a listed file"), folders, folder)
            path = child(place, last, "a listed file")
            check_file(path, what="a file of a tokenizer", advice=advice)
            if sha256_of(path) != sha256:
                raise RequestError(f"{path}: the file was changed or damaged since it was written (sha256); {advice}")
    except OSError as error:
        raise RequestError(f"{folder} cannot be read ({error.strerror}); {advice}") from error


def read_arrays(folder: str | Path, names: set[str]) -> dict[str, Tensor]:
    """The arrays called ``names`` in ``folder``; RequestError when they are missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / ARRAYS_FILE
    check_file(path, what="the arrays of a tokenizer", advice=f"it cannot be read; {ADVICE}")
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{path} cannot be read ({error}); train the tokenizers again") from error
    if set(arrays) != names:
        raise RequestError(f"{path} holds {sorted(arrays)}, expected {sorted(names)}; train the tokenizers again")
    for name, array in arrays.items():
        if array.dtype != torch.float32 or not bool(torch.isfinite(array).all()):
            raise RequestError(f"{path}: {name} ({array.dtype}) must hold finite float32 numbers; {ADVICE}")
    return arrays


def check_identity(folder: str | Path, identity: TokenizerIdentity, found: TokenizerIdentity) -> None:
    """RequestError unless the content that was read from ``folder`` has the identity in its description."""
    if found.sha256 != identity.sha256:
        raise RequestError(
            f"{folder}: the content has sha256 {found.sha256[:12]}, "
            f"{DESCRIPTION_FILE} says {identity.sha256[:12]!a}; "
            "the folder was changed or damaged: train the tokenizers again"
        )
    if found != identity:
        names = [item.name for item in fields(found) if getattr(found, item.name) != getattr(identity, item.name)]
        raise RequestError(
            f"{folder}: {DESCRIPTION_FILE} has another {names[0]} than its content; "
            "the folder was changed or damaged: train the tokenizers again"
        )
