"""What every test shares: no network, no display, one thread, the repository's root."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from tiny_band import TinyBand
    from tiny_music import TinyMusic

    from hafm_lightning.evaluation.segments import MusicClip
    from hafm_lightning.preparation.report.report import PreparationReport
    from hafm_lightning.tokenizers import Tokenizers

# Set before any package reads them: tests never reach a hub, a dashboard or a display.
os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", MPLBACKEND="Agg"
)
if "HAFM_CACHE" not in os.environ:  # tests leave nothing in the user's cache
    os.environ["HAFM_CACHE"] = tempfile.mkdtemp(prefix="hafm-tests-")
    atexit.register(shutil.rmtree, os.environ["HAFM_CACHE"], ignore_errors=True)
torch.set_num_threads(1)  # tiny tensors gain nothing from more, and two workers share the cores


def pytest_configure(config: pytest.Config) -> None:
    """Before workers start: have librosa compiled, by one process."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        from hafm_lightning.evaluation.coherence.rhythm import compiled_librosa

        compiled_librosa()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizers]:
    """A folder with trained offline tokenizers, and the pair itself."""
    from tiny_band import tiny_tokenizers

    folder = tmp_path_factory.mktemp("band") / "tokenizers"
    return folder, tiny_tokenizers(folder)


@pytest.fixture(scope="session")
def paper_band(tmp_path_factory: pytest.TempPathFactory, tiny_pair: tuple[Path, Tokenizers]) -> TinyBand:
    """Checkpoints in the paper's manner: flattened, conditions in a prefix."""
    from tiny_band import make_band

    return make_band(tmp_path_factory.mktemp("paper"), *tiny_pair, "paper")


@pytest.fixture(scope="session")
def live_band(tmp_path_factory: pytest.TempPathFactory, tiny_pair: tuple[Path, Tokenizers]) -> TinyBand:
    """Checkpoints for live use: aligned conditions, delay pattern, non-autoregressive fine stage."""
    from tiny_band import make_band

    return make_band(tmp_path_factory.mktemp("live"), *tiny_pair, "live")


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> TinyMusic:
    """A small toy band with trained offline tokenizers and shards; made once a run."""
    from tiny_music import make_tiny_music

    return make_tiny_music(tmp_path_factory.mktemp("tiny_music"))


@pytest.fixture(scope="session")
def clips(music: TinyMusic) -> list[MusicClip]:
    """Six test segments of the tiny toy band, one second each."""
    from tiny_music import tiny_selection

    from hafm_lightning.evaluation.segments import load_clip

    return [load_clip(segment, music.tokenizers) for segment in tiny_selection(music).segments]


@pytest.fixture(scope="session")
def musdb(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Five songs of 5 s, four of them in ``train``."""
    from tiny_corpora import write_musdb

    root = write_musdb(tmp_path_factory.mktemp("musdb"), train=4, test=1, seconds=5.0)
    return [{"kind": "MusdbHQ", "path": str(root), "allow_partial": True}]


@pytest.fixture(scope="session")
def odd_songs(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparationReport, Path]:
    """Report and root of a preparation of every odd file that a folder of songs may hold."""
    from odd_songs import write_odd_songs
    from tiny_preparation import tiny_config

    from hafm_lightning.preparation.pipeline import prepare

    base = tmp_path_factory.mktemp("odd")
    write_odd_songs(base / "songs")
    corpora = [{"kind": "StemFolder", "path": str(base / "songs")}]
    changes = {"duplicates": {"enabled": True}, "split": {"validation_share": 0.0}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAFM_QUIET", "1")
        return prepare(tiny_config(base / "root", corpora, **changes)), base / "root"


@pytest.fixture(scope="session")
def styled_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of songs with genres."""
    from styles import prepare_styled_shards

    return prepare_styled_shards(tmp_path_factory.mktemp("fma"))


@pytest.fixture(scope="session")
def styled_checkpoints(styled_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Role -> checkpoint of a stage that was trained on ``styled_shards`` for a few steps."""
    from styles import fit_styled

    folder = tmp_path_factory.mktemp("styled")
    return {role: fit_styled(f"{role.title()}Stage", styled_shards, folder) for role in ("semantic", "coarse", "fine")}


@pytest.fixture(scope="session")
def prepared(musdb: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The songs of ``musdb``, prepared in one process without a break."""
    from tiny_preparation import tiny_config

    from hafm_lightning.preparation.pipeline import prepare

    root = tmp_path_factory.mktemp("prepared") / "root"
    prepare(tiny_config(root, musdb))
    return root
