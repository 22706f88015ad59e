"""Everything that a GPU is wanted for, in parts that each take a minute or two; gpu.sh runs them all.

    bash benchmarks/gpu.sh                                        # every part, each under its own time limit
    python benchmarks/gpu.py attention --json benchmarks/results/gpu_attention.json
    python benchmarks/gpu.py parity --device cpu --tiny           # does it run? The figures mean nothing

Parts: ``parity`` (our kernels and PyTorch's operations against float64), ``attention`` (one layer beside FlexAttention
without a bias and causal attention without a bias, the floor), ``training`` (a step of each stage as ``fit`` takes it),
``experiments`` (two steps of every file under experiments/), ``generation`` (steps and takes), ``loss`` (50 steps
beside float32 on the CPU), ``fit_real`` (a run with accumulated and clipped gradients and validation), ``resume`` (a
killed and continued run against a whole one). Figures are written as they are found, so that a part that runs out of
time leaves what it has; ``finished`` says whether it ended by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _facts import machine

PARTS = ("parity", "attention", "training", "experiments", "generation", "loss", "fit_real", "resume")
SHAPES = (
    ("coarse aligned", "CoarseStage", "aligned", 12, 75.0),
    ("coarse prefix", "CoarseStage", "prefix", 12, 110.0),
    ("fine aligned", "FineStage", "aligned", 36, 240.0),
    ("semantic aligned", "SemanticStage", "aligned", 36, 30.0),
)
"""Name, stage, conditioning, clips, and the milliseconds wanted on an H200 with 16-mixed."""


@dataclass(frozen=True)
class Scale:
    """How large a part is.

    Attributes:
        device: ``cuda``, or ``cpu`` to see whether it runs.
        tiny: Tiny shapes.
        seconds: Time for the part.
    """

    device: str
    tiny: bool
    seconds: float


Store = Callable[[dict[str, Any]], None]


def parity(scale: Scale, store: Store) -> dict[str, Any]:
    """Differences from float64."""
    from _gpu_parts import measure_parity

    del store
    return measure_parity(scale.device, 6 if scale.tiny else 255)


def attention(scale: Scale, store: Store) -> dict[str, Any]:
    """One layer of the paper's coarse stage."""
    from _gpu_parts import measure_attention

    del store
    frames, batch, repeats = (6, 1, 1) if scale.tiny else (750, 12, 20)
    return measure_attention(scale.device, frames, batch, repeats)


def experiments(scale: Scale, store: Store) -> dict[str, Any]:
    """Two steps of every file under experiments/."""
    from _gpu_runs import try_experiments, write_learnable_shards

    with tempfile.TemporaryDirectory() as folder:
        shards = write_learnable_shards(Path(folder) / "shards", *((4, 0.4) if scale.tiny else (72, 10.0)))
        return try_experiments(shards, scale.device, scale.tiny, scale.seconds, store)


def resume(scale: Scale, store: Store) -> dict[str, Any]:
    """How far a killed and continued run is from a whole one."""
    from _gpu_fits import compare_resumed
    from _gpu_runs import write_learnable_shards

    del store
    with tempfile.TemporaryDirectory() as folder:
        shards = write_learnable_shards(Path(folder) / "shards", *((12, 0.4) if scale.tiny else (72, 10.0)))
        return compare_resumed(shards, Path(folder), scale.device, scale.tiny)


def fit_real(scale: Scale, store: Store) -> dict[str, Any]:
    """A run of the coarse stage at the paper's size, with validation."""
    from _gpu_fits import fit_as_the_paper
    from _gpu_runs import write_learnable_shards

    with tempfile.TemporaryDirectory() as folder:
        shards = write_learnable_shards(Path(folder) / "shards", *((12, 0.4) if scale.tiny else (48, 10.0)))
        return fit_as_the_paper(shards, Path(folder), scale.device, scale.tiny, store)


def loss(scale: Scale, store: Store) -> dict[str, Any]:
    """How far the loss of mixed precision is from float32 on the CPU."""
    from _gpu_loss import compare_losses

    return compare_losses(scale.device, scale.tiny, store)


def training(scale: Scale, store: Store) -> dict[str, Any]:
    """A step of each stage beside the floor, with MFU, memory and kernels."""
    from _training_paths import Run, Training, Turn, matmul_flops

    from hafm_lightning.modeling.transformer import BackboneConfig
    from hafm_lightning.tokens import CLIP_DURATION_S

    found: dict[str, Any] = {}
    clip_s, steps = (0.4, 1) if scale.tiny else (CLIP_DURATION_S, 5)
    backbone = BackboneConfig(layers=1, width=16, heads=2, feedforward=24) if scale.tiny else BackboneConfig()
    for precision in ("16-mixed", "bf16-mixed"):
        peak = 1e12 if scale.tiny else matmul_flops(scale.device, precision)
        for name, stage, conditioning, clips, wanted_ms in SHAPES:
            row: dict[str, Any] = {"wanted_ms_on_an_h200": wanted_ms if precision == "16-mixed" else None}
            for path in ("ours", "floor") if precision == "16-mixed" else ("ours",):
                run = Run(stage, path, scale.device, precision, torch.get_num_threads(), 0, conditioning, backbone)
                try:
                    work = Training(run)
                    turn = Turn(1 if scale.tiny else clips, clip_s, steps)
                    work.take(replace(turn, steps=min(3, steps)))
                    answer = work.take(turn)
                except torch.OutOfMemoryError:
                    row[path] = {"failure": "does not fit"}
                    continue
                config = work.stage.model.config
                flops = 3 * config.forward_flops(turn.clips, config.layout.target.frames(clip_s))
                row[path] = asdict(answer) | {
                    "milliseconds": round(1000 * answer.seconds, 1),
                    "mfu": round(flops / answer.seconds / peak, 3),
                    "peak_memory_gib": round(answer.peak_bytes / 2**30, 2),
                    "fused_optimizer": bool(work.optimizer.defaults.get("fused")),
                }
                work.forget(peak_too=True)
                del work
                if scale.device == "cuda":
                    torch.cuda.empty_cache()
            found[f"{name}, {precision}"] = row
            store(found)
    return found


def generation(scale: Scale, store: Store) -> dict[str, Any]:
    """A coarse step beside the time in which its weights and cache can be read, and takes of the presets."""
    from _gpu_generation import measure_steps, time_takes

    found: dict[str, Any] = {"steps": measure_steps(scale.device, scale.tiny)}
    store(found)
    for preset in ("live", "paper"):
        found[preset] = "not run" if scale.device == "cpu" else time_takes(preset)
        store(found)
    return found


def main() -> None:
    """Run one part and write what it finds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "table"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--seconds", type=float, default=150.0, help="time for parts that can stop earlier")
    parser.add_argument("--json", type=Path, help="write figures here; for `table`: the folder of all of them")
    options = parser.parse_args()
    if options.part == "table":
        print(table(options.json or Path(__file__).parent / "results"))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(3, f"{options.part}: not run, no CUDA device here\n")
    torch.manual_seed(0)
    report: dict[str, Any] = {"machine": machine(), "device": options.device, "tiny": options.tiny, "finished": False}
    began = time.perf_counter()

    def store(found: dict[str, Any]) -> None:
        report["found"] = found
        report["seconds"] = round(time.perf_counter() - began, 1)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    part = globals()[options.part]
    found = part(Scale(options.device, options.tiny, options.seconds), store)
    report["finished"] = True
    store(found)
    print(f"{options.part}: {report['seconds']} s\n{json.dumps(found, indent=1)}", flush=True)


def table(folder: Path) -> str:
    """What the parts found, as text; a part without a file reads 'not run'."""
    reports = {}
    for part in PARTS:
        path = folder / f"gpu_{part}.json"
        if path.exists():
            reports[part] = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for part in PARTS:
        report = reports.get(part)
        if report is None or "found" not in report:
            lines.append(f"{part}: not run (bash benchmarks/gpu.sh)")
            continue
        facts = report["machine"]
        ended = "" if report["finished"] else ", stopped by its time limit"
        lines.append(f"{part}: {facts['gpu'] or 'CPU'}, commit {facts['commit']}, torch {facts['torch']}{ended}")
        lines += [f"  {line}" for line in SUMMARIES.get(part, summarised)(report["found"])]
    return "\n".join(lines)


def summarised(found: dict[str, Any]) -> list[str]:
    """A line for each entry."""
    return [f"{name}: {json.dumps(value)}" for name, value in found.items()]


def attention_lines(found: dict[str, Any]) -> list[str]:
    """Milliseconds forward / both of each way."""
    lines = []
    for name, row in found.items():
        if not isinstance(row, dict):
            continue
        lines.append(f"{name}, {row['steps']} steps ({row['kernel']})")
        lines += [
            f"  {way:<28}{times['forward_ms']:>9.3f}{times['both_ms']:>9.3f} ms"
            for way, times in row["milliseconds"].items()
        ]
        lines.append(f"  over FlexAttention without a bias: {row['over_flex_without_bias']} (wanted {row['wanted']})")
    return lines


def training_lines(found: dict[str, Any]) -> list[str]:
    """Milliseconds, MFU, memory and kernels of each shape."""
    lines = []
    for name, row in found.items():
        for path in ("ours", "floor"):
            figures = row.get(path)
            if figures is None:
                continue
            if "milliseconds" not in figures:
                lines.append(f"{name}, {path}: {figures['failure']}")
                continue
            lines.append(
                f"{name + ', ' + path:<36}{figures['milliseconds']:>9.1f} ms{figures['mfu']:>7.1%}"
                f"{figures['peak_memory_gib']:>7.1f} GiB  kernels {figures['kernels']}  {figures['attention']}"
            )
    return lines


def experiments_lines(found: dict[str, Any]) -> list[str]:
    """How many files train, and what the others, and those with messages of the compiler, say."""
    rows = {name: row for name, row in found.items() if isinstance(row, dict)}
    good = [name for name, row in rows.items() if row["exit"] == 0]
    others = {name: row for name, row in found.items() if name not in good or "compiler" in row}
    took = [rows[name]["seconds"] for name in good]
    middle = f", {statistics.median(took)} s each" if took else ""
    return [f"{len(good)} of {len(found)} files take two steps{middle}", *summarised(others)]


SUMMARIES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "attention": attention_lines,
    "training": training_lines,
    "experiments": experiments_lines,
}

if __name__ == "__main__":
    main()
