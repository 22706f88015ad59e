"""Where a separation model is: a file, a folder with one, or the place where demucs stored its own.

Names of checkpoints: ``<signature>-<first eight digits of the sha256>.th``, as demucs names them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hafm_lightning.errors import RequestError

SUFFIXES = (".onnx", ".safetensors", ".th")
"""Files that are separation models: MDX-Net; HTDemucs as data; HTDemucs as demucs writes it."""
DEMUCS_FILES = {
    "htdemucs": "955717e8-8726e21a.th",
    "htdemucs_ft": "04573f0d-f3cf25b2.th",  # of its four models the one for vocals
    "htdemucs_6s": "5c90dfd2-34c22ccb.th",
}
"""Name of a model -> the file that demucs downloads for it."""


def find_model(name: str) -> Path:
    """The file of a model; RequestError, with the places that were searched, if there is none."""
    path = Path(name).expanduser()
    if name in DEMUCS_FILES and not path.exists():
        places = list(demucs_folders())
        found = next((place / file for place in places for file in _files(name) if (place / file).is_file()), None)
        if found is None:
            shown = ", ".join(map(str, places[:3]))
            raise RequestError(
                f"separation model {name}: no {DEMUCS_FILES[name]} in {shown}\n"
                "run demucs once, or give the path of its file as separation.model"
            )
        return found
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if len(inside) != 1:
            listed = ", ".join(file.name for file in inside[:5]) or "none"
            raise RequestError(f"{path} must hold one model ({', '.join(SUFFIXES)}), it holds {len(inside)}: {listed}")
        return inside[0]
    if not name or not path.is_file():
        raise RequestError(
            f"separation model {name or '(none)'} does not exist\n"
            f"give separation.model: an MDX-Net file (.onnx), an HTDemucs file, or {', '.join(DEMUCS_FILES)}"
        )
    return path


def _files(name: str) -> tuple[str, ...]:
    return (DEMUCS_FILES[name], f"{name}.safetensors", f"{DEMUCS_FILES[name].partition('-')[0]}.safetensors")


def demucs_folders() -> Iterator[Path]:
    """Folders in which torch.hub and huggingface_hub keep the files of demucs."""
    caches = [Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()]
    homes = [Path(os.environ["TORCH_HOME"]).expanduser()] if os.environ.get("TORCH_HOME") else []
    for home in [*homes, *(cache / "torch" for cache in caches)]:
        yield home / "hub" / "checkpoints"
    home = Path(os.environ.get("HF_HOME") or caches[0] / "huggingface")
    hub = os.environ.get("HF_HUB_CACHE") or home / "hub"
    for repository in sorted(Path(hub).expanduser().glob("models--*demucs*")):
        yield from sorted((repository / "snapshots").glob("*"))
