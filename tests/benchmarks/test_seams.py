"""Joints that can be heard are found, joints that cannot are not; and those of long takes cannot."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tiny_band import TinyBand, sing

from hafm_lightning import Accompanist
from hafm_lightning.audio import Audio

RATE_HZ = 24000


def benchmark_module(name: str) -> ModuleType:
    """A module of benchmarks/, which is no package."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


seam_test = benchmark_module("_seams").seam_test


def music(duration_s: float, seed: int = 0) -> Audio:
    """Notes of random pitch, level and length: it jumps by itself."""
    random = np.random.default_rng(seed)
    parts = []
    while sum(map(len, parts)) < duration_s * RATE_HZ:
        time = np.arange(int(random.uniform(0.1, 0.5) * RATE_HZ)) / RATE_HZ
        parts.append(random.uniform(0.05, 0.3) * np.sin(2 * np.pi * random.uniform(100, 2000) * time))
    sound = np.concatenate(parts)[: round(duration_s * RATE_HZ)]
    return Audio((sound + 0.002 * random.standard_normal(len(sound))).astype(np.float32)[None], RATE_HZ)


BORDERS_S = list(np.arange(2.0, 58.0, 2.0))


def test_unmarked_music_has_no_joints() -> None:
    result = seam_test(music(60), BORDERS_S)
    assert result.joints == len(BORDERS_S)
    assert min(result.level_p, result.flux_p) > 0.01


def test_a_click_at_every_joint_is_found() -> None:
    sound = music(60)
    samples = sound.samples.copy()
    for border_s in BORDERS_S:
        samples[0, round(border_s * RATE_HZ) : round((border_s + 0.02) * RATE_HZ)] *= 0.05  # a gap
    result = seam_test(Audio(samples, RATE_HZ), BORDERS_S)
    assert result.level_p < 0.001
    assert result.level_db[0] > result.level_db[1]


def test_a_change_of_timbre_at_every_joint_is_found() -> None:
    smooth = np.sin(2 * np.pi * 440 * np.arange(60 * RATE_HZ) / RATE_HZ) * 0.2
    for number in range(0, 30, 2):
        at = slice(number * 2 * RATE_HZ, (number + 1) * 2 * RATE_HZ)
        smooth[at] = 0.2 * np.sin(2 * np.pi * 900 * np.arange(2 * RATE_HZ) / RATE_HZ)
    result = seam_test(Audio(smooth.astype(np.float32)[None], RATE_HZ), BORDERS_S)
    assert result.flux_p < 0.001


@pytest.mark.parametrize("name", ["live_band", pytest.param("paper_band", marks=pytest.mark.slow)])
def test_the_windows_of_a_long_take_leave_no_seam(name: str, request: pytest.FixtureRequest) -> None:
    files: TinyBand = request.getfixturevalue(name)
    band = Accompanist.from_checkpoints(**files.files(), device="cpu", precision="fp32")
    band.window = 20  # 0.8 s: longer than the fixtures' usual windows, so that there is sound between the joints
    takes = band.accompany_batch([sing(7.0, RATE_HZ, seed=n) for n in range(2)], seeds=[0, 1], overlap_s=0.12)
    results = [seam_test(take.instrumental, take.record["borders_s"]) for take in takes]
    assert all(result.joints > 8 for result in results)
    assert min(p for result in results for p in (result.level_p, result.flux_p)) > 0.05 / 4  # four looks


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="joints"):
        seam_test(music(1.0), [])
    with pytest.raises(ValueError, match="longer"):
        seam_test(music(0.3), [0.1, 0.2])
