"""Are the tests of a module blind to a change in it? One operator, number or condition is changed at a time.

    python tests/faults/mutants.py [MODULE ...] [--docs]      (`make mutants`)

A mutant that passes the module's own tests survives: it is explained in ``EXPLAINED``, or a test is missing. Each
mutant is a forked child of a process that has imported torch, so that it takes as long as its tests. Exit code 1 if
one survives without an explanation.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(ROOT / "src")]

from explained import EXPLAINED  # noqa: E402  (sys.path)

MODULES: dict[str, tuple[str, ...]] = {
    "hafm_lightning.modeling.layout": ("tests/modeling/test_layout.py",),
    "hafm_lightning.modeling.sampling": ("tests/modeling/test_sampling.py", "tests/modeling/test_decoding.py"),
    "hafm_lightning.data_modules.sampling": ("tests/data_modules/test_sampling.py",),
    "hafm_lightning.listening.report.statistics": ("tests/listening/report/test_statistics.py",),
    "hafm_lightning.evaluation.intervals": ("tests/evaluation/test_intervals.py",),
    "hafm_lightning.evaluation.distances.frechet": ("tests/evaluation/distances/test_frechet.py",),
}
"""Module -> its own tests."""
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Mult,
}  # fmt: skip
UNTOUCHED = (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr)
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"


@dataclass(frozen=True)
class Mutant:
    """One change: ``name`` shows the line before and after, ``code`` is the changed module."""

    name: str
    code: CodeType


@dataclass(frozen=True)
class Site:
    """A node, and where it hangs: in a field of its parent, or in the list that is that field."""

    node: ast.AST
    parent: ast.AST
    field: str
    index: int | None

    def put(self, node: ast.AST) -> None:
        """Hang another node there."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def sites_of(parent: ast.AST) -> Iterator[Site]:
    """The nodes below one that may be changed: not messages of errors, annotations, docstrings or imports."""
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or isinstance(node, UNTOUCHED):
                continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            yield Site(node, parent, field, index if isinstance(value, list) else None)
            yield from sites_of(node)


def changes_of(node: ast.AST) -> Iterator[ast.AST]:
    """Every changed copy of one node."""
    new = copy.deepcopy(node)
    if isinstance(new, ast.Compare):
        for index, operator in enumerate(new.ops):
            changed = copy.deepcopy(new)
            changed.ops[index] = COMPARISONS[type(operator)]()
            yield changed
    elif isinstance(new, ast.BinOp | ast.AugAssign) and type(new.op) in OPERATORS:
        new.op = OPERATORS[type(new.op)]()
        yield new
    elif isinstance(new, ast.BoolOp):
        new.op = ast.Or() if isinstance(new.op, ast.And) else ast.And()
        yield new
    elif isinstance(new, ast.UnaryOp):
        yield new.operand
    elif isinstance(new, ast.Constant):
        if isinstance(new.value, bool):
            new.value = not new.value
            yield new
        elif isinstance(new.value, int | float):
            new.value = new.value + 1 if isinstance(new.value, int) else new.value * 2 or 1.0
            yield new
    elif isinstance(new, ast.If | ast.IfExp | ast.While):
        new.test = ast.UnaryOp(ast.Not(), new.test)
        yield new
    elif isinstance(new, ast.Return) and new.value is not None:
        new.value = ast.Constant(None)
        yield new
    elif isinstance(new, ast.Break):
        yield ast.Continue()
    elif isinstance(new, ast.Continue):
        yield ast.Break()


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse(source)
    lines, found, seen = source.splitlines(), [], dict[str, int]()
    for site in list(sites_of(tree)):
        for changed in changes_of(site.node):
            name = f"{lines[site.node.lineno - 1].strip()} :: {_text(site.node)} -> {_text(changed)}"
            seen[name] = seen.get(name, 0) + 1
            site.put(ast.fix_missing_locations(ast.copy_location(changed, site.node)))
            code = compile(tree, "a mutant", "exec", dont_inherit=True)
            site.put(site.node)
            found.append(Mutant(name if seen[name] == 1 else f"{name} ({seen[name]})", code))
    return found


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.If | ast.While):
        return f"if {ast.unparse(node.test)}"
    return ast.unparse(node).splitlines()[0]


class Changed(importlib.abc.Loader, importlib.abc.MetaPathFinder):
    """Gives one module a changed code."""

    def __init__(self, module: str, code: CodeType) -> None:
        self.module, self.code = module, code

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        return importlib.util.spec_from_file_location(name, file_of(name), loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: object) -> None:
        exec(self.code, vars(module))


def file_of(module: str) -> Path:
    """The source of a module."""
    return ROOT / "src" / Path(*module.split(".")).with_suffix(".py")


def passes(module: str, code: CodeType | None, tests: Sequence[str], limit_s: int) -> tuple[bool, float]:
    """Whether the tests pass with a changed module, in a child; and the processor seconds of it."""
    pid = os.fork()
    if pid == 0:
        failed = 1
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))
            if code is not None:
                sys.meta_path.insert(0, Changed(module, code))
            os.chdir(ROOT)
            import pytest

            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
            failed = int(pytest.main([*options, *tests]))
        finally:
            os._exit(failed)
    _, status, usage = os.wait4(pid, 0)
    return status == 0, usage.ru_utime + usage.ru_stime


def survivors_of(module: str, tests: Sequence[str]) -> tuple[int, list[str]]:
    """Number of mutants of a module, and the names of those that pass its tests; RuntimeError if it fails them."""
    passed, seconds = passes(module, None, tests, 600)
    if not passed:
        raise RuntimeError(f"{module} fails its own tests {' '.join(tests)}")
    mutants = mutants_of(file_of(module).read_text())
    survived = []
    for number, mutant in enumerate(mutants, 1):
        if passes(module, mutant.code, tests, int(5 * seconds) + 10)[0]:
            survived.append(mutant.name)
            print(f"  survived: {mutant.name}", flush=True)
        if number % 50 == 0:
            print(f"  {number} of {len(mutants)}", flush=True)
    return len(mutants), survived


def table(results: dict[str, tuple[int, list[str]]]) -> str:
    """The tables of docs/faults.md."""
    lines = ["| module | mutants | killed | survive, explained |", "|---|---:|---:|---:|"]
    for module, (count, survived) in results.items():
        lines.append(
            f"| `{module.removeprefix('hafm_lightning.')}` | {count} | {count - len(survived)} | {len(survived)} |"
        )
    lines += ["", "| survivor | why no test can see it |", "|---|---|"]
    for module, (_, survived) in results.items():
        for name in survived:
            reason = EXPLAINED.get(module, {}).get(name, "**not explained**")
            lines.append(f"| `{name.replace('|', '&#124;')}` | {reason} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Try the mutants of modules."""
    parser = argparse.ArgumentParser(description="Change a module, and see whether its tests notice.")
    parser.add_argument("modules", nargs="*", help="some of the modules, by a part of their names (default: all)")
    parser.add_argument("--docs", action="store_true", help="write the tables of docs/faults.md")
    arguments = parser.parse_args(argv)
    chosen = {
        name: tests
        for name, tests in MODULES.items()
        if not arguments.modules or any(part in name for part in arguments.modules)
    }
    if not chosen:
        print(f"error: no such module; known: {', '.join(MODULES)}", file=sys.stderr)
        return 2
    for name in ("torch", "numpy", "scipy.stats", "scipy.optimize", "scipy.special", "lightning.pytorch", "hypothesis"):
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    results, unexplained = {}, 0
    for module, tests in chosen.items():
        began = time.monotonic()
        count, survived = results[module] = survivors_of(module, tests)
        missing = [name for name in survived if name not in EXPLAINED.get(module, {})]
        unexplained += len(missing)
        seconds = time.monotonic() - began
        print(
            f"{module}: {count} mutants, {count - len(survived)} killed, {len(missing)} not explained, {seconds:.0f} s"
        )
    if arguments.docs:
        page = ROOT / "docs" / "faults.md"
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.partition(END)[2]}")
    return int(unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())
