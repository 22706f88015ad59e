"""Settings of a study that cannot be are refused, with the key first."""

from __future__ import annotations

from typing import Any

import pytest

from hafm_lightning.listening.trials.settings import StudySettings


def test_systems_and_sounds_are_compared_together() -> None:
    assert StudySettings(sounds={"other": "f"}).names == ("three_stages", "ground_truth", "random", "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": ("model",)}, "unknown model; choose from ground_truth"),
        ({"systems": ("random", "random")}, "two have the name random"),
        ({"sounds": {"random": "f"}}, "two have the name random"),
        ({"systems": ("random", "three_stages"), "sounds": {"ground_truth": "f"}}, "two have the name ground_truth"),
        ({"systems": ("random",)}, "a comparison needs two, got random"),
        ({"systems": ()}, "a comparison needs two, got none"),
        ({"sounds": {"silence": "f"}}, "'silence' cannot name a system"),
        ({"sounds": {"../x": "f"}}, "cannot name a system"),
        ({"sounds": {"a b": "f"}}, "cannot name a system"),
        ({"sounds": {"": "f"}}, "cannot name a system"),
        ({"trials": -1}, "start at 0"),
        ({"same": -1}, "start at 0"),
        ({"silence": -1}, "start at 0"),
        ({"seed": -1}, "seed must lie"),
        ({"seed": 1 << 53}, "seed must lie"),
        ({"rate_hz": 7999}, "rate_hz must be"),
        ({"loudness_lufs": 0.0}, "loudness_lufs must lie"),
        ({"loudness_lufs": float("nan")}, "loudness_lufs must lie"),
        ({"criteria": ()}, "criteria"),
        ({"criteria": ("volume",)}, "criteria"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudySettings(**changes)
