"""What the figures of a benchmark depend on: commit, processor, versions, load; and how much memory was held."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def commit() -> str:
    """Short hash of the checked-out commit, with + for changed files that are tracked; unknown outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def processor() -> str:
    """Name of the processor and its number of cores."""
    cores = f"{os.cpu_count()} cores"
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {cores}"
    return f"{platform.processor() or platform.machine()}, {cores}"


def machine(threads: int | None = None) -> dict[str, Any]:
    """Commit, hardware, versions and load.

    Args:
        threads: CPU threads that were used; by default PyTorch's number in this process.
    """
    return {
        "commit": commit(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads() if threads is None else threads,
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def peak_memory_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def forget_peak_memory() -> None:
    """Begin :func:`peak_memory_bytes` anew, where the system can."""
    switch = Path("/proc/self/clear_refs")
    if switch.exists():
        switch.write_text("5")


def kernels_started(function: Callable[[], object]) -> int | None:
    """How many kernels a call starts on the GPU, those of replayed graphs among them; None without a GPU."""
    times = kernel_times_us(function)
    return None if times is None else len(times)


def kernel_times_us(function: Callable[[], object]) -> list[float] | None:
    """Microseconds of each kernel that a call starts on the GPU, as :func:`kernels_started` counts them."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [event for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]
    return [event.time_range.elapsed_us() for event in kernels]
