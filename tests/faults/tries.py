"""The table of tries on files: which file, which damages, which command reads it, how many of them.

``most`` damages of a row are drawn with the seed, so that each run tries as many and another seed tries others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import Bench
from checkpoint_damage import checkpoint_entries, npz_arrays, safetensors_arrays, vote_columns
from damage import Damage, bytes_of_file, json_fields, swapped, yaml_fields
from works import WORKS

Damages = Callable[[Path], Iterable[Damage]]


@dataclass(frozen=True)
class Try:
    """One try: ``do`` gives what fell, nothing where all held."""

    kind: str
    name: str
    works: tuple[str, ...]
    do: Callable[[Bench], list[str]]


@dataclass(frozen=True)
class Row:
    """Damages of one file. ``file`` is a pattern below the workshop; its first match is damaged."""

    kind: str
    file: str
    work: str
    damages: Damages
    most: int
    may_differ: bool = False


ENDLESS = {
    "max_steps": ("null", "minus one", "a large number", "infinity", "left out", "400 digits"),
    "clips": ("a large number", "400 digits"),
}
"""Settings that ask for endless work, which is done."""

FIELDS, BYTES, CONTENT, SETTINGS = "wrong fields", "damaged bytes", "wrong content", "wrong settings"
JSON_FILES = (
    ("model/config.json", "generate", 60),
    ("model/tokenizers/semantic/tokenizer.json", "generate", 25),
    ("tokenizers/acoustic/tokenizer.json", "generate from checkpoints", 25),
    ("shards/train/manifest.json", "fit", 60),
    ("shards/validation/manifest.json", "fit", 20),
    ("take/take.json", "repeat a take", 60),
    ("prepared/work/plan.json", "prepare again", 30),
    ("prepared/work/settings.json", "prepare again", 20),
    ("prepared/work/songs.json", "prepare again", 20),
    ("prepared/work/survey/block-*.json", "prepare again", 20),
    ("prepared/work/records/train-*.json", "prepare again", 30),
    ("prepared/train/manifest.json", "prepare again", 10),
    ("study/study.json", "listen report", 50),
    ("study/key.json", "listen report", 50),
    ("card/card.json", "read card", 40),
    ("card/**/index.json", "evaluate again", 25),
    ("card/**/scores*/*.json", "evaluate again", 25),
)
OTHER_FILES = (
    ("stages/semantic.ckpt", "generate from checkpoints"),
    ("stages/fine.ckpt", "export"),
    ("stopped/run-*/checkpoints/step-*.ckpt", "resume"),
    ("model/coarse.safetensors", "generate"),
    ("model/tokenizers/acoustic/arrays.safetensors", "generate"),
    ("tokenizers/semantic/arrays.safetensors", "generate from checkpoints"),
    ("shards/train/shard-00001.safetensors", "fit"),
    ("shards/validation/shard-00000.safetensors", "fit"),
    ("prepared/train/shard-00000.safetensors", "prepare again"),
    ("statistics.npz", "read statistics"),
    ("statistics.npz", "evaluate"),
    ("card/**/*.npz", "evaluate again"),
    ("card/**/*.wav", "evaluate again"),
    ("centroids.npy", "read centroids"),
    ("study/votes.sqlite", "listen report"),
    ("study/trials/*/A.wav", "listen report"),
    ("vocals/one.wav", "repeat a take"),
    ("corpus/train/*/vocals.wav", "prepare again"),
    ("stopped/run-*/metrics.csv", "resume"),
    ("stopped/run-*/config.yaml", "resume"),
)
YAML_FILES = (("fit.yaml", "fit", 70), ("prepare.yaml", "prepare", 40), ("evaluate.yaml", "evaluate", 40),
              ("listening.yaml", "listen build", 40))  # fmt: skip
CONTENTS: tuple[tuple[str, str, Damages, int], ...] = (
    ("stages/semantic.ckpt", "generate from checkpoints", checkpoint_entries, 50),
    ("stages/coarse.ckpt", "export", checkpoint_entries, 30),
    ("stopped/run-*/checkpoints/step-*.ckpt", "resume", checkpoint_entries, 40),
    ("model/coarse.safetensors", "generate", safetensors_arrays, 20),
    ("tokenizers/semantic/arrays.safetensors", "generate from checkpoints", safetensors_arrays, 15),
    ("shards/train/shard-00000.safetensors", "fit", safetensors_arrays, 20),
    ("statistics.npz", "read statistics", npz_arrays, 30),
    ("card/**/*.npz", "evaluate again", npz_arrays, 15),
    ("study/votes.sqlite", "listen report", vote_columns, 30),
)

TABLE: tuple[Row, ...] = (
    *(Row(FIELDS, file, work, json_fields, most) for file, work, most in JSON_FILES),
    *(Row(BYTES, file, work, bytes_of_file, 16) for file, work, _ in JSON_FILES),
    *(Row(BYTES, file, work, bytes_of_file, 16) for file, work in OTHER_FILES),
    *(Row(SETTINGS, file, work, yaml_fields, most, may_differ=True) for file, work, most in YAML_FILES),
    *(Row(CONTENT, file, work, damages, most) for file, work, damages, most in CONTENTS),
)

SWAPS = (
    ("shards/train/shard-00000.safetensors", "shards/train/shard-00001.safetensors", "fit"),
    ("shards/train/shard-00000.safetensors", "shards/validation/shard-00000.safetensors", "fit"),
    ("shards/train/manifest.json", "shards/validation/manifest.json", "fit"),
    ("stages/semantic.ckpt", "stages/coarse.ckpt", "generate from checkpoints"),
    ("stages/coarse.ckpt", "stages/fine.ckpt", "export"),
    ("model/coarse.safetensors", "model/fine.safetensors", "generate"),
    ("model/tokenizers/semantic/tokenizer.json", "model/tokenizers/acoustic/tokenizer.json", "generate"),
    ("tokenizers/semantic/arrays.safetensors", "tokenizers/acoustic/arrays.safetensors", "generate from checkpoints"),
    ("prepared/train/shard-00000.safetensors", "prepared/train/shard-00001.safetensors", "prepare again"),
    ("study/study.json", "study/key.json", "listen report"),
    ("take/instrumental.wav", "take/mix.wav", "repeat a take"),
    ("vocals/one.wav", "vocals/two.wav", "repeat a take"),
)
"""Two files that change places."""


def file_tries(workshop: Path, seed: int, share: float = 1.0) -> Iterator[Try]:
    """The tries of :data:`TABLE` and :data:`SWAPS`; ``share`` of each row, one at least."""
    for row in TABLE:
        matches = sorted((workshop / "inside").glob(row.file))
        if not matches:
            yield Try(row.kind, f"{row.file}: there is such a file", (row.work,), lambda bench: ["no such file"])
            continue
        file = str(matches[0].relative_to(workshop / "inside"))
        damages = [damage for damage in row.damages(matches[0]) if not _is_endless(damage.name)]
        generator = random.Random(f"{seed} {row.kind} {row.file} {row.work}")
        most = max(1, round(row.most * share))
        for damage in generator.sample(damages, min(most, len(damages))):
            do = partial(do_damage, row.work, file, damage, row.may_differ)
            yield Try(row.kind, f"{file}, {row.work}: {damage.name}", (row.work,), do)
    for first, second, work in SWAPS:
        yield Try("swapped files", f"{first} and {second}, {work}", (work,), partial(do_swap, work, first, second))


def _is_endless(name: str) -> bool:
    key, _, value = name.rpartition(" = ")
    if not key:
        key, _, value = name.rpartition(" ")[0].removesuffix(" left"), "", "left out"
    return value in ENDLESS.get(key.rpartition(".")[2], ())


def do_damage(work_name: str, file: str, damage: Damage, may_differ: bool, bench: Bench) -> list[str]:
    """Damage a copy, and run what reads it."""
    work = WORKS[work_name]
    bench.lay_out(work.reads)
    damage.apply(bench.inside / file)
    ending = bench.run(work)
    found = bench.judge(work, ending, (*damage.words, Path(file).name), may_differ=may_differ)
    if damage.refused and ending.code == 0:
        found.append("accepted")
    return found


def do_swap(work_name: str, first: str, second: str, bench: Bench) -> list[str]:
    """Exchange two files in a copy, and run what reads them."""
    work = WORKS[work_name]
    bench.lay_out(work.reads)
    swapped(bench.inside / first, bench.inside / second)
    return bench.judge(work, bench.run(work), (Path(first).name, Path(second).name))
