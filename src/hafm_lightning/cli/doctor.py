"""``doctor``: checks this machine and prints a fix for everything that is missing.

Each package is imported in a process of its own: one that was built for another PyTorch can fail in ways that no
``except`` catches, and importing all of them here would take half a minute.
"""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from hafm_lightning.cli.parser import Parser
from hafm_lightning.progress import progress

HUB_WEIGHTS = {
    "facebook/hubert-base-ls960": "semantic tokens of the paper",
    "facebook/encodec_24khz": "acoustic tokens of the paper",
}
"""Hub id -> purpose."""
NEWEST_PYTHON = (3, 13)
"""Newest version that the pinned set of packages has been tried with."""
FREE_DISK_GIB = 10
"""Below this, preparing a corpus and keeping checkpoints becomes tight."""
IMPORT_LIMIT_S = 120

State = Literal["ok", "note", "broken"]
"""``note``: an optional part is missing; ``broken``: a required part is missing, or an installed package does harm."""


@dataclass(frozen=True)
class Finding:
    """The result of one check; ``fix`` is a command or a step, empty where nothing is missing."""

    what: str
    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Package:
    """A package to import (``module`` where its name differs); ``repair`` fixes one that is installed but fails."""

    name: str
    module: str = ""
    purpose: str = ""
    install: str = "pip install -c constraints.txt {name}"
    repair: str = "pip install --force-reinstall -c constraints.txt {name}"
    if_absent: State = "broken"
    if_broken: State = "broken"

    def finding(self, problem: str) -> Finding:
        """The result of importing it; ``problem`` is empty, :data:`ABSENT` or the error."""
        purpose = f": {self.purpose}" if self.purpose else ""
        if problem == ABSENT:
            fix = "" if self.if_absent == "ok" else self.install.format(name=self.name)
            return Finding(self.name, self.if_absent, ABSENT + purpose, fix)
        try:
            version = metadata.version(self.name)
        except metadata.PackageNotFoundError:
            version = "unknown version"
        if not problem:
            return Finding(self.name, "ok", version + purpose)
        if problem == UNFINISHED:
            detail = f"{version}: not finished in time (importing it took more than {IMPORT_LIMIT_S} s)"
            return Finding(self.name, "note", detail, "run doctor again when the machine is less busy")
        return Finding(self.name, self.if_broken, f"{version}: {problem}", self.repair.format(name=self.name))


def _extra(name: str, extra: str, purpose: str) -> Package:
    return Package(name, "", purpose, f"pip install -c constraints.txt -e '.[{extra}]'", if_absent="note")


ABSENT = "not installed"
UNFINISHED = "not finished in time"
_REMOVE = "pip uninstall -y {name}"
_NOT_NEEDED = "not needed; breaks transformers if it was built for another PyTorch"
PACKAGES = (
    *map(Package, ("torch", "lightning", "torchmetrics", "transformers", "omegaconf", "jsonargparse", "librosa")),
    Package("faiss-cpu", "faiss"),
    *map(Package, ("safetensors", "soundfile", "soxr", "wandb")),
    Package("torchaudio", "", _NOT_NEEDED, repair=_REMOVE, if_absent="ok"),
    Package("torchvision", "", _NOT_NEEDED, repair=_REMOVE, if_absent="ok"),
    Package("encodec", "", "not needed: EnCodec runs from transformers", "", _REMOVE + " torchaudio", "ok", "note"),
    _extra("gradio", "app", "the page (`app`)"),
    _extra("ray", "ray", "preparation on a cluster"),
    _extra("onnxruntime", "separation", "MDX-Net separation"),
)
"""What setup.cfg requires, packages that may do harm, and the extras."""


def main(argv: Sequence[str]) -> int:
    """Print the findings; 1 when something is broken, else 0."""
    parser = Parser("doctor", "Check this machine and print a fix for everything missing.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args(argv)
    findings = list(examine())
    if arguments.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        print("\n".join(table(findings)))
    return 1 if any(finding.state == "broken" for finding in findings) else 0


def examine() -> Iterator[Finding]:
    """Every finding, in the order in which a newcomer should read them."""
    yield python_finding()
    imports = try_imports([package.module or package.name for package in PACKAGES])
    for package in PACKAGES:
        yield package.finding(imports[package.module or package.name])
    if not imports["torch"]:
        yield from device_findings()
    yield from machine_findings()
    yield ffmpeg_finding()
    yield from (weights_finding(repository, purpose) for repository, purpose in HUB_WEIGHTS.items())
    yield wandb_finding()


def table(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings as aligned lines, each with its fix below it."""
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        yield f"{finding.state:6}  {finding.what:{width}}  {finding.detail}"
        if finding.fix:
            yield f"{'':6}  {'':{width}}  -> {finding.fix}"
    broken = sum(finding.state == "broken" for finding in findings)
    yield "Nothing required is missing." if not broken else f"{broken} broken: run the commands after the arrows."


def try_imports(modules: Sequence[str]) -> dict[str, str]:
    """Import each module in a process of its own: module -> empty text, or the last line of what went wrong."""

    def problem(module: str) -> str:
        if find_spec(module) is None:
            return ABSENT
        command = [sys.executable, "-c", f"import {module}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            return UNFINISHED
        if done.returncode == 0:
            return ""
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"the import ended with exit code {done.returncode}"

    problems = {}
    threads = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
    with threads, progress("Importing packages", len(modules), "packages") as bar:
        for module, found in zip(modules, threads.map(problem, modules), strict=True):
            problems[module] = found
            bar.advance(note=module)
    return problems


def python_finding() -> Finding:
    """Version and folder of the interpreter."""
    here = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.prefix}"
    if sys.version_info[:2] <= NEWEST_PYTHON:
        return Finding("Python", "ok", here)
    newest = ".".join(map(str, NEWEST_PYTHON))
    return Finding("Python", "note", f"{here}: newer than {newest}, not tested", f"make install PYTHON=python{newest}")


def device_findings() -> Iterator[Finding]:
    """The devices of PyTorch, and the operations that this processor can do (each is tried)."""
    import torch

    from hafm_lightning.kernels.cpu import processor

    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            memory_gib = device.total_memory / 2**30
            yield Finding(f"GPU {index}", "ok", f"{device.name}, {memory_gib:.0f} GiB, {build}")
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "ok", "Apple GPU (MPS)")
    elif shutil.which("nvidia-smi"):
        detail = f"nvidia-smi is here, but PyTorch ({build}) sees no GPU"
        fix = (
            "update the NVIDIA driver, or install a PyTorch build for it: make install TORCH_INDEX=..."
            if torch.version.cuda
            else "pip install --force-reinstall -c constraints.txt torch  (the CUDA build)"
        )
        yield Finding("GPU", "broken", detail, fix)
    else:
        detail = f"none ({build}): quickstart and generation work without one; full training needs one"
        yield Finding("GPU", "note", detail)
    capability = torch.backends.cpu.get_cpu_capability()
    dense = "oneDNN's packed layers" if processor.has("packed fp32") else "PyTorch's plain layers"
    kind = "bf16" if processor.multiplies_bf16() else "float32 (no bf16 products here)"
    few = "with" if processor.has("int8 rows bf16" if processor.multiplies_bf16() else "int8 rows fp32") else "without"
    products = f"generation multiplies by {dense}, below fp32 in {kind}, {few} int8 products"
    yield Finding("CPU", "ok", f"{os.cpu_count()} cores, {capability}; {products}")


def machine_findings() -> Iterator[Finding]:
    """Memory and disk."""
    memory = Path("/proc/meminfo")
    if memory.is_file():
        total_kib = int(memory.read_text().splitlines()[0].split()[1])
        yield Finding("memory", "ok", f"{total_kib / 2**20:.0f} GiB")
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    if free_gib < FREE_DISK_GIB:
        yield Finding("disk", "note", f"{free_gib:.1f} GiB free here", "free some space before preparing a corpus")
    else:
        yield Finding("disk", "ok", f"{free_gib:.0f} GiB free here")


def ffmpeg_finding() -> Finding:
    """ffmpeg, for formats that libsndfile does not read (m4a, wma, video)."""
    if path := shutil.which("ffmpeg"):
        return Finding("ffmpeg", "ok", path)
    fixes = {"Darwin": "brew install ffmpeg", "Windows": "winget install ffmpeg"}
    detail = "not found: needed for m4a and video files (wav, flac, ogg and mp3 work without it)"
    return Finding("ffmpeg", "note", detail, fixes.get(platform.system(), "apt install ffmpeg"))


def weights_finding(repository: str, purpose: str) -> Finding:
    """Whether published weights are in the local cache of the Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    if any(path.suffix in (".safetensors", ".bin") and path.exists() for path in folder.glob("*/*")):
        return Finding(repository, "ok", f"in {folder.parent}")
    detail = f"not downloaded: {purpose} (the offline tokenizers need no weights)"
    return Finding(repository, "note", detail, f"hf download {repository}")


def wandb_finding() -> Finding:
    """Whether runs can be logged online; offline logging always works."""
    if os.environ.get("WANDB_API_KEY"):
        return Finding("W&B login", "ok", "WANDB_API_KEY is set")
    with contextlib.suppress(netrc.NetrcParseError, OSError, RuntimeError):  # RuntimeError: a user without a home
        named = os.environ.get("NETRC")
        path = Path(named) if named else Path.home() / ".netrc"
        if "api.wandb.ai" in netrc.netrc(path).hosts:
            return Finding("W&B login", "ok", "logged in")
    detail = "not logged in: runs are logged offline and as CSV"
    return Finding("W&B login", "note", detail, "wandb login   (later: wandb sync wandb/offline-run-*)")
