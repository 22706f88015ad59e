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
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _facts import commit

from hafm_lightning.data_modules import TokenShards
from hafm_lightning.evaluation.token_scores.scores import score_clips
from hafm_lightning.modeling.token_scores import other_song, without_conditions
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
    model = stage.model
    conditions = model.layout.conditions
    variants = (None, without_conditions(clips, conditions), other_song(clips, conditions))
    true, null, other = (float(score_clips(model, clips, streams).losses.mean()) for streams in variants)
    stage.train()
    return Point(steps, seconds, true, null - true, other - true)


Run = list[dict[str, float]]
"""Points of one training run, as dictionaries."""
Runs = dict[str, dict[str, Run]]
"""Variant -> seed -> points."""


def between(points: Run, key: str, place: float) -> dict[str, float]:
    """Scores at ``place`` on the axis ``key`` (``steps`` or ``seconds``), on straight lines between the points."""
    axis = [point[key] for point in points]
    return {name: float(np.interp(place, axis, [point[name] for point in points])) for name in points[0]}


def reached(points: Run, loss: float) -> dict[str, float] | None:
    """Where the straight lines between the points first come down to ``loss``; None if they never do."""
    if points[0]["loss"] <= loss:
        return points[0]
    for before, after in pairwise(points):
        if after["loss"] <= loss:
            share = (before["loss"] - loss) / (before["loss"] - after["loss"])
            return {name: (1 - share) * before[name] + share * after[name] for name in before}
    return None


def lowest(points: Run) -> dict[str, float]:
    """The point of lowest cross-entropy."""
    return min(points, key=lambda point: point["loss"])


def comparison(runs: Runs, key: str, limits: list[float]) -> str:
    """CE, CE(null) - CE and CE(other song) - CE, means over seeds, at equal ``key`` (``steps`` or ``seconds``)."""
    lines = [f"at equal {key}: CE / CE(null) - CE / CE(other song) - CE", f"{'variant':<30}"]
    lines[1] += "".join(f"{limit:>24g}" for limit in limits)
    for name, seeds in runs.items():
        cells = []
        for limit in limits:
            points = [between(points, key, limit) for points in seeds.values()]
            within = min(points[-1][key] for points in seeds.values()) >= 0.95 * limit
            values = [statistics.fmean(point[field] for point in points) for field in ("loss", "gain", "gap")]
            cells.append(" / ".join(f"{value:.3f}" for value in values) if within else "-")
        lines.append(f"{name:<30}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def race(runs: Runs) -> str:
    """Each variant's best CE, and how much sooner it reached the baseline's best, with what gap there and then."""
    head = ("variant", "seeds", "best CE", "s to baseline's best", "share of its seconds", "gap there", "times its gap")
    lines = ["{:<30}{:>6}{:>9}{:>22}{:>22}{:>11}{:>15}".format(*head)]
    for name, seeds in runs.items():
        best = statistics.fmean(lowest(points)["loss"] for points in seeds.values())
        line = f"{name:<30}{len(seeds):>6}{best:>9.3f}"
        times, shares, gaps, ratios = [], [], [], []
        for seed, points in seeds.items():
            if seed not in runs.get(BASELINE, {}):
                continue
            goal = lowest(runs[BASELINE][seed])
            there = reached(points, goal["loss"])
            if there is not None:
                times.append(there["seconds"])
                shares.append(there["seconds"] / goal["seconds"])
                gaps.append(there["gap"])
                ratios.append(there["gap"] / goal["gap"])
        if times and len(times) == len(seeds):
            time_s, share, gap, ratio = map(statistics.fmean, (times, shares, gaps, ratios))
            line += f"{time_s:>22.0f}{share:>22.2f}{gap:>11.3f}{ratio:>15.1f}"
        elif BASELINE in runs:
            line += f"{f'{len(times)} of {len(seeds)} did':>22}"
        lines.append(line)
    return "\n".join(lines)


def report(runs: Runs) -> str:
    """All tables."""
    seconds = max(points[-1]["seconds"] for seeds in runs.values() for points in seeds.values())
    steps = max(points[-1]["steps"] for seeds in runs.values() for points in seeds.values())
    return "\n\n".join(
        [
            comparison(runs, "seconds", [round(seconds * share) for share in (0.15, 0.3, 0.5, 1.0)]),
            comparison(runs, "steps", [round(steps * share, -1) for share in (0.2, 0.4, 0.6, 1.0)]),
            race(runs),
        ]
    )


def draw(runs: Runs, path: Path) -> None:
    """Curves over processor seconds and over steps: CE above, CE(other song) - CE below; a thin line a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, (key, label) in enumerate((("seconds", "processor seconds"), ("steps", "optimizer steps"))):
        for row, (field, title) in enumerate((("loss", "CE (nats)"), ("gap", "CE(other song) - CE (nats)"))):
            axis = axes[row, column]
            for number, (name, seeds) in enumerate(runs.items()):
                for points in seeds.values():
                    axis.plot([p[key] for p in points], [p[field] for p in points], color=f"C{number}", lw=0.7)
                axis.plot([], [], color=f"C{number}", label=name)
            axis.grid(alpha=0.3)
            axis.set_ylabel(title if column == 0 else "")
            axis.set_xlabel(label if row == 1 else "")
    axes[0, 0].set_ylim(0.5, 2.0)
    axes[0, 0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


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
    parser.add_argument("--figure", type=Path, help="draw the curves into this file (.png, .svg)")
    parser.add_argument("--merge", type=Path, nargs="*", help="join the runs of these files instead of training")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs: Runs = {}
    if arguments.merge:
        parts = [json.loads(path.read_text()) for path in arguments.merge]
        for part in parts:
            for name, seeds in part["runs"].items():
                runs.setdefault(name, {}).update(seeds)
    else:
        for seed in arguments.seeds:
            for name in arguments.variants:
                points = train(name, seed, arguments.root, arguments.seconds, arguments.every, arguments.learning_rate)
                runs.setdefault(name, {})[str(seed)] = [vars(point) for point in points]
    print(report(runs))
    if arguments.figure:
        draw(runs, arguments.figure)
    if arguments.json:
        here = {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
            "torch": torch.__version__,
            "commit": commit(),
            "learning_rate": arguments.learning_rate,
            "batch": BATCH,
            "crop_s": CROP_S,
        }
        # of merged parts: what was true when they ran
        facts = {key: sorted({str(part[key]) for part in parts}) for key in here} if arguments.merge else here
        arguments.json.write_text(json.dumps({**facts, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
