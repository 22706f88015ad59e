"""The small card of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_card import make_card

from hafm_lightning.evaluation.card.card import Card


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return make_card(tmp_path)
