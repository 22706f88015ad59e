"""Give a singing voice a band: train, run and judge HAFM-style accompaniment models.

::

    import hafm_lightning

    band = hafm_lightning.load("demo/model")           # a model folder, a Hub id, or the folder of the stages' runs
    take = band.accompany("vocal.wav", seed=0)         # in a notebook, `take` is two players
    take.save("out/")                                  # instrumental.wav, mix.wav, take.json
    hafm_lightning.fad("out/", "references/")          # Frechet audio distance of two folders

The names below are imported when they are first used, so that a model folder can be used where Lightning is not
installed. The command line is ``hafm``, or ``python -m hafm_lightning``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hafm_lightning.accompanist import Accompanist, Take
    from hafm_lightning.evaluation.distances.folders import fad
    from hafm_lightning.loading import load
    from hafm_lightning.stages import load_stage

__version__ = "0.1.0"
__all__ = ["Accompanist", "Take", "__version__", "fad", "load", "load_stage"]

_HOMES = {
    "Accompanist": "hafm_lightning.accompanist",
    "Take": "hafm_lightning.accompanist",
    "fad": "hafm_lightning.evaluation.distances.folders",
    "load": "hafm_lightning.loading",
    "load_stage": "hafm_lightning.stages",
}
"""Name -> the module that it is imported from."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
