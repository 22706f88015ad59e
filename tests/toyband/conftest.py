"""Songs that several tests of the toy band share."""

from __future__ import annotations

import pytest

from hafm_lightning.toyband import corpus as toyband
from hafm_lightning.toyband.corpus import synthesise_song


@pytest.fixture(scope="module")
def song() -> toyband.ToySong:
    return synthesise_song(11, 12.0)
