"""Long runs: nothing grows. Each prints a row for docs/faults.md (``make long``)."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_band import TinyBand, sing
from tiny_music import TinyMusic
from watch import QUANTITIES, Watch, WatchSteps, growth
from workshop import BACKBONE

from hafm_lightning import Accompanist
from hafm_lightning.accompanist import LiveOptions, Take
from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.cli import main
from hafm_lightning.cli.app.page import files_of
from hafm_lightning.cli.app.performance import Performance

ALLOWED = {"memory_mib": 24.0, "files": 2.0, "threads": 1.0, "disk_mib": 1.0}
"""Growth after the warm-up. 24 MiB: allocators round, and a leak of 2 kB a step would be 30 MiB in 15,000 steps."""
STEPS, REQUESTS, LIVE_S = 20_000, 2_000, 3600
METRICS_MIB = 8.0
"""metrics.csv holds a row for each logged step; nothing else may grow on the disk."""


def test_a_leak_is_seen() -> None:
    noise = np.random.default_rng(0).normal(0, 2, 100)
    assert growth(list(500 + noise)) < 4
    assert growth(list(500 + noise + np.arange(100) * 0.5)) > 30
    assert growth([0.0] * 20 + [100.0] * 80) == pytest.approx(0, abs=1e-9)  # a cache that is full after the warm-up
    with pytest.raises(ValueError, match="at least 5"):
        growth([1.0, 2.0])


def test_readings_name_what_grew(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    held = []
    for number in range(12):
        held.append((tmp_path / str(number)).open("wb"))
        held[-1].write(bytes(1 << 19))
        held[-1].flush()
        watch.read()
    for file in held:
        file.close()
    found = watch.too_much({"memory_mib": 1e3, "files": 2, "threads": 1, "disk_mib": 1})
    assert [line.split()[0] for line in found] == ["files", "disk_mib"]
    assert len(watch.figures("a run").split("|")) == len(QUANTITIES) + 3


@pytest.mark.slow
def test_training(music: TinyMusic, tmp_path: Path) -> None:
    values = {
        "seed_everything": 0,
        "model": {
            "class_path": "hafm_lightning.stages.CoarseStage",
            "init_args": {"backbone": BACKBONE, "conditioning": "aligned", "pattern": "parallel"},
        },
        "data": {
            "class_path": "hafm_lightning.data_modules.TokenShards",
            "init_args": {"root": str(music.shards), "batch_size": 2, "crop_s": 0.2},
        },
        "checkpoints": {"every_steps": 500, "keep": 2},
        "trainer": {
            "max_steps": STEPS,
            "accelerator": "cpu",
            "devices": 1,
            "val_check_interval": 500,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 50,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(tmp_path / "logs"),
            "callbacks": [
                {"class_path": "watch.WatchSteps", "init_args": {"folder": str(tmp_path / "logs"), "every": 200}},
                {
                    "class_path": "hafm_lightning.callbacks.MusicEvaluation",
                    "init_args": {
                        "root": str(music.songs),
                        "clips": 4,
                        "duration_s": 1.0,
                        "active": 0.3,
                        "audio_clips": 1,
                        "sampling": {"guidance": 1.0},
                    },
                },
            ],
        },
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(values))
    assert main(["fit", "--config", str(tmp_path / "fit.yaml")]) == 0
    watch = WatchSteps.latest
    assert watch is not None
    assert len(watch.readings) == STEPS // 200
    print(watch.figures(f"{STEPS:,} training steps"))
    # music files of every validation stay on the disk: they are the product
    sounds = sum(path.stat().st_size for path in (tmp_path / "logs").rglob("music/**/*") if path.is_file()) / 2**20
    assert watch.too_much(ALLOWED | {"disk_mib": METRICS_MIB + sounds}) == []


@pytest.fixture
def band(live_band: TinyBand) -> Accompanist:
    return Accompanist.from_checkpoints(**live_band.files(), device="cpu", precision="fp32")


@pytest.mark.slow
def test_requests_of_the_app(band: Accompanist, tmp_path: Path) -> None:
    """What the page does for each visitor; it deletes old files itself, as this test does."""
    vocal = sing(0.4, 24_000)
    write_audio(tmp_path / "vocal.wav", vocal)
    watch = Watch(tmp_path)
    for number in range(REQUESTS):
        news = list(Performance(partial(band.accompany, str(tmp_path / "vocal.wav"), seed=number)).run())
        assert isinstance(news[-1], Take)
        for name in files_of(news[-1], vocal, tmp_path):
            assert Path(name).stat().st_size > 100
        shutil.rmtree(Path(name).parent)
        if number % 20 == 0:
            watch.read()
    print(watch.figures(f"{REQUESTS:,} requests of the app"))
    assert watch.too_much(ALLOWED) == []


@pytest.mark.slow
def test_an_hour_of_live_streaming(band: Accompanist, tmp_path: Path) -> None:
    watch, minute = Watch(tmp_path), sing(60.0, 24_000).samples
    session = band.live_session(seed=1, live=LiveOptions(hop_s=0.4, listen_s=0.8, context_s=0.2))
    given = 0
    for number in range(LIVE_S):
        start = number % 60 * 24_000
        for piece in session.push(Audio(minute[:, start : start + 24_000], 24_000)):
            given += piece.samples.shape[1]
        if number % 30 == 0:
            watch.read()
    for piece in session.finish():
        given += piece.samples.shape[1]
    assert given == LIVE_S * 24_000
    print(watch.figures("an hour of live streaming"))
    assert watch.too_much(ALLOWED) == []
