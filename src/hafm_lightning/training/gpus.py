"""Names of GPUs, and the most that they compute."""

from __future__ import annotations

PEAK_TFLOPS: dict[str, dict[str, float]] = {
    # chip: matrix TFLOP/s without sparsity, from the vendors' data sheets
    "b200": {"half": 2250, "tf32": 1125, "single": 75},
    "h200": {"half": 989, "tf32": 495, "single": 67},
    "h100 nvl": {"half": 835, "tf32": 418, "single": 60},
    "h100 pcie": {"half": 756, "tf32": 378, "single": 51},
    "h100": {"half": 989, "tf32": 495, "single": 67},
    "a100": {"half": 312, "tf32": 156, "single": 19.5},
    "a40": {"half": 149.7, "tf32": 74.8, "single": 37.4},
    "a10": {"half": 125, "tf32": 62.5, "single": 31.2},
    "a6000": {"half": 154.8, "tf32": 77.4, "single": 38.7},
    "l40s": {"half": 362, "tf32": 183, "single": 91.6},
    "l40": {"half": 181, "tf32": 90.5, "single": 90.5},
    "l4": {"half": 121, "tf32": 60, "single": 30.3},
    "rtx 4090": {"half": 165.2, "tf32": 82.6, "single": 82.6},
    "rtx 3090": {"half": 71, "tf32": 35.6, "single": 35.6},
    "v100": {"half": 125, "tf32": 15.7, "single": 15.7},
    "t4": {"half": 65, "tf32": 8.1, "single": 8.1},
}


def chip_of(name: str) -> str | None:
    """The key of :data:`PEAK_TFLOPS` for a device's name, such as ``NVIDIA H100 80GB HBM3``; None if it has none."""
    words = name.lower().replace("-", " ").split()
    return next((chip for chip in PEAK_TFLOPS if set(chip.split()) <= set(words)), None)
