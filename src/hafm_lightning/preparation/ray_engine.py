"""The same work on a Ray cluster, through Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from hafm_lightning.preparation.engines import EngineSettings

U = TypeVar("U")
R = TypeVar("R")


class RayEngine:
    """Runs units in Ray actors."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings

    def map(self, work: Callable[[U], R], units: Sequence[U]) -> Iterator[tuple[int, R]]:
        """In order of completion."""
        raise NotImplementedError

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        pass
