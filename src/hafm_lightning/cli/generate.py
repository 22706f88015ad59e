"""``generate``: accompaniments and mixes of vocals; ``generate --take``: repeat a recorded take."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hafm_lightning.accompanist import Accompanist, MixOptions, Take
from hafm_lightning.accompanist.take import RECORD_FILE, TAKE_FORMAT
from hafm_lightning.audio import probe_audio
from hafm_lightning.cli.band_arguments import (
    ROLES,
    add_mix_arguments,
    add_model_arguments,
    add_sampling_arguments,
    load_band,
    options_of,
)
from hafm_lightning.cli.parser import Parser, check_writable
from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.progress import progress

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".m4a", ".aac", ".wma"})
"""Files that are read from a folder of vocals."""


def main(argv: Sequence[str]) -> int:
    """Run the command; 0 done, 1 a repeated take differs. A file that cannot be used raises at the end."""
    parser = Parser("generate", "Make the accompaniment of vocals of any length, and the mix.")
    parser.add_argument("--vocal", action="append", metavar="FILE_OR_DIR", help="vocal or folder of vocals; repeatable")
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder; several vocals get subfolders")
    parser.add_argument("--take", metavar="FILE", help="a take.json: repeat this take and compare the files")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same take (default: 0)")
    parser.add_argument("--batch-size", type=int, default=1, help="vocals that are generated together (default: 1)")
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    add_mix_arguments(parser)
    arguments = parser.parse_args(argv)
    out = Path(arguments.out)
    if (arguments.take is None) == (arguments.vocal is None):
        raise RequestError("give either --vocal (what to accompany) or --take (a take.json to repeat)")
    check_writable(out)
    if arguments.take is not None:
        return repeat(Path(arguments.take), out, arguments.model)
    if arguments.batch_size < 1:
        raise RequestError(f"--batch-size must be 1 or more, got {arguments.batch_size}")
    options, mix = options_of(SamplingOptions, arguments), options_of(MixOptions, arguments)
    vocals = find_vocals([Path(name) for name in arguments.vocal])
    folders = output_folders(vocals, out)
    band = load_band(arguments)
    perform = partial(
        band.accompany_batch, options=options, mix=mix, style=arguments.style, overlap_s=arguments.overlap_s
    )
    refused = []
    for start in range(0, len(vocals), arguments.batch_size):
        batch = vocals[start : start + arguments.batch_size]
        title = f"{start + 1}-{start + len(batch)} of {len(vocals)}"
        try:
            takes = accompany(perform, batch, [arguments.seed] * len(batch), title)
        except RequestError as error:
            if len(vocals) == 1:
                raise
            refused.append(str(error))
            continue
        for vocal, take in zip(batch, takes, strict=True):
            print(summary(take.save(folders[vocal]), take), flush=True)
    if refused:
        count = f"{len(refused)} of {len(vocals)} vocals (or batches with them) were not accompanied"
        raise RequestError("\n".join([f"{count}:", *refused[:3]]))
    return 0


def accompany(
    perform: Callable[..., list[Take]], vocals: Sequence[Path], seeds: Sequence[int], title: str
) -> list[Take]:
    """Accompany a batch behind a progress bar in percent, with the real-time factor up to now beside it."""
    seconds = sum(probe_audio(vocal).duration_s for vocal in vocals)
    with progress(f"Accompanying {vocals[0].name} ({title})", 100, "%") as bar:
        shown, began = 0.0, time.perf_counter()

        def report(share: float) -> None:
            nonlocal shown
            factor = (time.perf_counter() - began) / (share * seconds) if share else 0.0
            bar.advance(round(100 * share, 2) - shown, f"real-time factor {factor:.2f}" if share else "")
            shown = round(100 * share, 2)

        return perform(vocals, seeds=seeds, on_progress=report)


def summary(folder: Path, take: Take) -> str:
    """A line about a finished take, as JSON."""
    facts = {
        "folder": str(folder),
        "seconds": round(take.instrumental.duration_s, 3),
        "real_time_factor": round(take.real_time_factor, 3),
        "seed": take.record["seed"],
    }
    return json.dumps(facts)


def find_vocals(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the audio files of the folders named; RequestError for a missing or empty one."""
    found = []
    for path in paths:
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file()]
            if not inside:
                raise RequestError(f"{path}: no audio files in this folder")
            found += sorted(inside)
        elif path.is_file():
            found.append(path)
        else:
            raise RequestError(f"{path}: no such file or folder; check --vocal")
    return list(dict.fromkeys(found))


def output_folders(vocals: Sequence[Path], out: Path) -> dict[Path, Path]:
    """The folder of each take: ``out`` itself for one vocal, else a folder each, named after its file."""
    if len(vocals) == 1:
        return {vocals[0]: out}
    vocal_of: dict[Path, Path] = {}
    for vocal in vocals:
        folder, number = out / vocal.stem, 2
        while folder in vocal_of:
            folder, number = out / f"{vocal.stem}-{number}", number + 1
        vocal_of[folder] = vocal
    return {vocal: folder for folder, vocal in vocal_of.items()}


def repeat(record_path: Path, out: Path, model: str | None) -> int:
    """Repeat a recorded take into ``out``, with the recorded model or another model folder, and compare the files.

    Returns:
        0 when both files are the same bit for bit, else 1.

    Raises:
        RequestError: Not a take, or its vocal or model is gone or has changed.
    """
    record = read_record(record_path)
    batch, settings, machine = record["batch"], record["settings"], record["machine"]
    for vocal in batch["vocals"]:
        if vocal["path"] is None:
            raise RequestError(f"{record_path}: the vocal was sound in memory, so there is no file to read")
        if not Path(vocal["path"]).is_file():
            raise RequestError(f"{record_path}: the vocal {vocal['path']} no longer exists")
        if sha256_of(Path(vocal["path"])) != vocal["sha256"]:
            raise RequestError(f"{record_path}: the vocal {vocal['path']} has changed since the take")
    torch.set_num_threads(machine["threads"])
    perform = partial(
        recorded_band(record, model).accompany_batch,
        options=SamplingOptions(*(settings[name] for name in ("guidance", "temperature", "top_k", "top_p"))),
        style=settings["style"],
        overlap_s=settings["overlap_s"],
        mix=MixOptions(**settings["mix"]),
    )
    vocals = [Path(vocal["path"]) for vocal in batch["vocals"]]
    take = accompany(perform, vocals, batch["seeds"], "again")[batch["index"]]
    folder = take.save(out)
    print(summary(folder, take), flush=True)
    again = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    if again["outputs"] == record["outputs"]:
        print("identical: both files are the same, bit for bit", file=sys.stderr)
        return 0
    now = take.record["machine"]
    changed = [f"{name}: {machine.get(name)} -> {now[name]}" for name in now if machine.get(name) != now[name]]
    differences = ", ".join(changed) or "none recorded"
    print(f"the files differ from the recorded ones; differences of the machine: {differences}", file=sys.stderr)
    return 1


def recorded_band(record: Mapping[str, Any], model: str | None) -> Accompanist:
    """The model of a record, checked by its hashes; ``model`` replaces the recorded folder."""
    origin, machine = record["model"]["origin"], record["machine"]
    runs_as = {"stages": record["settings"]["stages"], "device": machine["device"], "precision": machine["precision"]}
    if model is not None:
        band = Accompanist.from_pretrained(model, **runs_as)
    elif "model" in origin:
        band = Accompanist.from_pretrained(origin["model"], revision=origin["revision"], **runs_as)
    elif "semantic" in origin:
        band = Accompanist.from_checkpoints(**{name: origin.get(name) for name in (*ROLES, "tokenizers")}, **runs_as)
    else:
        raise RequestError("the take does not name the source of its model; name a model folder with --model")
    for network in band.networks:
        recorded = record["model"]["stages"][network.role]["sha256"]
        if network.sha256 != recorded:
            raise RequestError(
                f"{network.source}: these are not the weights of the take "
                f"(sha256 {network.sha256[:12]}, recorded {recorded[:12]}); name the right model with --model"
            )
    return band


def read_record(path: Path) -> dict[str, Any]:
    """A `take.json`; RequestError when it is missing, damaged or newer."""
    if not path.is_file():
        raise RequestError(f"--take {path}: no such file; name a {RECORD_FILE}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = int(record["format"])
        complete = {"seed", "settings", "batch", "model", "machine", "outputs"} <= set(record)
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"--take {path}: not a take of this program ({error!r})") from error
    if version > TAKE_FORMAT:
        raise RequestError(f"--take {path}: format {version} is newer than {TAKE_FORMAT}; upgrade hafm_lightning")
    if not complete:
        raise RequestError(f"--take {path}: not a complete take; make it again with --vocal")
    return dict(record)
