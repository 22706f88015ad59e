"""The map in docs/architecture.md is true: every import in the package agrees with its table of rooms and levels."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "hafm_lightning"
LEAVES = {"callbacks", "data_modules"}
MOST_FILES = 12
"""Modules in one folder."""
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rooms_and_levels() -> tuple[dict[str, int | None], dict[str, str]]:
    """Module or folder -> level (None marks a leaf), and -> the table row in which it stands."""
    rows = re.findall(r"^\| (\d+|leaf) \| (.+?) \|", ARCHITECTURE, flags=re.MULTILINE)
    levels: dict[str, int | None] = {}
    row_of = {}
    for level, names in rows:
        for name in re.findall(r"`([\w./]+)`", names):
            room = name.removesuffix("/").removesuffix(".py")
            levels[room] = None if level == "leaf" else int(level)
            row_of[room] = names
    return levels, row_of


def heavy_packages() -> set[str]:
    """The packages that the page wants imported inside functions."""
    found = re.search(r"Heavy packages \(([^)]*)\)", ARCHITECTURE)
    assert found, "docs/architecture.md no longer lists the heavy packages"
    return set(re.split(r",\s+", found[1]))


ROOMS, ROWS = rooms_and_levels()
HEAVY = heavy_packages()


def modules() -> dict[str, Path]:
    """Dotted name without the package -> file, for every module of the package, by its true place on disk."""
    sources = {path.relative_to(ROOT / "src" / PACKAGE): path for path in (ROOT / "src" / PACKAGE).rglob("*.py")}
    for leaf in LEAVES:
        sources |= {path.relative_to(ROOT): path for path in (ROOT / leaf).rglob("*.py")}
    return {".".join(relative.with_suffix("").parts): path for relative, path in sorted(sources.items())}


MODULES = modules()


def room_of(dotted: str) -> str:
    return dotted.split(".")[0]


def imports(tree: ast.Module, *, at_import_time: bool = False) -> Iterator[tuple[str, int]]:
    """Imported dotted names with line numbers; with ``at_import_time`` only those that importing the module runs."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif at_import_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in MODULES.items()}


def own_imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Rooms of the package that a module imports."""
    for name, line in imports(tree):
        if name.startswith(f"{PACKAGE}."):
            yield room_of(name.removeprefix(f"{PACKAGE}.")), line


def violations_of_levels(module: str, tree: ast.Module) -> list[str]:
    """Imports of ``module`` that go up or sideways."""
    room, found = room_of(module), []
    level = ROOMS[room]
    for target, line in own_imports(tree):
        if target in (room, "errors", "__version__") or (target not in LEAVES and ROWS.get(target) == ROWS[room]):
            continue
        below = ROOMS.get(target)
        if target in LEAVES or (target in ROOMS and level is not None and below is not None and below >= level):
            found.append(f"{module}:{line} imports {target}")
    return found


def test_every_room_on_disk_is_in_the_table_and_the_reverse() -> None:
    on_disk = {room_of(module) for module in MODULES} - {"__init__"}
    assert on_disk <= set(ROOMS), f"not in docs/architecture.md: {on_disk - set(ROOMS)}"
    assert set(ROOMS) <= on_disk, f"in docs/architecture.md only: {set(ROOMS) - on_disk}"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_imports_go_down_only(module: str, trees: dict[str, ast.Module]) -> None:
    assert violations_of_levels(module, trees[module]) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("modeling.layout", "from hafm_lightning.stages import Stage"),  # up
        ("modeling.layout", "from hafm_lightning.tokenizers import load_tokenizers"),  # sideways
        ("stages", "def f():\n    import hafm_lightning.callbacks.probe"),  # core -> leaf, hidden in a function
        ("callbacks.probe", "from hafm_lightning.data_modules import TokenShards"),  # leaf -> leaf
    ],
)
def test_the_check_sees_each_kind_of_wrong_import(module: str, line: str) -> None:
    assert len(violations_of_levels(module, ast.parse(line))) == 1


def needed_modules(name: str, tree: ast.Module) -> set[str]:
    """Modules of the package that ``name`` imports anywhere, also inside functions.

    A name taken from a package counts as its ``__init__``; passing through a package to a module below it does not.
    """
    needed = set()
    for dotted, _ in imports(tree):
        own = dotted.removeprefix(f"{PACKAGE}.")
        if own == dotted and dotted != PACKAGE:
            continue
        for candidate in (own, own.rpartition(".")[0], f"{own}.__init__", f"{own.rpartition('.')[0]}.__init__"):
            if candidate in MODULES:
                needed.add(candidate)
                break
    return needed - {name}


def circles(needs: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other, by repeatedly dropping those that need nothing or serve nobody."""
    left = {name: set(needed) for name, needed in needs.items()}
    while True:
        served = set().union(*left.values()) if left else set()
        loose = {name for name, needed in left.items() if not needed or name not in served}
        if not loose:
            break
        left = {name: needed - loose for name, needed in left.items() if name not in loose}

    def reached(start: str) -> set[str]:
        found, waiting = set(), [start]
        while waiting:
            for name in left[waiting.pop()] - found:
                found.add(name)
                waiting.append(name)
        return found

    reach = {name: reached(name) for name in left}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in left if name in reach[name]}
    return sorted(sorted(group) for group in groups)


def test_no_modules_import_each_other_in_a_circle(trees: dict[str, ast.Module]) -> None:
    found = circles({name: needed_modules(name, tree) for name, tree in trees.items()})
    assert found == [], "\n".join(" <-> ".join(group) for group in found)


def test_the_check_for_circles_sees_those_through_functions() -> None:
    hidden = ast.parse("def f():\n    from hafm_lightning.tokens import TokenBatch")
    assert needed_modules("errors", hidden) == {"tokens"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [["a", "b", "c"]]


def folder_sizes() -> dict[str, int]:
    """Folder of the package -> number of modules in it, its ``__init__`` included."""
    sizes: dict[str, int] = {}
    for name in MODULES:
        folder = name.rpartition(".")[0] or "(top)"
        sizes[folder] = sizes.get(folder, 0) + 1
    return sizes


def test_no_folder_is_too_full_to_enter() -> None:
    assert {folder: size for folder, size in folder_sizes().items() if size > MOST_FILES} == {}


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_where_they_are_used(module: str, trees: dict[str, ast.Module]) -> None:
    early = [f"{name} (line {line})" for name, line in imports(trees[module], at_import_time=True)]
    assert [name for name in early if room_of(name) in HEAVY] == []


def test_importing_the_package_costs_torch_and_lightning_at_most() -> None:
    code = f"import sys, {PACKAGE}; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # lightning may load matplotlib-free torchmetrics, which probes for optional packages without importing them
    assert set(done.stdout.split()) & HEAVY == set()


def bare_token_constants(tree: ast.Module) -> list[str]:
    """Places where a rate, vocabulary or clip length of the alphabet seems to be written as a number.

    A number is suspicious as an operand of arithmetic or comparison, or as the value of a name, argument or field
    that speaks of rates, vocabularies, centroids, frames or codebooks. Percentages, FFT sizes and the like are not.
    """
    numbers = {500, 1024, 75, 50, 750}
    speaks = re.compile(r"rate_hz|vocab|centroid|frames?$|codebook_size|semantic|acoustic|codes", re.IGNORECASE)
    other_units = re.compile(r"percent|fft|ms$|_hz_|block|points|batch|bytes|chunk", re.IGNORECASE)

    def number(node: ast.AST | None) -> bool:
        return isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value in numbers

    found = []
    for node in ast.walk(tree):
        named: list[tuple[str, ast.AST | None]] = []
        if isinstance(node, ast.Assign):
            named = [(ast.unparse(target), node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            named = [(ast.unparse(node.target), node.value)]
        elif isinstance(node, ast.keyword):
            named = [(node.arg or "", node.value)]
        elif isinstance(node, ast.FunctionDef):
            positional = node.args.posonlyargs + node.args.args
            defaults = zip(positional[::-1], node.args.defaults[::-1], strict=False)
            named = [(a.arg, d) for a, d in [*defaults, *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and number(node.left) and number(node.right):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = [(ast.unparse(a), b) for a in sides for b in sides if a is not b]
        found += [
            f"line {value.lineno}: {name} {ast.unparse(value)}"
            for name, value in named
            if isinstance(value, ast.expr) and number(value) and speaks.search(name) and not other_units.search(name)
        ]
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name != "tokens"])
def test_rates_and_vocabularies_are_written_in_the_alphabet_alone(module: str, trees: dict[str, ast.Module]) -> None:
    assert bare_token_constants(trees[module]) == []


@pytest.mark.parametrize(
    ("code", "caught"),
    [
        ("RATE_HZ = 50", True),
        ("def f(vocabulary=1024): ...", True),
        ("f(semantic_rate_hz=50)", True),
        ("scale = 75 / 50", True),
        ("if vocabulary != 1024: ...", True),
        ("n_fft = 1024", False),
        ("progress_percent = 50", False),
    ],
)
def test_the_check_for_bare_constants_can_tell(code: str, caught: bool) -> None:
    assert bool(bare_token_constants(ast.parse(code))) is caught


def test_the_linked_folders_exist_once_under_the_long_names() -> None:
    for leaf in LEAVES:
        link = ROOT / "src" / PACKAGE / leaf
        assert link.resolve() == ROOT / leaf
        text = (ROOT / leaf / "__init__.py").read_text(encoding="utf-8")
        assert "__name__" in text, f"{leaf}/__init__.py does not refuse to be imported as {leaf!r}"


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_the_short_name_of_a_leaf_is_refused(leaf: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {leaf}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"{PACKAGE}.{leaf}" in done.stderr


def print_table() -> None:
    """Rooms with their levels, files and lines; the fullest folders; circles."""
    everything = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    rooms: dict[str, list[str]] = {}
    for name in MODULES:
        rooms.setdefault(room_of(name), []).append(name)
    print(f"{'level':>5}  {'room':<20} {'files':>5} {'lines':>6}")
    for room, names in sorted(rooms.items(), key=lambda item: (level_of(item[0]), item[0])):
        print(f"{level_of(room):>5}  {room:<20} {len(names):>5} {sum(lines[name] for name in names):>6}")
    print(f"{'':>5}  {'all':<20} {len(MODULES):>5} {sum(lines.values()):>6}")
    fullest = sorted(folder_sizes().items(), key=lambda item: -item[1])[:3]
    print("most modules in a folder: " + ", ".join(f"{folder} {size}" for folder, size in fullest))
    found = circles({name: needed_modules(name, tree) for name, tree in everything.items()})
    print(f"import circles, imports inside functions included: {len(found)}")
    for group in found:
        print("  " + " <-> ".join(group))


def level_of(room: str) -> str:
    """The level of a room as text; ``leaf`` and the package's own file stand last."""
    level = ROOMS.get(room)
    return "-" if room not in ROOMS else "leaf" if level is None else str(level)


if __name__ == "__main__":
    print_table()
