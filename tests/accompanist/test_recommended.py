"""Recommended settings of a model: written by export, read everywhere, and refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_band import TinyBand, sing

from hafm_lightning import Accompanist
from hafm_lightning.accompanist.recommended import (
    GENERATION_FILE,
    Recommended,
    changed_sampling,
    read_recommended,
    write_recommended,
)
from hafm_lightning.audio import write_audio
from hafm_lightning.cli import main
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.sampling import SamplingOptions


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_recommended(tmp_path) == Recommended()  # a folder of an earlier version
    chosen = Recommended(SamplingOptions(1.5, 0.7, None, 0.9), 0.01)
    write_recommended(tmp_path, chosen)
    assert read_recommended(tmp_path) == chosen
    (tmp_path / GENERATION_FILE).write_text('{"guidance": 2}')  # by hand
    assert read_recommended(tmp_path) == Recommended(SamplingOptions(2.0))


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", '{"guidance": "3"}', '{"guidance": NaN}', '{"guidance": 1e400}', '{"guidance": -1}'),
        *('{"top_k": 0}', '{"top_k": 2.5}', '{"temperature": 1e-300}', '{"guidence": 3}', '{"vocal_noise_sigma": 3}'),
    ],
)
def test_a_damaged_file_is_refused_in_a_line(content: str, tmp_path: Path) -> None:
    (tmp_path / GENERATION_FILE).write_text(content)
    with pytest.raises(RequestError) as refused:
        read_recommended(tmp_path)
    assert GENERATION_FILE in str(refused.value)
    assert "\n" not in str(refused.value)


def test_changes_are_made_to_the_recommended_sampling() -> None:
    recommended = SamplingOptions(1.5, 0.7, 100, 0.9)
    assert changed_sampling(recommended) == recommended
    assert changed_sampling(recommended, guidance=0.0, top_k=None) == SamplingOptions(0.0, 0.7, None, 0.9)
    assert changed_sampling(recommended, top_p=None, temperature=0) == SamplingOptions(1.5, 0, 100, None)
    with pytest.raises(RequestError, match="guidance"):
        changed_sampling(recommended, guidance=-1)


def test_export_takes_run_folders_and_everything_reads_its_sampling(
    live_band: TinyBand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = live_band.files()
    run = tmp_path / "logs" / "coarse" / "run-003" / "checkpoints"
    run.mkdir(parents=True)
    (run / "best.ckpt").write_bytes(Path(files["coarse"]).read_bytes())
    files["coarse"] = tmp_path / "logs" / "coarse"  # the folder of all runs, as evaluate takes it
    words = [word for role in ("semantic", "coarse", "fine") for word in (f"--{role}", str(files[role]))]
    model = tmp_path / "model"
    assert main(["export", *words, "--out", str(model), "--guidance", "1.5", "--top-k", "100"]) == 0
    assert json.loads((model / GENERATION_FILE).read_text())["guidance"] == 1.5

    band = Accompanist.from_pretrained(model, precision="fp32")
    assert band.sampling == SamplingOptions(1.5, 0.9, 100, None)
    settings = band.accompany(sing(0.2, 24000), top_p=0.8).record["settings"]
    assert [settings[name] for name in ("guidance", "temperature", "top_k", "top_p")] == [1.5, 0.9, 100, 0.8]

    write_audio(tmp_path / "v.wav", sing(0.2, 24000))
    command = ["generate", "--vocal", str(tmp_path / "v.wav"), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main([*command, "--temperature", "0.5"]) == 0
    settings = json.loads((tmp_path / "out" / "take.json").read_text())["settings"]
    assert [settings[name] for name in ("guidance", "temperature", "top_k", "top_p")] == [1.5, 0.5, 100, None]

    empty = tmp_path / "empty"
    empty.mkdir()
    capsys.readouterr()
    assert main(["export", *words[:2], "--coarse", str(empty), *words[4:], "--out", str(tmp_path / "other")]) == 2
    assert "no checkpoint under" in capsys.readouterr().err
    assert main(["export", *words, "--out", str(tmp_path / "other"), "--guidance", "nan"]) == 2
    assert not (tmp_path / "other").exists()
