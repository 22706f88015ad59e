"""One function that loads whatever training and `export` have written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hafm_lightning.accompanist import Accompanist
from hafm_lightning.accompanist.model_folder import CONFIG_FILE
from hafm_lightning.checkpoint_format import best_in
from hafm_lightning.errors import RequestError

if TYPE_CHECKING:
    from hafm_lightning.stages import Stage

__all__ = ["ROLES", "load"]

ROLES = ("semantic", "coarse", "fine")


def load(source: str | Path, device: str = "auto") -> Accompanist | Stage:
    """A model, or one of its stages, from where it lies.

    ============================================== ==================================================================
    a folder that `export` wrote, or an id on the   :class:`~hafm_lightning.accompanist.Accompanist`
    Hugging Face Hub
    a folder with runs ``semantic``, ``coarse``     :class:`~hafm_lightning.accompanist.Accompanist` of the best
    (and ``fine``)                                  checkpoints; of two stages without ``fine``
    a checkpoint, a run folder, a folder of runs    :class:`~hafm_lightning.stages.Stage`, on the CPU: the best one
    ============================================== ==================================================================

    Args:
        source: Path or id.
        device: Where an Accompanist computes: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        RequestError: There is no such file, or it is none of these.

    >>> load("no/such/model.ckpt")
    Traceback (most recent call last):
    ...
    hafm_lightning.errors.RequestError: no/such/model.ckpt: no such checkpoint file
    """
    path = Path(source).expanduser()
    if path.is_dir() and not (path / CONFIG_FILE).is_file():
        return _from_runs(path, device)
    if path.is_file() or path.suffix == ".ckpt":
        from hafm_lightning.stages import load_stage

        return load_stage(path)
    how: Any = {"device": device}
    return Accompanist.from_pretrained(str(source), **how)


def _from_runs(path: Path, device: str) -> Accompanist | Stage:
    best = best_in(path)
    if best:
        from hafm_lightning.stages import load_stage

        return load_stage(best)
    semantic, coarse, fine = (best_in(path / role) for role in ROLES)
    if not semantic or not coarse:
        raise RequestError(
            f"{path}: holds no {CONFIG_FILE} of a model, no best checkpoint of a run, and no runs `semantic` and "
            "`coarse`\nname a model folder, a run folder, a checkpoint, or an id on the Hugging Face Hub"
        )
    how: Any = {"device": device, "stages": 3 if fine else 2}
    return Accompanist.from_checkpoints(semantic, coarse, fine or None, **how)
