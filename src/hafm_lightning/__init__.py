"""Give a singing voice a band: train, run and judge HAFM-style accompaniment models.

:class:`Accompanist` turns a vocal into its accompaniment; :func:`load_stage` gives a trained stage. Both are imported
when first asked for, so that a model folder can be used where Lightning is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hafm_lightning.accompanist import Accompanist
    from hafm_lightning.stages import load_stage

__version__ = "0.1.0"
__all__ = ["Accompanist", "__version__", "load_stage"]


def __getattr__(name: str) -> object:
    if name == "Accompanist":
        from hafm_lightning.accompanist import Accompanist

        return Accompanist
    if name == "load_stage":
        from hafm_lightning.stages import load_stage

        return load_stage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
