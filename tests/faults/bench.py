"""One try in a folder of its own: copy, damage, run, judge."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from children import Bounds, Ending, run
from oracle import CANARY, broken_rules, silently_wrong, strays
from works import WORKS, Work

NESTED = "a/b/c"
"""A try's working folder lies this deep in its folder, so that a path upwards stays where it is seen."""


@dataclass
class Bench:
    """Where a try happens.

    Attributes:
        workshop: The undamaged files.
        base: The try's folder.
        bounds: Time and memory of each command.
        expected: Name of a work -> digest of its result with undamaged files.
    """

    workshop: Path
    base: Path
    bounds: Bounds = field(default_factory=Bounds)
    expected: dict[str, str] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    runs: int = 0

    @property
    def inside(self) -> Path:
        """The working folder."""
        return self.base / NESTED / "inside"

    def lay_out(self, names: Iterable[str]) -> None:
        """Copy what a work reads."""
        self.inside.mkdir(parents=True, exist_ok=True)
        for name in names:
            source, target = self.workshop / "inside" / name, self.inside / name
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)

    def run(
        self,
        work: Work,
        before: Callable[[], None] | None = None,
        environment: dict[str, str | None] | None = None,
        extra: tuple[str, ...] = (),
        kill_at_cpu_s: float | None = None,
    ) -> Ending:
        """Do a work."""
        command = work.command if callable(work.command) else (*work.command, *extra)
        return run(command, self.inside, self.streams(), self.bounds, environment, before, kill_at_cpu_s)

    def streams(self) -> Path:
        """A new folder for what a command writes to its streams."""
        self.runs += 1
        return self.base / f"streams-{self.runs}"

    def streams_next(self) -> Path:
        """The folder that :meth:`streams` will give."""
        return self.base / f"streams-{self.runs + 1}"

    def start_over(self, work: Work) -> None:
        """Put everything back as it was before a work."""
        shutil.rmtree(self.inside)
        self.lay_out(work.reads)

    def outside(self) -> list[str]:
        """A line for each file that a work left outside its folder, or that hostile content made."""
        allowed = [f"streams-{number}" for number in range(1, self.runs + 1)]
        found = [f"wrote outside: {name}" for name in strays(self.base, f"{NESTED}/inside", allowed)]
        if any(self.base.rglob(CANARY)):
            found.append("ran code from a file")
        return found

    def judge(self, work: Work, ending: Ending, named: Iterable[str] = (), *, may_differ: bool = False) -> list[str]:
        """What fell: rules of every ending, strays, a result that is wrong in silence."""
        found = broken_rules(ending) + self.outside()
        if not found and not may_differ:
            found += silently_wrong(ending, work.result(self.inside), self.expected[work.name], list(named))
        return found

    def clear(self) -> None:
        """Delete the try's folder, also what was made unreadable."""
        for path in self.base.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(self.base, ignore_errors=True)


def undamaged(workshop: Path, base: Path, names: Iterable[str]) -> dict[str, tuple[str, float]]:
    """Result and processor seconds of works with undamaged files; RuntimeError where one fails."""
    results = {}
    for name in names:
        bench = Bench(workshop, base / name.replace(" ", "-"), Bounds(seconds=600))
        work = WORKS[name]
        bench.lay_out(work.reads)
        ending = bench.run(work)
        if ending.code != 0:
            raise RuntimeError(f"{name} fails with undamaged files:\n{ending.out}\n{ending.err}")
        results[name] = (work.result(bench.inside), ending.cpu_seconds)
        bench.clear()
    return results
