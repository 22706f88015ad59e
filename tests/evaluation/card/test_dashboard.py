"""The card on W&B, offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hafm_lightning.evaluation.card.card import (
    Card,
)
from hafm_lightning.evaluation.card.dashboard import log_to_wandb, plot_rows, table_rows


def test_weights_and_biases_get_tables_and_probes_offline(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert "offline" in log_to_wandb(card, tmp_path, "test")
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/evaluate/*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"][:6] == ["system", "clips", "failed", "fad_logmel", "fad_logmel_low", "fad_logmel_high"]
    assert content["data"][1][:6] == ["system b", 33, 2, 1.5, 1.25, 1.75]
    (probe,) = tmp_path.glob("wandb/offline-run-*/files/media/table/evaluate/probes/*.table.json")
    content = json.loads(probe.read_text())
    assert content["columns"] == ["curve", "x", "y", "low", "high"]
    assert content["data"][0] == ["semantic", -1.0, 0.5, 0.4, 0.6]
    assert content["data"][-1] == ["another song", None, 0.75, None, None]


def test_dashboard_rows_hold_every_number_of_the_card(card: Card) -> None:
    columns, rows = table_rows(card.tables[0])
    assert all(len(row) == len(columns) for row in rows)
    assert rows[1] == ["system b", 33, 2, 1.5, 1.25, 1.75, None, None, None]
    assert len(plot_rows(card.plots[0])) == 4
