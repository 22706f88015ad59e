"""Limits come from one place and are changed by name."""

import threading

import pytest

from hafm_lightning import limits
from hafm_lightning.errors import RequestError


def test_the_environment_changes_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAFM_LIMITS", "audio_seconds=14401.5, json_depth=64 layers=1e3")
    current = limits.current()
    assert (current.audio_seconds, current.json_depth, current.layers) == (14401.5, 64, 1000)
    assert isinstance(current.layers, int)
    assert current.audio_channels == limits.Limits().audio_channels


@pytest.mark.parametrize("value", ["json_dept=64", "json_depth=many", "json_depth=nan", "json_depth=-1", "json_depth"])
def test_a_wrong_limit_is_refused_with_the_known_ones(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAFM_LIMITS", value)
    with pytest.raises(RequestError, match="json_depth") as refused:
        limits.current()
    assert len(str(refused.value).splitlines()) <= 2


def test_limits_of_a_block_hold_in_other_threads_and_end_with_it() -> None:
    seen = []
    with limits.using(layers=3, app_seconds=5):
        thread = threading.Thread(target=lambda: seen.append(limits.current().layers))
        thread.start()
        thread.join()
        with limits.using(layers=4):
            assert limits.current().layers == 4
            assert limits.current().app_seconds == 5
        assert limits.current().layers == 3
    assert seen == [3]
    assert limits.current() == limits.Limits()
    with pytest.raises(RequestError, match="did you mean layers"), limits.using(layer=3):
        pass


def test_the_app_is_stricter_than_the_command_line() -> None:
    most = limits.Limits()
    assert most.app_bytes < most.audio_bytes
    assert most.app_seconds < most.audio_seconds
    assert most.app_channels < most.audio_channels
