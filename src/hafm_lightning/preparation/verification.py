"""``prepare --verify ROOT``: checks that all files are present and undamaged, and that they belong together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hafm_lightning.errors import RequestError
from hafm_lightning.shards import MANIFEST_NAME, SPLITS, Manifest, ShardReader
from hafm_lightning.tokenizers import load_tokenizers
from hafm_lightning.tokenizers.base import read_description
from hafm_lightning.tokenizers.compatibility import tokenizer_difference
from hafm_lightning.tokenizers.hub import UnreachableWeightsError


@dataclass(frozen=True)
class Findings:
    """The result of a verification."""

    root: str  # the folder
    clips: dict[str, int]  # split -> clips
    problems: list[str]  # one line each; empty if there are none
    notes: list[str]  # what could not be checked on this machine, one line each

    def summary(self) -> str:
        """Lines for the terminal."""
        counts = ", ".join(f"{split} {clips} clips" for split, clips in self.clips.items())
        verdict = f"{len(self.problems)} problems" if self.problems else "complete and undamaged"
        return "\n".join([f"{self.root}: {verdict} ({counts})", *self.problems, *self.notes])


def verify_root(root: str | Path) -> Findings:
    """Check all shards below ``root``, and that splits and tokenizers belong together; RequestError without shards."""
    folder = Path(root).expanduser()
    splits = [split for split in SPLITS if (folder / split / MANIFEST_NAME).is_file()]
    if not splits:
        raise RequestError(
            f"{folder} holds no {' or '.join(split + '/' + MANIFEST_NAME for split in SPLITS)}\n"
            "give the root of a finished preparation"
        )
    problems: list[str] = []
    manifests: dict[str, Manifest] = {}
    for split in splits:
        with _noted(problems):
            reader = ShardReader(folder / split)
            manifests[split] = reader.manifest
            problems += reader.verify()
    for split, manifest in manifests.items():
        if manifest.split != split:
            problems.append(f"{folder / split}: its manifest belongs to the split {manifest.split!r}")
        for other in list(manifests)[: list(manifests).index(split)]:
            shared = sorted(set(manifest.songs()) & set(manifests[other].songs()))
            if shared:
                problems.append(f"{len(shared)} songs are in {other} and in {split} (first: {shared[0]!r})")
            identities = manifests[other].tokenizers
            if difference := tokenizer_difference(split, manifest.tokenizers, other, identities, verb="prepared"):
                problems.append(difference)
    for use in ("semantic", "acoustic"):
        tokenizer = folder / "tokenizers" / use
        with _noted(problems):
            sha256 = read_description(tokenizer)[0].sha256
            foreign = [
                split
                for split, manifest in manifests.items()
                if manifest.tokenizers.get(use, {}).get("sha256") != sha256
            ]
            problems += [f"{split} was prepared with a different {use} tokenizer than {tokenizer}" for split in foreign]
    notes: list[str] = []
    if not problems:
        with _noted(problems):
            try:
                load_tokenizers(folder / "tokenizers")
            except UnreachableWeightsError as error:
                notes.append(f"tokenizers: described, but not loaded: {str(error).splitlines()[0]}")
    return Findings(str(folder), {split: manifest.clips for split, manifest in manifests.items()}, problems, notes)


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """A RequestError inside the block becomes a problem; its first line says what and where."""
    try:
        yield
    except RequestError as error:
        problems.append(str(error).splitlines()[0])
