"""How soon does a stage listen? Prefix against aligned conditioning, at equal steps and at equal seconds.

Trains small semantic stages that differ in their conditioning alone, on the same data in the same order, and follows on
held-out clips the cross-entropy, CE(null) - CE and CE(other song) - CE. Seconds are processor seconds of one thread, so
that other programs on the machine disturb them little.

    python -m hafm_lightning prepare --config experiments/quickstart/prepare.yaml
    python benchmarks/conditioning.py --json benchmarks/results/conditioning.json

Two processes may share the work: ``--variants`` and ``--seeds`` choose a part, ``--merge A.json B.json`` joins parts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hafm_lightning.data_modules import TokenShards
from hafm_lightning.evaluation.conditioning_gain import clip_losses
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.stages import OptimizerConfig, SemanticStage
from hafm_lightning.tokens import TokenBatch

VARIANTS: dict[str, dict[str, Any]] = {
    "prefix, index": {"conditioning": "prefix", "relative_position": "index"},
    "prefix, time": {"conditioning": "prefix", "relative_position": "time"},
    "prefix, time, bidirectional": {
        "conditioning": "prefix",
        "relative_position": "time",
        "prefix_mask": "bidirectional",
    },
    "aligned, 0.3 s ahead": {"conditioning": "aligned", "look_ahead_s": 0.3},
    "aligned, 0.1 s ahead": {"conditioning": "aligned", "look_ahead_s": 0.1},
    "aligned, 0 s ahead": {"conditioning": "aligned", "look_ahead_s": 0.0},
}
BASELINE, RECOMMENDED = "prefix, index", "aligned, 0.3 s ahead"
BACKBONE = BackboneConfig(layers=3, width=96, heads=4, feedforward=384)
WARMUP_STEPS = 40
CROP_S, BATCH = 3.0, 16


@dataclass(frozen=True)
class Point:
    """One look at the held-out clips."""

    steps: int
    seconds: float
    loss: float
    gain: float
    gap: float


def held_out(data: TokenShards, clips: int) -> TokenBatch:
    """The first ``clips`` test clips, cropped as in training."""
    data.setup("test")
    batches = []
    for batch in data.test_dataloader():
        batches.append(batch)
        if sum(map(len, batches)) >= clips:
            break
    return TokenBatch.concatenate(batches).rows(range(min(clips, sum(map(len, batches)))))


def train(variant: str, seed: int, root: str, seconds: float, every_s: float, rate: float) -> list[Point]:
    """Train one variant for ``seconds`` of processor time; a point every ``every_s``."""
    torch.manual_seed(seed)
    stage = SemanticStage(backbone=BACKBONE, **VARIANTS[variant])
    optimizer = torch.optim.AdamW(stage.parameters(), lr=rate, weight_decay=0.01, fused=True)
    schedule = OptimizerConfig(learning_rate=rate, warmup_steps=WARMUP_STEPS)
    data = TokenShards(root, BATCH, crop_s=CROP_S, seed=seed)
    clips = held_out(TokenShards(root, BATCH, crop_s=CROP_S), 72)
    data.setup("fit")
    points: list[Point] = []
    steps, spent, due, epoch = 0, 0.0, every_s, 0
    while spent < seconds:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        epoch += 1
        for batch in loader:
            began = time.process_time()
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule.factor(steps)
            loss = stage.training_loss(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
            optimizer.step()
            steps += 1
            spent += time.process_time() - began
            if spent >= due:
                due += every_s
                points.append(look(stage, clips, steps, spent))
                print(f"{variant}, seed {seed}: {points[-1]}", flush=True)
            if spent >= seconds:
                break
    return points


def look(stage: SemanticStage, clips: TokenBatch, steps: int, seconds: float) -> Point:
    """Mean scores on the held-out clips."""
    stage.eval()
    losses = clip_losses(stage, clips)
    stage.train()
    true, null, other = (statistics.fmean(values) for values in (losses.true, losses.null, losses.other))
    return Point(steps, seconds, true, null - true, other - true)


def at_seconds(points: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """The last point not later than ``seconds``."""
    return [point for point in points if point["seconds"] <= seconds * 1.05][-1]


def table(runs: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Means over seeds: the point of best CE, and how soon each variant reached the baseline's best CE."""
    head = ("variant", "seeds", "steps", "best CE", "gain", "gap", "s to baseline best", "CE at a fifth")
    lines = ["{:<30}{:>6}{:>7}{:>9}{:>7}{:>7}{:>20}{:>15}".format(*head)]
    for name, seeds in runs.items():
        best = [min(points, key=lambda p: p["loss"]) for points in seeds.values()]
        mean = {key: statistics.fmean(point[key] for point in best) for key in ("loss", "gain", "gap", "steps")}
        reach, fifth = "", ""
        if BASELINE in runs:
            times = []
            for seed, points in seeds.items():
                if seed not in runs[BASELINE]:
                    continue
                goal = min(point["loss"] for point in runs[BASELINE][seed])
                times.append(next((p["seconds"] for p in points if p["loss"] <= goal), float("inf")))
            reach = f"{statistics.fmean(times):.0f}" if times else ""
        longest = min(points[-1]["seconds"] for points in seeds.values())
        fifth = f"{statistics.fmean(at_seconds(points, longest / 5)['loss'] for points in seeds.values()):.3f}"
        lines.append(
            f"{name:<30}{len(seeds):>6}{mean['steps']:>7.0f}{mean['loss']:>9.3f}{mean['gain']:>7.3f}{mean['gap']:>7.3f}"
            f"{reach:>20}{fifth:>15}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the chosen part, or merge parts, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", default="data/quickstart/shards")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=150.0, help="processor seconds of training a run")
    parser.add_argument("--every", type=float, default=10.0, help="processor seconds between looks")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--merge", type=Path, nargs="*", help="join the runs of these files instead of training")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs: dict[str, dict[str, list[dict[str, float]]]] = {}
    if arguments.merge:
        for path in arguments.merge:
            for name, seeds in json.loads(path.read_text())["runs"].items():
                runs.setdefault(name, {}).update(seeds)
    else:
        for seed in arguments.seeds:
            for name in arguments.variants:
                points = train(name, seed, arguments.root, arguments.seconds, arguments.every, arguments.learning_rate)
                runs.setdefault(name, {})[str(seed)] = [vars(point) for point in points]
    print(table(runs))
    if arguments.json:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        facts = {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
            "torch": torch.__version__,
            "commit": commit,
            "seconds": arguments.seconds,
            "learning_rate": arguments.learning_rate,
            "batch": BATCH,
            "crop_s": CROP_S,
        }
        arguments.json.write_text(json.dumps({**facts, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
