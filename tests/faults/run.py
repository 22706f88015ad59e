"""Try every fault of the tables, print how many held, and write the table of docs/faults.md.

    python tests/faults/run.py                    the whole (`make faults`)
    python tests/faults/run.py --short            some of each kind (the tests run this)
    python tests/faults/run.py --only TEXT        the tries whose name holds TEXT, with what they wrote

The same seed makes the same tries. Exit code 1 if one fell.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from bench import Bench, undamaged  # noqa: E402  (sys.path)
from children import Bounds  # noqa: E402
from kinds import all_tries  # noqa: E402
from outcome import Outcome, summary, write_docs  # noqa: E402
from preload import preload  # noqa: E402
from tries import Try  # noqa: E402
from workshop import build  # noqa: E402

TRY_S = 120.0
"""Longest time of one command; the machine may be busy."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite."""
    parser = argparse.ArgumentParser(description="Try the faults, and print how many held.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--short", action="store_true", help="a few tries of each kind")
    parser.add_argument("--only", action="append", help="tries whose kind or name holds this text; repeatable")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="build the undamaged files here, or use them again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome")
    parser.add_argument("--docs", action="store_true", help="write the table of docs/faults.md")
    parser.add_argument("--seconds", type=float, default=TRY_S, help="longest time of one command")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    preload()
    base = Path(tempfile.mkdtemp(prefix="hafm-faults-"))
    try:
        workshop = arguments.keep or base / "workshop"
        if not (workshop / "finished").is_file():
            shutil.rmtree(workshop, ignore_errors=True)
            build(workshop)
            (workshop / "finished").touch()
        tries = [
            it
            for it in all_tries(
                workshop, arguments.seed, short=arguments.short, every=bool(arguments.only) and not arguments.short
            )
            if not arguments.only or any(text in f"{it.kind}: {it.name}" for text in arguments.only)
        ]
        if not tries:
            print("error: no try has such a name", file=sys.stderr)
            return 2
        names = sorted({name for it in tries for name in it.works})
        expected = undamaged(workshop, base / "undamaged", names)
        outcomes = run_all(tries, workshop, base, expected, arguments.jobs, Bounds(arguments.seconds))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(summary(outcomes))
    for outcome in outcomes:
        if outcome.fell:
            print(f"FELL {outcome.kind}: {outcome.name}\n     " + "\n     ".join(outcome.fell))
    print(f"{len(outcomes)} tries in {time.monotonic() - began:.0f} s, seed {arguments.seed}")
    if arguments.json:
        content = {"seed": arguments.seed, "outcomes": [vars(outcome) for outcome in outcomes]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.docs:
        write_docs(HERE.parent.parent / "docs" / "faults.md", outcomes, arguments.seed)
    return int(any(outcome.fell for outcome in outcomes))


def run_all(
    tries: Sequence[Try],
    workshop: Path,
    base: Path,
    expected: dict[str, tuple[str, float]],
    jobs: int,
    bounds: Bounds,
) -> list[Outcome]:
    """Every try in a process of its own, ``jobs`` at a time; outcomes in the order of the tries."""
    waiting, running = list(enumerate(tries)), {}
    found: dict[int, Outcome] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, it = waiting.pop(0)
            folder = base / f"try-{number}"
            pid = os.fork()
            if pid == 0:
                _try(it, Bench(workshop, folder, bounds, {k: v for k, (v, _) in expected.items()}), expected, number)
            running[pid] = (number, it, time.monotonic())
        pid, _ = os.wait()
        number, it, began = running.pop(pid)
        result = base / f"outcome-{number}.json"
        fell = json.loads(result.read_text()) if result.is_file() else ["the try itself ended without an outcome"]
        found[number] = Outcome(it.kind, it.name, fell, round(time.monotonic() - began, 1))
        if fell and sys.stderr.isatty():
            print(f"fell: {it.kind}: {it.name}: {fell[0]}", file=sys.stderr)
    return [found[number] for number in sorted(found)]


def _try(it: Try, bench: Bench, expected: dict[str, tuple[str, float]], number: int) -> None:
    """In a child: do one try, write what fell, leave."""
    try:
        bench.cpu_seconds = {name: seconds for name, (_, seconds) in expected.items()}
        try:
            fell = it.do(bench)
        except Exception as error:  # noqa: BLE001  (a fault of the suite is a fall, too)
            fell = [f"the try itself failed: {type(error).__name__}: {error}"]
        if fell:
            for name in ("out", "err"):
                text = "\n".join(
                    path.read_text(errors="replace") for path in sorted(bench.base.glob(f"streams-*/{name}"))
                )
                fell.append(f"{name}: {text[-600:]!r}")
        (bench.base.parent / f"outcome-{number}.json").write_text(json.dumps(fell))
        bench.clear()
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
