"""Two processes see each clip once and report the metrics of one process, for sizes that do not divide."""

import json
import math
from pathlib import Path

import pytest
import yaml
from fits import log_of
from resume_child import finish, start
from tiny_shards import write_tiny_shards

from hafm_lightning.callbacks.loggers import read_rows
from hafm_lightning.cli import main

STAGES = {
    "SemanticStage": {"conditioning": "aligned"},
    "CoarseStage": {"conditioning": "prefix"},
    "FineStage": {"conditioning": "prefix"},
}


def write_config(folder: Path, shards: Path, stage: str) -> Path:
    config = {
        "seed_everything": 1,
        "model": {
            "class_path": f"hafm_lightning.stages.{stage}",
            "init_args": {
                "backbone": {"layers": 1, "width": 16, "heads": 2, "feedforward": 24},
                "guidance_dropout": 0.0,
                **STAGES[stage],
            },
        },
        "data": {
            "class_path": "hafm_lightning.data_modules.TokenShards",
            "init_args": {"root": str(shards), "batch_size": 4, "eval_batch_size": 3},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "logs"),
            "callbacks": [{"class_path": "resume_child.Report", "init_args": {"folder": str(folder / "report")}}],
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def report(folder: Path, processes: int) -> tuple[dict[str, float], list[str]]:
    """The validation metrics (equal on all processes) and all clips seen."""
    told = [json.loads((folder / "report" / f"{rank}.json").read_text()) for rank in range(processes)]
    values = [{name: value for name, value in one["metrics"].items() if name.startswith("val/")} for one in told]
    assert all(value == values[0] for value in values)
    return values[0], [clip for one in told for batch in one["clips"] for clip in batch]


@pytest.mark.parametrize("stage", ["SemanticStage", "CoarseStage"])
def test_two_processes_report_what_one_reports(tmp_path, stage):
    """7 clips in batches of 3: 3 + 2 + 2 clips, two batches for the one process and one for the other."""
    shards = write_tiny_shards(tmp_path / "shards", train=(5, 4), validation=(4, 3))
    one, two = write_config(tmp_path / "one", shards, stage), write_config(tmp_path / "two", shards, stage)
    assert main(["fit", "--config", str(one)]) == 0
    best = str(tmp_path / "one" / "logs" / "run-000" / "checkpoints" / "best.ckpt")

    assert main(["validate", "--config", str(one), "--ckpt_path", best]) == 0
    arguments = ["validate", "--config", str(two), "--ckpt_path", best]
    assert finish(start(arguments, two.parent / "run", 2)) == [0, 0], log_of(two)
    alone, together = report(tmp_path / "one", 1), report(tmp_path / "two", 2)
    assert sorted(together[1]) == sorted(alone[1])
    assert len(set(together[1])) == len(together[1]) == 7
    assert {"val/loss", "val/accuracy", "val/accuracy_top10", "val/loss_null", "val/loss_other"} <= set(alone[0])
    assert together[0] == pytest.approx(alone[0], rel=1e-6, abs=1e-6)


def test_two_processes_train_like_one_with_the_whole_batch(tmp_path):
    shards = write_tiny_shards(tmp_path / "shards", train=(5, 4), validation=(4, 3))
    one, two = (write_config(tmp_path / name, shards, "SemanticStage") for name in ("one", "two"))
    each = ["--trainer.log_every_n_steps", "1"]
    assert main(["fit", "--config", str(one), "--data.batch_size", "4", *each]) == 0
    running = start(["fit", "--config", str(two), "--data.batch_size", "2", *each], two.parent / "run", 2)
    assert finish(running) == [0, 0], log_of(two)
    alone, together = report(tmp_path / "one", 1)[0], report(tmp_path / "two", 2)[0]
    rows = [
        read_rows(folder / "logs" / "run-000" / "metrics.csv")[0] for folder in (tmp_path / "one", tmp_path / "two")
    ]
    trained = [{k: float(v) for k, v in row.items() if v and k.startswith("train/")} for row in rows]
    assert {"train/loss", "train/accuracy", "train/accuracy_top10", "train/gradient_norm"} <= set(trained[0])
    assert trained[1] == pytest.approx(trained[0], rel=1e-6, abs=1e-6)
    assert together["val/loss"] == pytest.approx(alone["val/loss"], abs=1e-5)  # gradients are summed in another order


def test_processes_may_learn_different_codebooks_in_the_same_step(tmp_path):
    """Non-autoregressive: each process draws its own; scores of a codebook come from those that drew it."""
    shards = write_tiny_shards(tmp_path / "shards", train=(5, 4), validation=(4, 3))
    config = write_config(tmp_path / "run", shards, "FineStage")
    arguments = ["--model.pattern", "nonautoregressive", "--data.batch_size", "1", "--trainer.log_every_n_steps", "1"]
    running = start(["fit", "--config", str(config), *arguments, "--trainer.max_steps", "4"], config.parent / "run", 2)
    assert finish(running) == [0, 0], log_of(config)
    rows = [row for row in read_rows(tmp_path / "run" / "logs" / "run-000" / "metrics.csv") if row.get("train/loss")]
    assert len(rows) == 4
    drawn = [[float(row[f"train/loss_q{k}"]) for k in range(4)] for row in rows]
    losses = [[value for value in values if not math.isnan(value)] for values in drawn]
    assert all(1 <= len(values) <= 2 for values in losses)
    assert any(len(values) == 2 for values in losses), "the processes drew the same each time"
    for row, values in zip(rows, losses, strict=True):
        assert float(row["train/loss"]) == pytest.approx(sum(values) / len(values), rel=1e-6)
