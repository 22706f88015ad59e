"""What one pass of the MusicEvaluation callback costs, stage by stage, on this machine.

    python benchmarks/music_evaluation.py --root data/quickstart/toyband \\
        --tokenizers data/quickstart/shards/tokenizers --config experiments/quickstart/coarse.yaml

The stage is untrained: time does not depend on what it has learnt. Printed are seconds of wall and of processor time
for reading and tokenizing (once a run), and for a pass (at each validation).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger

from hafm_lightning.callbacks import MusicEvaluation
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.stages import STAGES, Stage


def stage_of(config: Path) -> Stage:
    """The untrained stage that an experiment describes."""
    model = yaml.safe_load(config.read_text())["model"]
    settings: dict[str, Any] = dict(model["init_args"])
    settings.pop("optimizer", None)
    settings["backbone"] = BackboneConfig(**settings["backbone"])
    return STAGES[model["class_path"].rsplit(".", 1)[-1]](**settings)


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--tokenizers", required=True)
    parser.add_argument("--config", type=Path, nargs="+", required=True)
    parser.add_argument("--clips", type=int, default=33)
    parser.add_argument("--duration-s", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for config in options.config:
        stage = stage_of(config)
        with tempfile.TemporaryDirectory() as folder:
            evaluation = MusicEvaluation(
                options.root,
                clips=options.clips,
                duration_s=options.duration_s,
                tokenizers=options.tokenizers,
                active=0.5,
            )
            trainer = pl.Trainer(
                accelerator="auto",
                devices=1,
                logger=CSVLogger(folder),
                callbacks=[evaluation],
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            trainer.strategy.connect(stage)
            stage.to(trainer.strategy.root_device)
            start, busy = time.perf_counter(), time.process_time()
            material = evaluation._prepare(trainer, stage)
            prepared, prepared_busy = time.perf_counter() - start, time.process_time() - busy
            passes = []
            for _ in range(2):  # the first also measures the codec's ceiling
                start, busy = time.perf_counter(), time.process_time()
                with torch.inference_mode():
                    evaluation._measure(trainer, stage, material)
                passes.append((time.perf_counter() - start, time.process_time() - busy))
        entry = {
            "config": str(config),
            "device": str(stage.device),
            "threads": torch.get_num_threads(),
            "clips": len(material.clips),
            "duration_s": options.duration_s,
            "prepare_s": prepared,
            "prepare_cpu_s": prepared_busy,
            "first_pass_s": passes[0][0],
            "first_pass_cpu_s": passes[0][1],
            "pass_s": passes[1][0],
            "pass_cpu_s": passes[1][1],
        }
        results.append(entry)
        print(json.dumps(entry, indent=1))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
