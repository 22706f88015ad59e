"""Engines: chosen by the settings, devices of the workers, and the same bytes from a Ray cluster."""

import pytest
from tiny_corpora import write_musdb, write_stems
from tiny_preparation import shard_bytes, tiny_config

from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.engine import EngineSettings, make_engine
from hafm_lightning.preparation.pipeline import PreparationConfig, prepare
from hafm_lightning.preparation.survey import SurveyWork
from hafm_lightning.processes.pool import ProcessPool, SerialPool
from hafm_lightning.tokenizers import load_tokenizers


def test_settings_choose_the_engine():
    assert isinstance(make_engine(EngineSettings(workers=1)), SerialPool)
    with make_engine(EngineSettings(workers=2)) as engine:
        assert isinstance(engine, ProcessPool)
    with pytest.raises(ValueError, match="choose local or ray"):
        EngineSettings(kind="spark")


def test_ray_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(RequestError, match="Ray Data cannot be imported"):
        make_engine(EngineSettings(kind="ray"))


def test_workers_load_their_tokenizers_on_their_own_device(tmp_path, monkeypatch):
    """Units are tokenized where the workers are, the examples where the run was started."""
    monkeypatch.setenv("HAFM_QUIET", "1")
    monkeypatch.setattr(PreparationConfig, "worker_device", lambda self: "workers")
    devices = []

    def load(folder, device):
        devices.append(device)
        return load_tokenizers(folder)

    write_stems(tmp_path / "songs" / "song", 4.0)
    prepare(tiny_config(tmp_path / "root", [{"kind": "StemFolder", "path": str(tmp_path / "songs")}]), load)
    assert devices[-1] == "workers"
    assert set(devices[:-1]) == {"cpu"}


@pytest.mark.slow
def test_a_ray_cluster_of_two_workers_gives_the_same_bytes(tmp_path, monkeypatch):
    pytest.importorskip("ray.data")
    monkeypatch.setenv("HAFM_QUIET", "1")
    corpora = [{"kind": "MusdbHQ", "path": str(write_musdb(tmp_path / "musdb", 4, 1, 5.0)), "allow_partial": True}]
    changes = {"duplicates": {"enabled": True}, "tokenizers": {"training_clips": 8}, "vocal_acoustic": True}
    prepare(tiny_config(tmp_path / "local", corpora, **changes))
    prepare(tiny_config(tmp_path / "ray", corpora, engine={"kind": "ray", "workers": 2}, **changes))
    assert shard_bytes(tmp_path / "ray") == shard_bytes(tmp_path / "local")
    with make_engine(EngineSettings(kind="ray", workers=1)) as engine:
        assert dict(engine.map(SurveyWork(False), [()] * 3)) == {0: [], 1: [], 2: []}
        with pytest.raises(RuntimeError, match=r"failed on the Ray cluster: AttributeError: .*attribute"):
            list(engine.map(SurveyWork(False), [("not a song",)]))
