"""``listen build``: make a listening study of a configuration of ``evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hafm_lightning.cli.evaluate import with_best_checkpoints, with_lists
from hafm_lightning.cli.parser import PROGRAM
from hafm_lightning.configuration.settings import parse_settings
from hafm_lightning.errors import RequestError

DESCRIPTION = (
    "Make a blind listening study: a folder of trials without names, and the key that names the systems. Takes a "
    "configuration of `evaluate` with a section `study`; generations that `evaluate` has kept are used again. "
    "Short forms: --study DIR for --study.folder DIR, --sounds NAME=DIR for --study.sounds.NAME DIR, "
    "--webmushra DIR for --study.webmushra DIR, --vocals DIR for --study.vocals DIR."
)
SHORT = {"--study": "--study.folder", "--webmushra": "--study.webmushra", "--vocals": "--study.vocals"}
SOUNDS = "--sounds"
LISTS = ("--systems", "--metrics", "--study.systems", "--study.criteria")


def main(argv: Sequence[str]) -> int:
    """Build a study and print where it is.

    Raises:
        RequestError: The settings are wrong, or songs, sounds, model or tokenizers are missing.
    """
    from hafm_lightning.listening.trials.settings import ListenSettings

    settings = parse_settings(ListenSettings, full_arguments(argv), f"{PROGRAM} listen build", DESCRIPTION)
    settings = with_best_checkpoints(settings)
    from hafm_lightning.listening.build import build_study
    from hafm_lightning.listening.study import KEY_FILE
    from hafm_lightning.listening.trials.material import select_clips, write_vocals
    from hafm_lightning.listening.webmushra import export_webmushra

    if settings.study.vocals:
        files = write_vocals(select_clips(settings), Path(settings.study.vocals))
        print(f"{len(files)} vocals in {settings.study.vocals}; a folder of --sounds has files of the same names")
        return 0
    study = build_study(settings)
    minutes = len(study.trials) * 3 * study.duration_s / 60
    print(f"{study.folder}: {len(study.trials)} trials, at least {minutes:.0f} minutes of listening")
    print(f"{study.folder / KEY_FILE}: names the systems; keep it from listeners")
    if settings.study.webmushra:
        print(f"{export_webmushra(study, settings.study.webmushra)}: the same study for webMUSHRA")
    return 0


def full_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments with the short forms in full, and lists of names in brackets.

    Raises:
        RequestError: ``--sounds`` is not ``NAME=FOLDER``, or names a system twice.
    """
    result: list[str] = []
    waiting = list(argv)
    named: set[str] = set()
    while waiting:
        name, equals, text = waiting.pop(0).partition("=")
        if name != SOUNDS:
            result.append(f"{SHORT.get(name, name)}{equals}{text}")
            continue
        if not equals:
            text = waiting.pop(0) if waiting else ""
        system, _, folder = text.partition("=")
        if not system or not folder or "." in system:
            raise RequestError(f"{SOUNDS} {text}: expected NAME=FOLDER, with a name of letters, digits, '-' and '_'")
        if system in named:
            raise RequestError(f"{SOUNDS}: two systems have the name {system}; each needs a name of its own")
        named.add(system)
        result += [f"--study.sounds.{system}", folder]
    return with_lists(result, LISTS)
