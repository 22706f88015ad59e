"""``configs``: list the configurations that come with the package, or copy them into a folder to use and change.

An installation from a wheel holds them as ``hafm_lightning/experiments``; in a checkout that name is a link.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import hafm_lightning
from hafm_lightning.cli.parser import PROGRAM, Parser, check_writable
from hafm_lightning.errors import RequestError

FOLDER = "experiments"
"""Folder of the configurations in the package, in a checkout, and in the commands of the documentation."""


def shipped_folder() -> Path:
    """The folder of the configurations that come with the package.

    Raises:
        RequestError: The installation holds none.
    """
    folder = Path(hafm_lightning.__file__).parent / FOLDER
    if not folder.is_dir():
        raise RequestError(f"{folder} does not exist: the installation is incomplete; install hafm-lightning again")
    return folder


def shipped_configurations() -> list[Path]:
    """Paths of the configurations, relative to :func:`shipped_folder`, those at its top first."""
    folder = shipped_folder()
    files = [path.relative_to(folder) for path in folder.rglob("*.yaml")]
    return sorted(files, key=lambda path: (len(path.parts), path.as_posix()))


def purpose(path: Path) -> str:
    """The first sentence of the comment at the head of a configuration."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def main(argv: Sequence[str]) -> int:
    """List or copy the configurations; 0 when that is done."""
    parser = Parser("configs", "List the configurations that come with the package, or copy them.")
    copied = f"copy them to DIR/{FOLDER}, so that commands in DIR can read {FOLDER}/coarse.yaml"
    parser.add_argument("--copy", type=Path, metavar="DIR", help=copied)
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names that were changed")
    arguments = parser.parse_args(argv)
    if arguments.copy is None:
        if arguments.overwrite:
            raise RequestError("--overwrite is for --copy DIR; without it nothing is written")
        for name in shipped_configurations():
            print(f"{FOLDER}/{name.as_posix():<44} {purpose(shipped_folder() / name)}")
        print(f"\nto use and change them: {PROGRAM} configs --copy .")
        return 0
    target = arguments.copy / FOLDER
    print(f"{target}: {copy_configurations(target, overwrite=arguments.overwrite)} configurations")
    return 0


def copy_configurations(target: Path, *, overwrite: bool) -> int:
    """Copy all configurations into ``target`` and return their number; files that are the same are left alone.

    Raises:
        RequestError: ``target`` cannot be written, or holds files with other content and ``overwrite`` is False. Then
            nothing is copied.
    """
    source, names = shipped_folder(), shipped_configurations()
    check_writable(target, "--copy")
    if target.exists() and target.resolve() == source.resolve():
        raise RequestError(f"--copy: {target} is the folder that the configurations come from; choose another folder")
    changed = [name for name in names if (target / name).exists() and not same(source / name, target / name)]
    if changed and not overwrite:
        shown = ", ".join(name.as_posix() for name in changed[:3]) + (", ..." if len(changed) > 3 else "")
        raise RequestError(
            f"--copy: {target} holds {len(changed)} configurations with other content: {shown}\n"
            "choose another folder, or add --overwrite to replace them"
        )
    for name in names:
        try:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
        except OSError as error:
            raise RequestError(f"--copy: {target / name} cannot be written ({error.strerror})") from error
    return len(names)


def same(one: Path, other: Path) -> bool:
    """True if two files hold the same bytes."""
    return other.is_file() and one.read_bytes() == other.read_bytes()
