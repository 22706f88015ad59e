"""These tests need the extra ``listen``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_study import make_tiny_study

if TYPE_CHECKING:
    from served_study import Served

NEEDED = ("starlette", "uvicorn", "httpx2")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A study of two clips behind the application."""
    from served_study import Served

    folder = tmp_path / "study"
    folder.mkdir()
    with ExitStack() as stack:
        yield Served(*make_tiny_study(folder, clips=2), stack)
