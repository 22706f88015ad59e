"""The Python of README and tutorials runs: with a tiny model where the demo's would be, and on tiny material.

The commands between the snippets run in ``test_tutorials.py``, which takes minutes.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from shown import DOCS, ROOT, blocks, write_modules
from tiny_band import WINDOW_S, TinyBand, sing
from tiny_models import TINY
from tiny_stages import clips, loader, tiny_stage, trainer

from hafm_lightning.cli import main
from hafm_lightning.stages import CoarseStage

SECONDS = 2 * WINDOW_S


@pytest.fixture(scope="module")
def workplace(paper_band: TinyBand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is after the demo: ``demo/model``, and a short vocal where the repository has a longer one."""
    folder = tmp_path_factory.mktemp("workplace")
    files = [word for role in ("semantic", "coarse", "fine") for word in (f"--{role}", str(paper_band.files()[role]))]
    tokenizers = ["--tokenizers", str(paper_band.tokenizers)]
    assert main(["export", *files, *tokenizers, "--out", str(folder / "demo" / "model")]) == 0
    (folder / "docs" / "audio").mkdir(parents=True)
    vocal = sing(SECONDS, 24_000).samples[0]
    for name in ("song_1_vocal", "song_2_vocal", "song_3_vocal"):
        soundfile.write(folder / "docs" / "audio" / f"{name}.ogg", vocal, 24_000)
    return folder


@pytest.fixture
def at_work(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(workplace)
    return workplace


def snippet(page: Path, with_text: str) -> str:
    """The one block of Python of a page that contains a text."""
    (found,) = [
        block.text
        for block in blocks(page.read_text(encoding="utf-8"))
        if block.language == "python" and with_text in block.text
    ]
    return found


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "tutorials" / "hear_it.md"], ids=lambda path: path.stem)
def test_the_lines_of_python_make_a_take_after_the_demo(page: Path, at_work: Path) -> None:
    """It was: README loads semantic.ckpt, a file that nothing writes."""
    text = snippet(page, "from_pretrained")
    assert len([line for line in text.splitlines() if line.strip()]) <= 5
    names: dict[str, object] = {}
    exec(compile(text, str(page), "exec"), names)
    (folder,) = [path.parent for path in at_work.glob("*/take.json")]
    sound, rate = soundfile.read(folder / "mix.wav")
    assert len(sound) / rate == pytest.approx(SECONDS, abs=0.01)
    assert np.abs(sound).max() > 0.01
    for path in folder.iterdir():
        path.unlink()


def test_the_loss_of_the_page_is_trained_on_and_keeps_its_role(at_work: Path, tmp_path: Path) -> None:
    write_modules(DOCS / "tutorials" / "your_own_loss.md", at_work)
    module = importlib.import_module("my_stages")
    stage = module.SmoothedCoarse(backbone=TINY, guidance_dropout=0.0)
    batch = clips(tiny_stage(CoarseStage), 2)
    with torch.no_grad():
        log_probabilities = stage(batch).log_softmax(-1)
        targets = batch["instrumental_coarse"]
        true = -log_probabilities.gather(-1, targets[..., None])[..., 0].mean()
        spread = -log_probabilities.mean(-1).mean()
        torch.testing.assert_close(stage.training_loss(batch), 0.9 * true + 0.1 * spread)
    fit = trainer(tmp_path)
    before = [parameter.clone() for parameter in stage.parameters()]
    fit.fit(stage, loader(batch))
    assert any(not torch.equal(old, new) for old, new in zip(before, stage.parameters(), strict=True))
    assert stage.role == "coarse"


def test_the_callback_of_the_page_logs_the_norm(at_work: Path, tmp_path: Path) -> None:
    write_modules(DOCS / "tutorials" / "your_own_loss.md", at_work)
    callback = importlib.import_module("my_callbacks").WeightNorm()
    stage = tiny_stage(CoarseStage)
    fit = trainer(tmp_path, callbacks=[callback], limit_val_batches=1)
    fit.validate(stage, loader(clips(stage, 2)), verbose=False)
    squares = sum(float(p.detach().double().square().sum()) for p in stage.parameters())
    assert float(fit.callback_metrics["val/weight_norm"]) == pytest.approx(squares**0.5, rel=1e-5)


def test_the_codec_of_the_page_takes_the_nearest_waveforms(at_work: Path, tmp_path: Path) -> None:
    write_modules(DOCS / "tutorials" / "your_own_codec.md", at_work)
    codec_class = importlib.import_module("my_codec").WaveformCodec
    sounds = [torch.from_numpy(sing(2.0, 24_000, seed=seed).samples[0]) for seed in range(2)]
    codec = codec_class.train(sounds)
    audio = sounds[0][:3200].reshape(2, 1600)
    codes = codec.encode(audio)
    assert codes.shape == (2, 8, 5)
    waveforms = codec.arrays["waveforms"].double().numpy()
    for clip, piece in ((0, 0), (1, 17), (1, 39)):
        wanted = audio[clip, 40 * piece : 40 * piece + 40].double().numpy()
        distances = ((waveforms - wanted) ** 2).sum(axis=1)
        chosen = int(codes[clip, piece % 8, piece // 8])
        assert distances[chosen] <= distances.min() + 1e-9
        decoded = codec.decode(codes)[clip, 40 * piece : 40 * piece + 40]
        np.testing.assert_array_equal(decoded.numpy(), waveforms[chosen].astype(np.float32))
    codec.save(tmp_path / "codec")
    assert codec_class.load(tmp_path / "codec").identity == codec.identity
    assert torch.equal(codec.decode(codes[:, :4]).reshape(2, 5, 8, 40)[:, :, 4:], torch.zeros(2, 5, 4, 40))


def test_a_module_of_a_page_is_imported_from_that_page(at_work: Path) -> None:
    """Modules of two pages have different names: one process may import all."""
    names = [name for page in sorted((DOCS / "tutorials").glob("*.md")) for name in write_modules(page, at_work)]
    assert len(set(names)) == len(names) >= 4
    assert not {Path(name).stem for name in names} & set(sys.stdlib_module_names)
