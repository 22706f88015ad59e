"""The evaluation card: :func:`write_card` writes its three files."""

from __future__ import annotations

from pathlib import Path

from hafm_lightning.evaluation.card.card import JSON_FILE, MARKDOWN_FILE, PAGE_FILE, Card, markdown
from hafm_lightning.evaluation.card.page import page
from hafm_lightning.files import write_atomic, write_json


def write_card(card: Card, folder: Path) -> list[Path]:
    """Write ``card.json``, ``card.md`` and ``card.html``; returns their paths."""
    paths = [folder / name for name in (JSON_FILE, MARKDOWN_FILE, PAGE_FILE)]
    write_json(paths[0], card.as_dict())
    write_atomic(paths[1], markdown(card).encode())
    write_atomic(paths[2], page(card).encode())
    return paths
