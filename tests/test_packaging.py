"""Nothing is lost on the way to a user: package list, wheel, sdist, environment, versions, continuous integration."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

PACKAGE = "hafm_lightning"
LEAVES = ("callbacks", "data_modules")
CONFIGURATIONS = "experiments"
LINKED = (*LEAVES, CONFIGURATIONS)
"""Folders at the top of the repository that are packages of the installation."""
NAMED_BY_THE_USER = {
    "torch",
    "lightning",
    "torchaudio",
    "transformers",
    "encodec",
    "faiss-cpu",
    "wandb",
    "torchmetrics",
    "omegaconf",
    "librosa",
}
DISTRIBUTIONS = {"yaml": "pyyaml", "faiss": "faiss-cpu"}
"""Import name -> distribution, where they differ in more than a hyphen."""
OFFERED_ONLY = {"joblib"}
"""Imported behind a flag of the user, with a message that says what to install."""
PULLS_CUDA = {"torchaudio", "torchvision"}
SUPPORTED_PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="session")
def setup_cfg(repository: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="session")
def constraints(repository: Path) -> list[Requirement]:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.split("\n") if line.strip()]


def declared_requirements(setup_cfg: configparser.ConfigParser) -> list[Requirement]:
    """What setup.cfg requires, extras included."""
    texts = [setup_cfg["options"]["install_requires"], *setup_cfg["options.extras_require"].values()]
    return [requirement for text in texts for requirement in requirements(text)]


def modules_on_disk(repository: Path) -> set[str]:
    """Paths inside a wheel that the checkout's modules should have."""
    source = repository / "src" / PACKAGE
    found = {path.relative_to(source.parent).as_posix() for path in source.rglob("*.py")}
    for leaf in LEAVES:
        found |= {f"{PACKAGE}/{path.relative_to(repository).as_posix()}" for path in (repository / leaf).rglob("*.py")}
    return found


def test_setup_cfg_lists_every_package_on_disk(repository: Path, setup_cfg: configparser.ConfigParser) -> None:
    listed = set(setup_cfg["options"]["packages"].split())
    on_disk = {str(Path(module).parent).replace(os.sep, ".") for module in modules_on_disk(repository)}
    assert listed == on_disk | {f"{PACKAGE}.{CONFIGURATIONS}"}


def checkout(repository: Path, target: Path, *, links: bool) -> Path:
    """A copy of what the build needs, with or without the three links under src."""
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", *(() if links else LINKED))
    shutil.copytree(repository / "src", target / "src", symlinks=True, ignore=skip)
    for leaf in LINKED:
        shutil.copytree(repository / leaf, target / leaf, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(repository / name, target / name)
    return target


def build(kind: str, source: Path, output: Path) -> Path:
    """Run the build backend in ``source``, in the environment at hand; the built file."""
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(output)!r})"
    output.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = output.iterdir()
    return built


def planned_by_make(folder: Path, *arguments: str) -> str:
    """What make would run in ``folder``, untouched by the flags of a make that runs these tests."""
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES")}
    command = ["make", "--dry-run", *arguments]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=True).stdout


def python_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.endswith(".py")}


def data_files(wheel: Path) -> set[str]:
    """Files inside the package that are not modules."""
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.startswith(f"{PACKAGE}/")]
    return {name for name in inside if not name.endswith(".py")}


def data_on_disk(repository: Path) -> set[str]:
    """Paths inside a wheel that the checkout's other files (templates) should have."""
    source = repository / "src" / PACKAGE
    found = (
        path
        for path in source.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    )
    configurations = (repository / CONFIGURATIONS).rglob("*.yaml")
    return {path.relative_to(source.parent).as_posix() for path in found} | {
        f"{PACKAGE}/{path.relative_to(repository).as_posix()}" for path in configurations
    }


@pytest.mark.parametrize("links", [True, False], ids=["with the links", "without the links"])
def test_the_wheel_holds_every_module(repository: Path, tmp_path: Path, links: bool) -> None:
    source = checkout(repository, tmp_path / "checkout", links=links)
    wheel = build("wheel", source, tmp_path / "wheels")
    assert python_files(wheel) == modules_on_disk(repository)
    assert data_files(wheel) == data_on_disk(repository)
    assert data_on_disk(repository) >= {
        f"{PACKAGE}/py.typed",
        f"{PACKAGE}/accompanist/templates/model_card.md",
        f"{PACKAGE}/page/templates/page.html",
    }


def test_a_wheel_built_from_the_sdist_holds_every_module(repository: Path, tmp_path: Path) -> None:
    source = checkout(repository, tmp_path / "checkout", links=True)
    sdist = build("sdist", source, tmp_path / "sdists")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build("wheel", unpacked, tmp_path / "wheels")
    assert python_files(wheel) == modules_on_disk(repository)
    assert data_files(wheel) == data_on_disk(repository)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_an_installation_works_without_the_repository(repository: Path, tmp_path: Path, kind: str) -> None:
    """Installed with pip into an empty folder; started in another one, where no file of the repository can be seen."""
    source = checkout(repository, tmp_path / "checkout", links=True)
    built = build(kind, source, tmp_path / "dist")
    shutil.rmtree(source)
    target, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", str(target), str(built)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(target)}
        command = [sys.executable, "-m", PACKAGE, *words]
        ran = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{words}: {ran.stderr[-2000:]}"
        return ran.stdout

    where = [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(target)}
    found = subprocess.run(where, cwd=work, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(target)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", run("--version"))
    assert "usage: python -m hafm_lightning COMMAND" in run("--help")
    shipped = sorted(path.relative_to(repository) for path in (repository / CONFIGURATIONS).rglob("*.yaml"))
    assert all(str(name) in run("configs") for name in shipped[:1])
    run("configs", "--copy", ".")
    for name in shipped:
        assert (work / name).read_bytes() == (repository / name).read_bytes()
    description = run("describe", "--config", f"{CONFIGURATIONS}/quickstart/coarse.yaml")
    assert '"parameters"' in description
    assert "generate" in run("generate", "--help")


def test_a_plain_install_pulls_no_cuda_only_package(setup_cfg: configparser.ConfigParser) -> None:
    plain = requirements(setup_cfg["options"]["install_requires"])
    for extra in ("dev", "app", "ray", "separation", "htdemucs", "musdb"):
        plain += requirements(setup_cfg["options.extras_require"][extra])
    assert {requirement.name for requirement in plain} & (PULLS_CUDA | {"encodec"}) == set()


def test_weights_are_loaded_as_data_by_every_allowed_torch(setup_cfg: configparser.ConfigParser) -> None:
    (torch,) = [r for r in requirements(setup_cfg["options"]["install_requires"]) if r.name == "torch"]
    assert not torch.specifier.contains("2.5.1"), "torch below 2.6 unpickles by default"
    assert torch.specifier.contains("2.6.0")


def test_everything_the_project_names_is_installed_or_an_extra(setup_cfg: configparser.ConfigParser) -> None:
    assert {requirement.name for requirement in declared_requirements(setup_cfg)} >= NAMED_BY_THE_USER


def test_every_dependency_has_its_reason(repository: Path, setup_cfg: configparser.ConfigParser) -> None:
    text = (repository / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Dependencies")[1]
    rows = set(re.findall(r"^\| `([\w-]+)` \|", text, flags=re.MULTILINE))
    plain = {requirement.name for requirement in requirements(setup_cfg["options"]["install_requires"])}
    assert rows == plain
    named = set(re.findall(r"`([\w-]+)`", text))
    assert {requirement.name for requirement in declared_requirements(setup_cfg)} <= named


def test_every_imported_package_is_required_by_name(repository: Path, setup_cfg: configparser.ConfigParser) -> None:
    """What another package happens to bring may be gone with its next version."""
    named = declared_requirements(setup_cfg)
    known = {canonical(requirement.name) for requirement in named} | OFFERED_ONLY
    unknown: dict[str, str] = {}
    for folder in (repository / "src" / PACKAGE, *(repository / leaf for leaf in LEAVES)):
        for path in folder.rglob("*.py"):
            for module in imported_modules(path):
                own = module in sys.stdlib_module_names or module == PACKAGE
                if not own and canonical(DISTRIBUTIONS.get(module, module)) not in known:
                    unknown[module] = str(path.relative_to(repository))
    assert unknown == {}


def imported_modules(path: Path) -> set[str]:
    """Top-level names of what a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_conda_environment_holds_every_named_package(repository: Path) -> None:
    environment = yaml.safe_load((repository / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert set(pip) >= NAMED_BY_THE_USER
    assert "--constraint constraints.txt" in pip


@pytest.mark.parametrize("python", SUPPORTED_PYTHONS)
def test_constraints_pin_each_direct_dependency_once_and_in_range(
    setup_cfg: configparser.ConfigParser, constraints: list[Requirement], python: str
) -> None:
    holds = [c for c in constraints if c.marker is None or c.marker.evaluate({"python_version": python})]
    pins: dict[str, Version] = {}
    for pin in holds:
        name = re.sub(r"[-_.]+", "-", pin.name).lower()
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert name not in pins, f"{pin.name} is pinned twice for Python {python}"
        pins[name] = Version(specifier.version)
    for requirement in declared_requirements(setup_cfg):
        if requirement.marker is not None and not requirement.marker.evaluate({"python_version": python, "extra": ""}):
            continue
        if requirement.name == "triton":  # each CUDA build of PyTorch asks for one version; the Makefile has the CPU's
            assert "triton" not in pins
            continue
        pinned = pins.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
        assert pinned is not None, f"constraints.txt does not pin {requirement.name} for Python {python}"
        assert requirement.specifier.contains(pinned), f"{requirement} excludes the pinned {pinned}"


def test_constraints_leave_torchvision_out(constraints: list[Requirement]) -> None:
    assert "torchvision" not in {pin.name for pin in constraints}


@pytest.mark.parametrize("target", ["install", "demo", "test", "test-triton", "test-all", "docs", "lint", "typecheck"])
def test_every_make_target_starts_from_nothing(repository: Path, tmp_path: Path, target: str) -> None:
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, tmp_path / name)
    plan = planned_by_make(tmp_path, target, "TORCH_INDEX=https://example.org/cpu")
    assert "-m venv --clear .venv" in plan
    installs = [line for line in plan.replace("\\\n", " ").splitlines() if "pip install" in line]
    assert installs
    for line in installs:
        assert "--constraint constraints.txt" in line
        assert "--extra-index-url https://example.org/cpu" in line


def test_an_up_to_date_environment_is_reused_until_the_requirements_change(repository: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, tmp_path / name)
    stamp = tmp_path / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()

    assert "pip install" not in planned_by_make(tmp_path, "test")
    later = stamp.stat().st_mtime + 10
    os.utime(tmp_path / "setup.cfg", (later, later))
    assert "pip install" in planned_by_make(tmp_path, "test")


def test_continuous_integration_runs_rules_types_and_tests(repository: Path) -> None:
    script = repository / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "lint typecheck test" in script.read_text(encoding="utf-8")
