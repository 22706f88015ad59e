"""Which relative position lets a model hear what sounds now? A task with a known answer.

The target token is a fixed permutation of the condition token that sounds at the same time, with 10 % noise. Condition
tokens are held for a few frames, as sung notes are, so that a part of the target can be guessed from its own past alone
and a model that does not listen stays at that part. The condition lies before the target in one sequence of 150 + 150
steps, where T5's buckets of step distances saturate at 128; or, ``aligned``, on the target's clock, without look-ahead.

All variants see the same batches in the same order, from the same seed, and are measured on the same held-out clips.
Seconds are processor seconds of one thread, so that other programs on the machine disturb them little.

    python benchmarks/relative_position.py --json benchmarks/results/relative_position.json
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _facts import commit, processor
from torch import Tensor

from hafm_lightning.modeling.token_model import TokenModel, TokenModelConfig
from hafm_lightning.modeling.token_scores import TokenScores, token_cross_entropy
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.tokens import INSTRUMENTAL_SEMANTIC, VOCAL_SEMANTIC

VARIANTS: dict[str, dict[str, Any]] = {
    "prefix/index": {"conditioning": "prefix", "relative_position": "index"},
    "prefix/time": {"conditioning": "prefix", "relative_position": "time"},
    "aligned": {"conditioning": "aligned", "look_ahead_s": 0.0, "look_behind_s": 0.0},
}
BACKBONE = BackboneConfig(layers=4, width=128, heads=4, feedforward=512)
FRAMES = 150
SYMBOLS = 64
"""Ids in use, of the stream's 500."""
HELD = 0.5
"""Probability that a condition token lasts another frame."""
NOISE = 0.1
"""Probability that a target token is drawn from all symbols instead."""
BATCH = 8
HELD_OUT = 32
LEARNING_RATE = 2e-3
WARMUP_STEPS = 30
PERMUTATION = torch.randperm(SYMBOLS, generator=torch.Generator().manual_seed(12345))


def clips(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Condition and target, ``[count, 1, T]`` each."""
    fresh = torch.randint(SYMBOLS, (count, FRAMES), generator=generator)
    starts = torch.rand(count, FRAMES, generator=generator) >= HELD
    starts[:, 0] = True
    start = torch.where(starts, torch.arange(FRAMES), 0).cummax(1).values
    condition = fresh.gather(1, start)
    noise = torch.randint(SYMBOLS, (count, FRAMES), generator=generator)
    noisy = torch.rand(count, FRAMES, generator=generator) < NOISE
    target = torch.where(noisy, noise, PERMUTATION[condition])
    return {VOCAL_SEMANTIC.name: condition[:, None], INSTRUMENTAL_SEMANTIC.name: target[:, None]}


def ceiling() -> tuple[float, float]:
    """Cross-entropy and accuracy of who hears the condition and knows the permutation."""
    right, wrong = 1 - NOISE + NOISE / SYMBOLS, NOISE / SYMBOLS
    return -right * math.log(right) - (SYMBOLS - 1) * wrong * math.log(wrong), right


def best_deaf_guess(held_out: dict[str, Tensor]) -> tuple[float, float]:
    """Cross-entropy and accuracy of the exact posterior over the sounding token given the target's past alone."""
    target = held_out[INSTRUMENTAL_SEMANTIC.name][:, 0]
    belief = torch.full((len(target), SYMBOLS), 1 / SYMBOLS, dtype=torch.float64)  # over PERMUTATION[condition]
    losses, hits = [], []
    for token in target.T:
        guess = (1 - NOISE) * belief + NOISE / SYMBOLS
        losses.append(-guess.gather(1, token[:, None]).log())
        hits.append(guess.argmax(1) == token)
        seen = torch.nn.functional.one_hot(token, SYMBOLS) * (1 - NOISE) + NOISE / SYMBOLS
        belief = belief * seen
        belief = HELD * belief / belief.sum(1, keepdim=True) + (1 - HELD) / SYMBOLS
    return float(torch.stack(losses).mean()), float(torch.stack(hits).double().mean())


@torch.no_grad()
def measure(model: TokenModel, held_out: dict[str, Tensor]) -> tuple[float, float]:
    """Cross-entropy in nats and accuracy on the held-out clips."""
    model.eval()
    scores = TokenScores.of(model(held_out), held_out[INSTRUMENTAL_SEMANTIC.name])
    model.train()
    return float(scores.cross_entropy.mean()), float((scores.rank == 0).double().mean())


def train(settings: dict[str, Any], steps: list[int], seed: int) -> Iterator[dict[str, float]]:
    """Train one variant; yields steps, processor seconds, cross-entropy and accuracy at each of ``steps``."""
    torch.manual_seed(seed)
    names = ((VOCAL_SEMANTIC.name,), INSTRUMENTAL_SEMANTIC.name)
    model = TokenModel(TokenModelConfig(*names, backbone=BACKBONE, **settings))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / WARMUP_STEPS))
    data = torch.Generator().manual_seed(seed)
    held_out = clips(HELD_OUT, torch.Generator().manual_seed(2**32 + seed))
    seconds = 0.0
    for step in range(1, max(steps) + 1):
        started = time.process_time()
        batch = clips(BATCH, data)
        loss = token_cross_entropy(model(batch), batch[INSTRUMENTAL_SEMANTIC.name]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm_up.step()
        seconds += time.process_time() - started
        if step in steps:
            cross_entropy, accuracy = measure(model, held_out)
            yield {"steps": step, "seconds": seconds, "cross_entropy": cross_entropy, "accuracy": accuracy}


def table(curves: dict[str, list[dict[str, float]]], limits: dict[str, tuple[float, float]]) -> str:
    """The report as fixed-width text."""
    width = 22
    head = f"{'steps':>6}" + "".join(f"{name:>{width}}" for name in curves)
    lines = [head, f"{'':>6}" + f"{'CE / accuracy':>{width}}" * len(curves)]
    for points in zip(*curves.values(), strict=True):
        cells = [f"{point['cross_entropy']:.3f} / {point['accuracy']:.3f}" for point in points]
        lines.append(f"{points[0]['steps']:>6}" + "".join(f"{cell:>{width}}" for cell in cells))
    lines.append(f"{'time':>6}" + "".join(f"{points[-1]['seconds']:>{width - 2}.0f} s" for points in curves.values()))
    lines += [f"{name}: CE {value[0]:.3f}, accuracy {value[1]:.3f}" for name, value in limits.items()]
    return "\n".join(lines)


def main() -> None:
    """Train every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 200, 300, 350], help="when to measure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write figures and settings here, and the table beside it as .txt")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    limits = {
        "hears and knows": ceiling(),
        "deaf, at best": best_deaf_guess(clips(2000, torch.Generator().manual_seed(1))),
    }
    curves: dict[str, list[dict[str, float]]] = {}
    for name, settings in VARIANTS.items():
        curves[name] = []
        for point in train(settings, sorted(set(arguments.steps)), arguments.seed):
            curves[name].append(point)
            print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in point.items()), flush=True)
    context = {
        "commit": commit(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seed": arguments.seed,
    }
    settings = {
        "backbone": {"layers": BACKBONE.layers, "width": BACKBONE.width, "heads": BACKBONE.heads},
        "frames": FRAMES, "symbols": SYMBOLS, "held": HELD, "noise": NOISE,
        "batch": BATCH, "held_out_clips": HELD_OUT, "learning_rate": LEARNING_RATE, "warmup_steps": WARMUP_STEPS,
    }  # fmt: skip
    report = table(curves, limits)
    report += "\n" + ", ".join(f"{key} {value}" for key, value in context.items())
    print(report)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"context": context, "settings": settings, "limits": limits, "curves": curves}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
        arguments.json.with_suffix(".txt").write_text(report + "\n")


if __name__ == "__main__":
    main()
