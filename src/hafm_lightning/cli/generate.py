"""``generate``: accompaniments and mixes of vocals; ``generate --take``: repeat a recorded take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from hafm_lightning.accompanist import MixOptions, Take
from hafm_lightning.accompanist.song import LoadedVocal, load_vocal
from hafm_lightning.accompanist.take import INSTRUMENTAL_FILE, MIX_FILE, RECORD_FILE
from hafm_lightning.cli.band_arguments import (
    add_mix_arguments,
    add_model_arguments,
    add_performance_arguments,
    add_sampling_arguments,
    load_band,
    options_of,
    sampling_options,
)
from hafm_lightning.cli.outcomes import DONE, ERROR_LINES, FAILED, readable
from hafm_lightning.cli.parser import Parser, check_writable, whole
from hafm_lightning.cli.repeating import repeat
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.progress import progress
from hafm_lightning.untrusted import child, file_stem

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".m4a", ".aac", ".wma"})
"""Files that are read from a folder of vocals."""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0 when all is done; 1 when some of several vocals could not be accompanied, or a repeated take differs.
    """
    parser = Parser("generate", "Make the accompaniment of vocals of any length, and the mix.")
    parser.add_argument("--vocal", action="append", metavar="FILE_OR_DIR", help="vocal or folder of vocals; repeatable")
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder; several vocals get subfolders")
    parser.add_argument("--take", metavar="FILE", help="a take.json: repeat this take and compare the files")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same take (default: 0)")
    parser.add_argument("--batch-size", type=whole(1), default=1, help="vocals generated together (default: 1)")
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    add_performance_arguments(parser)
    add_mix_arguments(parser)
    arguments = parser.parse_args(argv)
    out = Path(arguments.out)
    if (arguments.take is None) == (arguments.vocal is None):
        raise RequestError("give either --vocal (what to accompany) or --take (a take.json to repeat)")
    check_writable(out)
    if arguments.take is not None:
        return repeat(Path(arguments.take), out, arguments.model)
    mix = options_of(MixOptions, arguments)
    sampling_options(arguments, SamplingOptions())  # refused before the model is read
    vocals = find_vocals([Path(name) for name in arguments.vocal])
    folders = output_folders(vocals, out)
    band = load_band(arguments)
    perform = partial(
        band.accompany_batch,
        options=sampling_options(arguments, band.sampling),
        mix=mix,
        style=arguments.style,
        overlap_s=arguments.overlap_s,
        vocal_noise=arguments.vocal_noise,
    )
    failures: list[str] = []
    for start in range(0, len(vocals), arguments.batch_size):
        batch = vocals[start : start + arguments.batch_size]
        loaded = _loaded(batch, failures, alone=len(vocals) == 1)
        if not loaded:
            continue
        title = f"{start + 1}-{start + len(batch)} of {len(vocals)}"
        for vocal, take in zip(loaded, accompany(perform, loaded, arguments.seed, title), strict=True):
            try:
                folder = take.save(folders[vocal])
            except (RequestError, OSError) as error:
                if len(vocals) == 1:
                    raise
                failures.append(str(error))
                continue
            print(take.summary(folder), flush=True)
    return _told(failures, len(vocals))


def _loaded(vocals: Sequence[Path], failures: list[str], alone: bool) -> dict[Path, LoadedVocal]:
    """The vocals that can be read; what is wrong with the others goes to ``failures``."""
    loaded = {}
    for vocal in vocals:
        try:
            loaded[vocal] = load_vocal(vocal)
        except RequestError as error:
            if alone:
                raise
            failures.append(str(error))
    return loaded


def _told(failures: Sequence[str], total: int) -> int:
    """Print what failed, in at most five lines; the exit code. RequestError if nothing was done."""
    if not failures:
        return DONE
    shown = ERROR_LINES - 2 if len(failures) > ERROR_LINES - 1 else ERROR_LINES - 1
    lines = [failure.splitlines()[0] for failure in failures[:shown]]
    if len(failures) > shown:
        lines.append(f"and {len(failures) - shown} more")
    if len(failures) == total:
        raise RequestError("\n".join(["no vocal could be accompanied:", *lines]))
    lines.insert(0, f"failed: {len(failures)} of {total} vocals were not accompanied:")
    print("\n".join(map(readable, lines)), file=sys.stderr)
    return FAILED


def accompany(
    perform: Callable[..., list[Take]], vocals: Mapping[Path, LoadedVocal], seed: int, title: str
) -> list[Take]:
    """Accompany a batch behind a progress bar in percent, with the real-time factor up to now beside it."""
    seconds = sum(vocal.audio.duration_s for vocal in vocals.values())
    with progress(f"Accompanying {readable(next(iter(vocals)).name)} ({title})", 100, "%") as bar:
        shown, began = 0.0, time.perf_counter()

        def report(share: float) -> None:
            nonlocal shown
            factor = (time.perf_counter() - began) / (share * seconds) if share else 0.0
            bar.advance(round(100 * share, 2) - shown, f"real-time factor {factor:.2f}" if share else "")
            shown = round(100 * share, 2)

        return perform(list(vocals.values()), seeds=[seed] * len(vocals), on_progress=report)


def find_vocals(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the audio files of the folders named; RequestError for a missing or empty one.

    Hidden files (macOS writes `._vocal.wav` beside `vocal.wav`) and the sounds of earlier takes are no vocals; a line
    on stderr counts them. A file that is named itself is always one.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file()]
            hidden = {file for file in inside if any(part.startswith(".") for part in file.relative_to(path).parts)}
            taken = {file for file in inside if file not in hidden and is_of_a_take(file)}
            vocals = sorted(set(inside) - hidden - taken)
            skipped = [f"{len(hidden)} hidden files"] * bool(hidden) + [f"{len(taken)} files of takes"] * bool(taken)
            if skipped:
                print(readable(f"{path}: skipped {' and '.join(skipped)}"), file=sys.stderr)
            if not vocals:
                raise RequestError(f"{path}: no audio files in this folder{', but for those skipped' * bool(skipped)}")
            found += vocals
        elif path.is_file():
            found.append(path)
        else:
            raise RequestError(f"{path}: no such file or folder; check --vocal")
    return list(dict.fromkeys(found))


def is_of_a_take(file: Path) -> bool:
    """Whether `generate` has written this file."""
    return file.name in (INSTRUMENTAL_FILE, MIX_FILE) and (file.parent / RECORD_FILE).is_file()


def output_folders(vocals: Sequence[Path], out: Path) -> dict[Path, Path]:
    """The folder of each take: ``out`` itself for one vocal, else a folder in it each, named after its file."""
    if len(vocals) == 1:
        return {vocals[0]: out}
    names: dict[str, Path] = {}  # by their form where upper and lower case are the same
    folders = {}
    for vocal in vocals:
        stem = name = file_stem(vocal.name)
        number = 2
        while name.casefold() in names:
            name, number = f"{stem}-{number}", number + 1
        names[name.casefold()] = vocal
        folders[vocal] = child(out, name, "the folder of a take")
    return folders
