"""docs/your_own_songs.md is true: its commands lead from a folder of mp3 files to an audible take.

The commands are read from the page. Options that shrink the networks are added; a tiny model stands for the
separator's, which the table of public models knows by its content, and tiny HuBERT and EnCodec for the downloaded ones.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from shipped import SMALL_STAGE
from tiny_corpora import vocal_and_band
from tiny_separation import DIM_F, DIM_T, HOP, N_FFT, SPLIT_BIN, mask_model
from tiny_tokenizers import save_encodec, save_hubert

from hafm_lightning.audio import read_audio
from hafm_lightning.cli import main
from hafm_lightning.songs.separation import known_models, mdx

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[1]
ADDED = {
    "prepare": """--clips.duration_s 2.0 --clips.hop_s 2.0 --clips.tail_s 0.4 --filters.vocal_activity_min null
        --filters.instrumental_activity_min null --filters.leakage_max null --filters.loudness_range_max_lu null
        --tokenizers.semantic.source hubert --tokenizers.semantic.layer 2 --tokenizers.acoustic.source encodec
        --tokenizers.training_clips 6 --engine.workers 1 --device cpu --separation.device cpu --report.examples 1""",
    "fit": " ".join(SMALL_STAGE),
    "generate": "--device cpu",
}


def commands() -> list[list[str]]:
    """The words after ``-m hafm_lightning`` of each line of the page's first block."""
    block = re.search(r"^```\n(.*?)^```$", (ROOT / "docs" / "your_own_songs.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block
    return [shlex.split(line)[3:] for line in block[1].splitlines() if "-m hafm_lightning" in line]


def write_songs(folder: Path) -> None:
    folder.mkdir()
    for number in range(4):
        vocal, band = vocal_and_band(6.0, number, 44_100)
        soundfile.write(folder / f"song {number}.mp3", np.stack([vocal + band, vocal + 0.8 * band], axis=1), 44_100)
    (folder / "._song 0.mp3").write_bytes(b"\0\5\26\7" * 20)  # macOS
    (folder / "broken.mp3").write_bytes((folder / "song 0.mp3").read_bytes()[:5000])


@pytest.mark.slow
def test_the_commands_of_the_page_lead_to_a_take(tmp_path, monkeypatch, capsys):
    for name, value in (("WANDB_MODE", "disabled"), ("HAFM_QUIET", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MUSDB18_HQ", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    write_songs(tmp_path / "songs")
    soundfile.write(tmp_path / "vocal.wav", vocal_and_band(3.0, 77, 44_100)[0], 44_100)
    save_hubert(tmp_path / "hubert")
    save_encodec(tmp_path / "encodec")
    (tmp_path / "models").mkdir()
    model = mask_model(tmp_path / "models" / "Kim_Vocal_2.onnx", (np.arange(DIM_F) < SPLIT_BIN).astype(np.float32))
    row = known_models.KnownModel(N_FFT, DIM_F, DIM_T, 1.0, "Vocals", "Kim_Vocal_2")
    monkeypatch.setattr(known_models, "table", lambda: {known_models.tail_md5(model): row})
    monkeypatch.setattr(known_models, "HOP", HOP)
    monkeypatch.setattr(mdx, "HOP", HOP)

    shown = commands()
    assert [words[0] for words in shown] == ["prepare", "fit", "fit", "fit", "generate"]
    for words in shown:
        assert main([*words, *ADDED[words[0]].split()]) == 0, words
        if words[0] == "prepare":
            output = capsys.readouterr()
            assert "separation: mdx-net on CPUExecutionProvider" in output.err
            assert "broken.mp3: " in output.out
            quarantine = (tmp_path / "data" / "my_songs" / "shards" / "quarantine.csv").read_text()
            assert quarantine.count("quarantined,") == 1
            assert "1 hidden files" in quarantine
    assert read_audio(tmp_path / "out" / "instrumental.wav").samples.any()
    assert read_audio(tmp_path / "out" / "mix.wav").duration_s == pytest.approx(3.0, abs=0.05)
