"""How fast is training? The three stages at the paper's size, by our path and by three others, side by side.

    python benchmarks/training.py --device cpu --json benchmarks/results/training_cpu.json
    python benchmarks/training.py --device cuda --precision 16-mixed --json benchmarks/results/training_cuda.json

A step is what ``fit`` does with a batch: loss, gradients, AdamW; tokens are random. Each path (``_training_paths.py``
tells them apart) has a process of its own; they take turns, so that other programs on the machine disturb all alike,
and ratios are medians over the rounds. Target codes a second are the tokens that the stage learns to write; sequence
steps a second count its conditions too. MFU is the FLOPs that the mathematics needs (three times
``TokenModelConfig.forward_flops``, the same for all paths) over what a large matrix product reaches at this precision
in the same run. Memory is the peak of the whole process on the CPU, and of PyTorch's tensors on CUDA.

On CUDA the batches are the paper's, 36, 12 and 36 clips of 10 s. On a CPU they are smaller, and the long stages have
one round, which takes minutes on two cores; ``--shapes`` takes them one by one into the same file. A path that
does not fit its memory is tried with half the clips, down to one; then the table says so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from _facts import machine
from _training_paths import PATHS, Answer, Run, Turn, matmul_flops, serve, x_transformers_difference

from hafm_lightning.callbacks.dashboard import peak_flops
from hafm_lightning.stages import STAGES, Stage
from hafm_lightning.tokens import CLIP_DURATION_S

GIB = 2**30
SHAPES = {"semantic": "SemanticStage", "coarse": "CoarseStage", "fine": "FineStage"}
PAPER_CLIPS = {"semantic": 36, "coarse": 12, "fine": 36}
CPU_CLIPS = {"semantic": 2, "coarse": 1, "fine": 1}
WARM_UP = {"cpu": (1.0, 1), "cuda": (CLIP_DURATION_S, 3)}
"""Device -> length of a clip in seconds, and steps, before anything is timed."""
STEPS_A_TURN = {"cpu": 1, "cuda": 5}
SPARED_BYTES = GIB
"""What a process leaves of the memory that is free at the start."""


@dataclass
class Contender:
    """A path's process, what it was asked for and what it found.

    Attributes:
        path: Its name.
        process: Its process.
        connection: The way to it.
        clips: Batch size; 0 once it is out.
        answers: One for each round.
        failure: Why it is out.
    """

    path: str
    process: Any
    connection: Connection
    clips: int
    answers: list[Answer] = field(default_factory=list)
    failure: str = ""

    def ask(self, clip_s: float, steps: int) -> Answer:
        """One turn, with fewer clips if so many do not fit; a process that dies is out, and says so."""
        while True:
            self.connection.send(Turn(self.clips, clip_s, steps))
            try:
                answer = self.connection.recv()
            except EOFError:
                self.process.join()
                answer = Answer(failure=f"its process ended with exit code {self.process.exitcode}")
            if answer.failure == "does not fit" and self.clips > 1:
                self.clips //= 2
                continue
            if answer.failure:
                self.failure, self.clips = answer.failure, 0
            return answer


def main() -> None:
    """Run what is asked for; print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed", "16-mixed"), help="default: 32-true on a CPU")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--paths", nargs="+", choices=PATHS, help="default: all; floor and plain on CUDA only")
    parser.add_argument("--conditioning", choices=("prefix", "aligned"), default="prefix")
    parser.add_argument("--batch", type=int, help="clips; default: the paper's on CUDA, fewer on a CPU")
    parser.add_argument("--clip-s", type=float, default=CLIP_DURATION_S, help="length of a clip in seconds")
    parser.add_argument("--seconds", type=float, default=90.0, help="time for each shape; at least one round is taken")
    parser.add_argument("--rounds", type=int, default=7, help="at most so many")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--memory-gib", type=float, help="for each process on the CPU; default: what is free, less 1")
    parser.add_argument("--json", type=Path, help="write figures here, beside those of other shapes; tables as .txt")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "no CUDA device here: nothing was run\n")
    options.precision = options.precision or ("16-mixed" if options.device == "cuda" else "32-true")
    on_cuda_alone = () if options.device == "cuda" else ("floor", "plain")
    options.paths = options.paths or [path for path in PATHS if path not in on_cuda_alone]
    torch.set_num_threads(options.threads)
    facts = {
        "x_transformers": x_transformers(),
        "device": options.device,
        "precision": options.precision,
        "conditioning": options.conditioning,
        "clip_s": options.clip_s,
    }
    report: dict[str, Any] = {}
    if options.json and options.json.exists():
        report = json.loads(options.json.read_text(encoding="utf-8"))
    for shape in options.shapes:
        report[shape] = {"machine": machine()} | facts | measure(shape, options)
        print(table(shape, report[shape]) + "\n", flush=True)
        if options.json:
            write(options.json, report)


def write(path: Path, report: dict[str, Any]) -> None:
    """The figures as JSON, and the tables beside it as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    tables = [table(shape, report[shape]) for shape in SHAPES if shape in report]
    path.with_suffix(".txt").write_text("\n\n".join(tables) + "\n", encoding="utf-8")


def x_transformers() -> dict[str, Any] | None:
    """Its version, and how far its decoder is from ours with the same weights; None where it is not installed."""
    try:
        return {"version": metadata.version("x-transformers"), "relative_difference": x_transformers_difference()}
    except metadata.PackageNotFoundError:
        return None


def measure(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every path's turns at one shape."""
    with torch.device("meta"):
        stage = STAGES[SHAPES[shape]](conditioning=options.conditioning)
    clips = options.batch or (PAPER_CLIPS if options.device == "cuda" else CPU_CLIPS)[shape]
    contenders = [start(SHAPES[shape], path, clips, options) for path in options.paths]
    peaks = []
    for contender in contenders:
        contender.ask(min(options.clip_s, WARM_UP[options.device][0]), WARM_UP[options.device][1])
    began, rounds = time.perf_counter(), 0
    while rounds < options.rounds:
        peaks.append(matmul_flops(options.device, options.precision))
        for contender in contenders:
            if contender.clips:
                contender.answers.append(contender.ask(options.clip_s, STEPS_A_TURN[options.device]))
        rounds += 1
        spent = time.perf_counter() - began
        if spent * (rounds + 1) / rounds > options.seconds:  # another one would be too late
            break
    for contender in contenders:
        contender.connection.close()
        contender.process.join()
    return summary(stage, contenders, max(peaks), options) | {"paper_clips": PAPER_CLIPS[shape], "rounds": rounds}


def start(stage: str, path: str, clips: int, options: argparse.Namespace) -> Contender:
    """A process for one path."""
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["_training_paths"])  # imported once, for all
    here, there = context.Pipe()
    memory = memory_bytes(options.memory_gib)
    run = Run(stage, path, options.device, options.precision, options.threads, memory, options.conditioning)
    process = context.Process(target=serve, args=(run, there), daemon=True)
    process.start()
    there.close()
    return Contender(path, process, here, clips)


def memory_bytes(gib: float | None) -> int:
    """What a process may take: ``gib``, or what is free now, less what is spared."""
    if gib is not None:
        return int(gib * GIB)
    facts = Path("/proc/meminfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("MemAvailable"):
                return 1024 * int(line.split()[1]) - SPARED_BYTES
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - SPARED_BYTES


def summary(stage: Stage, contenders: list[Contender], peak: float, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds, and how much faster our path is."""
    layout, config = stage.model.layout, stage.model.config
    frames = layout.target.frames(options.clip_s)
    steps, codes = layout.plan(frames).steps, frames * layout.target.codebooks
    ours = next((c for c in contenders if c.path == "ours" and c.clips), None)
    sheet = peak_flops(torch.device(options.device), options.precision)
    paths: dict[str, Any] = {}
    for contender in contenders:
        times = [answer.seconds for answer in contender.answers if not answer.failure]
        if contender.failure or not times:
            paths[contender.path] = {"failure": contender.failure}
            continue
        seconds, clips = statistics.median(times), contender.clips
        flops = 3 * config.forward_flops(clips, frames) / seconds
        paths[contender.path] = {
            "clips": clips,
            "seconds_a_step": [round(value, 4) for value in times],
            "codes_a_second": round(clips * codes / seconds, 1),
            "sequence_steps_a_second": round(clips * steps / seconds, 1),
            "peak_memory_gib": round(contender.answers[-1].peak_bytes / GIB, 2),
            "mfu": round(flops / peak, 3),
            "mfu_of_data_sheet": round(flops / sheet, 3) if sheet else None,
            "loss": round(contender.answers[-1].loss, 3),
            "kernels_a_step": contender.answers[-1].kernels,
            "attention": contender.answers[-1].attention,
        }
        if ours is not None and contender is not ours:
            ratios = [
                other.seconds / contender.clips / (mine.seconds / ours.clips)
                for mine, other in zip(ours.answers, contender.answers, strict=True)
            ]
            paths[contender.path]["ours_is_faster_by"] = round(statistics.median(ratios), 2)
    return {
        "sequence_steps": steps,
        "matmul_tflops": round(peak / 1e12, 3),
        "data_sheet_tflops": round(sheet / 1e12, 1) if sheet else None,
        "paths": paths,
    }


def table(shape: str, found: dict[str, Any]) -> str:
    """One shape as fixed-width text."""
    lines = [
        f"{shape}: {found['sequence_steps']} steps a clip (the paper's batch: {found['paper_clips']} clips), "
        f"rounds {found['rounds']}, matrix product {found['matmul_tflops']} TFLOP/s",
        f"{'path':<16}{'clips':>6}{'s/step':>9}{'codes/s':>10}{'steps/s':>10}{'GiB':>8}{'MFU':>7}"
        f"{'ours faster by':>16}",
    ]
    for path, row in found["paths"].items():
        if "failure" in row:
            lines.append(f"{path:<16}{row['failure']}")
            continue
        seconds = statistics.median(row["seconds_a_step"])
        ratio = f"{row['ours_is_faster_by']:.2f}" if "ours_is_faster_by" in row else ""
        lines.append(
            f"{path:<16}{row['clips']:>6}{seconds:>9.3f}{row['codes_a_second']:>10,.0f}"
            f"{row['sequence_steps_a_second']:>10,.0f}{row['peak_memory_gib']:>8.2f}{row['mfu']:>7.1%}{ratio:>16}"
        )
    lines += [f"{path}: {kernels_used(row)}" for path, row in found["paths"].items() if row.get("attention")]
    facts = {"device": found["device"], "precision": found["precision"], **found["machine"]}
    lines.append(", ".join(f"{key} {value}" for key, value in facts.items() if value is not None))
    return "\n".join(lines)


def kernels_used(row: dict[str, Any]) -> str:
    """Which kernels a path attends with, and how many a step starts."""
    count = row.get("kernels_a_step")
    return f"attention by {row['attention']}" + (f"; {count} kernels a step" if count else "")


if __name__ == "__main__":
    main()
