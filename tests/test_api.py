"""What `import hafm_lightning` offers: it can be found, loaded, heard, and its examples are true."""

from __future__ import annotations

import ast
import base64
import doctest
import importlib
import io
import pydoc
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_band import TinyBand, sing

import hafm_lightning
from hafm_lightning import cli
from hafm_lightning.accompanist import Accompanist, Take
from hafm_lightning.audio import Audio, read_audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.distances.frechet import GaussianStatistics, frechet_distance
from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding
from hafm_lightning.stages import CoarseStage

SOURCE = Path(hafm_lightning.__file__).parent
ROOMS = sorted(
    [path for path in SOURCE.glob("*.py") if path.name != "__main__.py"] + list(SOURCE.rglob("__init__.py")),
)
WITH_EXAMPLES = sorted(path for path in SOURCE.rglob("*.py") if re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE))


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_dir_and_help_show_the_api() -> None:
    """Both showed nothing of what is imported when it is first used."""
    assert set(hafm_lightning.__all__) <= set(dir(hafm_lightning))
    text = pydoc.plain(pydoc.render_doc(hafm_lightning))
    assert "class Accompanist" in text
    assert "class Take" in text
    for function in ("fad", "load", "load_stage"):
        assert re.search(rf"^ +{function}\(", text, re.MULTILINE), function
    for name in hafm_lightning.__all__:
        assert getattr(hafm_lightning, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = hafm_lightning.nonsense


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_every_room_names_what_it_offers(path: Path) -> None:
    module = importlib.import_module(name_of(path))
    names = module.__all__
    assert list(names) == sorted(set(names), key=list(names).index), "a name stands twice"
    own = {child.stem for child in path.parent.glob("*.py")} | {
        child.parent.name for child in path.parent.glob("*/__init__.py")
    }
    for name in names:
        assert hasattr(module, name) or name in own, name
    defined = {
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert defined <= set(names), f"not in __all__: {defined - set(names)}"


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=name_of)
def test_examples_in_docstrings_are_true(path: Path) -> None:
    result = doctest.testmod(importlib.import_module(name_of(path)), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_there_are_examples() -> None:
    assert {"hafm_lightning.loading", "hafm_lightning.tokens", "hafm_lightning.modeling.layout"} <= {
        name_of(path) for path in WITH_EXAMPLES
    }


# --- load ---------------------------------------------------------------------------------------------------------


def runs_of(band: TinyBand, root: Path, *roles: str) -> Path:
    """The stages of a band as runs of training."""
    for role in roles:
        folder = root / role / "run-001" / "checkpoints"
        folder.mkdir(parents=True)
        (root / role / "run-002").mkdir()  # without a best checkpoint yet
        (folder / "best.ckpt").symlink_to(getattr(band, role))
    return root


def test_load_takes_whatever_was_written(live_band: TinyBand, tmp_path: Path) -> None:
    root = runs_of(live_band, tmp_path / "logs", "semantic", "coarse", "fine")
    for place in (live_band.coarse, root / "coarse", root / "coarse" / "run-001"):
        assert isinstance(hafm_lightning.load(place), CoarseStage)
    band = hafm_lightning.load(root, device="cpu")
    assert isinstance(band, Accompanist)
    assert [network.role for network in band.networks] == ["semantic", "coarse", "fine"]
    files = [word for role in ("semantic", "coarse", "fine") for word in (f"--{role}", str(root / role / "run-001"))]
    assert cli.main(["export", *files, "--out", str(tmp_path / "model")]) == cli.DONE
    again = hafm_lightning.load(str(tmp_path / "model"), device="cpu")
    assert isinstance(again, Accompanist)
    assert [network.sha256 for network in again.networks] == [network.sha256 for network in band.networks]
    two = runs_of(live_band, tmp_path / "two", "semantic", "coarse")
    stages = hafm_lightning.load(two, device="cpu")
    assert isinstance(stages, Accompanist)
    assert len(stages.networks) == 2
    with pytest.raises(RequestError, match="holds no"):
        hafm_lightning.load(tmp_path / "two" / "semantic" / "run-002")


# --- fad ----------------------------------------------------------------------------------------------------------


def test_fad_of_two_folders_is_the_distance_of_their_rows(tmp_path: Path) -> None:
    files = {"a": ("1.wav", "deep/2.wav"), "b": ("1.wav", "2.flac")}
    for number, (folder, names) in enumerate(files.items()):
        for seed, name in enumerate(names):
            write_audio(tmp_path / folder / name, sing(3.0, 24000, seed=2 * number + seed, channels=2))
    (tmp_path / "a" / "notes.txt").write_text("no sound")
    (tmp_path / "a" / "._1.wav").write_bytes(b"a resource fork")
    model = LogMelEmbedding()
    model.level = "loudness"
    rows = {
        folder: np.concatenate(
            [
                model.rows(read_audio(tmp_path / folder / name, mono=True, rate_hz=model.rate_hz).samples[0])
                for name in names
            ]
        )
        for folder, names in files.items()
    }
    expected = frechet_distance(*(GaussianStatistics.from_rows(rows[folder]) for folder in ("a", "b")))
    assert hafm_lightning.fad(tmp_path / "a", tmp_path / "b", embedding="logmel") == pytest.approx(expected, rel=1e-9)
    assert expected > 0
    with pytest.raises(RequestError, match="no such folder"):
        hafm_lightning.fad(tmp_path / "a", tmp_path / "c", embedding="logmel")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no sound files"):
        hafm_lightning.fad(tmp_path / "empty", tmp_path / "a", embedding="logmel")


# --- a take in a notebook -----------------------------------------------------------------------------------------


def test_a_take_plays_in_a_notebook() -> None:
    mix, band = sing(0.5, 22050, channels=2), sing(0.5, 22050, seed=1)
    take = Take(mix, band, band, {}, 1.0)
    take = replace(take, instrumental=band, mix=mix)
    html = take._repr_html_()
    sounds = re.findall(
        r'<audio controls aria-label="(\w+), 0\.5 s" src="data:audio/flac;base64,([^"]+)"></audio>', html
    )
    assert [name for name, _ in sounds] == ["mix", "accompaniment"]
    for (_, data), audio in zip(sounds, (mix, band), strict=True):
        samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32", always_2d=True)
        assert rate_hz == audio.rate_hz
        np.testing.assert_allclose(samples.T, audio.samples, atol=2**-15)
    assert isinstance(take.mix, Audio)
