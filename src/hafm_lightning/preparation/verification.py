"""``prepare --verify ROOT``: is everything there, whole, and does it belong together?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hafm_lightning.errors import RequestError
from hafm_lightning.shards import MANIFEST_NAME, SPLITS, ShardReader
from hafm_lightning.tokenizers import load_tokenizers
from hafm_lightning.tokenizers.base import read_description
from hafm_lightning.tokenizers.weights import UnreachableWeightsError


@dataclass(frozen=True)
class Findings:
    """What a verification saw.

    Attributes:
        root: The folder.
        clips: Split -> clips.
        problems: One line each; empty when all is well.
        notes: What could not be looked at here, one line each.
    """

    root: str
    clips: dict[str, int]
    problems: list[str]
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Lines for the terminal."""
        counts = ", ".join(f"{split} {clips} clips" for split, clips in self.clips.items())
        if not self.problems:
            return "\n".join([f"{self.root}: whole ({counts})", *self.notes])
        return "\n".join([f"{self.root}: {len(self.problems)} problems ({counts})", *self.problems, *self.notes])


def verify_root(root: str | Path) -> Findings:
    """Check every byte of the shards below ``root``, and that splits and tokenizers belong together.

    Raises:
        RequestError: There are no shards at all.
    """
    folder = Path(root).expanduser()
    splits = [split for split in SPLITS if (folder / split / MANIFEST_NAME).is_file()]
    if not splits:
        raise RequestError(
            f"{folder} holds no {' or '.join(split + '/' + MANIFEST_NAME for split in SPLITS)}\n"
            "give the root of a finished preparation"
        )
    problems: list[str] = []
    readers = {}
    for split in splits:
        try:
            readers[split] = ShardReader(folder / split)
        except RequestError as error:
            problems.append(str(error).splitlines()[0])
            continue
        problems += readers[split].verify()
    manifests = {split: reader.manifest for split, reader in readers.items()}
    for split, manifest in manifests.items():
        if manifest.split != split:
            problems.append(f"{folder / split}: its manifest is that of split {manifest.split!r}")
        for other in list(manifests)[: list(manifests).index(split)]:
            shared = sorted(set(manifest.songs()) & set(manifests[other].songs()))
            if shared:
                problems.append(f"{len(shared)} songs are in {other} and in {split} (first: {shared[0]!r})")
            if manifests[other].tokenizers != manifest.tokenizers:
                problems.append(f"{other} and {split} were tokenized by different tokenizers")
    for use in ("semantic", "acoustic"):
        try:
            identity = read_description(folder / "tokenizers" / use)[0]
        except RequestError as error:
            problems.append(str(error).splitlines()[0])
            continue
        for split, manifest in manifests.items():
            if manifest.tokenizers[use]["sha256"] != identity.sha256:
                problems.append(f"{split} was tokenized by another {use} tokenizer than {folder / 'tokenizers' / use}")
    notes: list[str] = []
    if not problems:
        try:
            load_tokenizers(folder / "tokenizers")
        except UnreachableWeightsError as error:
            notes.append(f"tokenizers: described, but not loaded: {str(error).splitlines()[0]}")
        except RequestError as error:
            problems.append(str(error).splitlines()[0])
    return Findings(str(folder), {split: manifest.clips for split, manifest in manifests.items()}, problems, notes)
