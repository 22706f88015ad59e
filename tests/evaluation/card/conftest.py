"""The small card of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from cards import small_card

from hafm_lightning.evaluation.card.card import Card


@pytest.fixture
def card(tmp_path: Path) -> Card:
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "a b.wav").write_bytes(b"RIFF")  # the sound of its player
    return small_card()
