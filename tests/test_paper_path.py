"""The paper's path from end to end by its own configurations: mixes of songs become a model that is heard and judged.

Tiny networks of the real classes (an MDX-Net in ONNX, HuBERT, EnCodec) stand for the large ones; the files under
experiments/ are shrunk by options alone.
"""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path

import pytest
from shipped import EXPERIMENTS, SMALL_STAGE
from tiny_corpora import vocal_and_band, write_musdb
from tiny_separation import low_pass_model
from tiny_tokenizers import save_encodec, save_hubert

from hafm_lightning.audio import Audio, probe_audio, read_audio, write_audio
from hafm_lightning.cli import main
from hafm_lightning.cli.fit.runs import best_checkpoint
from hafm_lightning.listening.study import CRITERIA, Key, Study
from hafm_lightning.listening.vote import Vote
from hafm_lightning.listening.votes import VoteStore
from hafm_lightning.shards import ShardReader

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

STAGES = ("semantic", "coarse", "fine")
SMALL_CARD = """--protocols.0.duration_s 1.0 --protocols.0.clips 3 --protocols.0.active 0.1
--protocols.1.duration_s 1.0 --protocols.1.per_song 1 --protocols.1.active 0.1"""


def run(*arguments: object) -> None:
    """Run a command; arguments that begin with ``--`` may hold several words."""
    words = [part for word in map(str, arguments) for part in (shlex.split(word) if word[:2] == "--" else [word])]
    assert main(words) == 0, words


@pytest.mark.slow
def test_from_mixes_of_songs_to_votes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HAFM_QUIET", "1")
    monkeypatch.setenv("MUSDB18_HQ", str(write_musdb(tmp_path / "musdb", train=1, test=3, seconds=6.0)))
    monkeypatch.chdir(tmp_path)

    for folder in ("songs", "models"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        vocal, band = vocal_and_band(6.0, number, 22_050)
        write_audio(tmp_path / "songs" / f"{number}.flac", Audio((vocal + band)[None], 22_050))
    save_hubert(tmp_path / "hubert")
    save_encodec(tmp_path / "encodec")

    # Mixes -> separation -> tokens.
    run(
        "prepare",
        "--config",
        EXPERIMENTS / "prepare.yaml",
        "--root shards --corpora.0.path songs --corpora.0.metadata '\"\"' --corpora.0.min_duration_s 0",
        "--clips.duration_s 2.0 --clips.hop_s 2.0 --clips.tail_s 0.4 --duplicates.enabled false",
        f"--separation.model {low_pass_model(tmp_path / 'models')} --separation.device cpu",
        "--filters.vocal_activity_min null --filters.instrumental_activity_min null --filters.leakage_max null",
        "--filters.loudness_range_max_lu null --tokenizers.semantic.source hubert --tokenizers.semantic.layer 2",
        "--tokenizers.acoustic.source encodec --tokenizers.training_clips 6 --clips_per_shard 6",
        "--engine.workers 1 --device cpu --report.examples 1",
    )
    output = capsys.readouterr()
    assert "separation: mdx-net on CPUExecutionProvider" in output.err
    assert "s of audio a second" in output.out
    train = ShardReader(tmp_path / "shards" / "train")
    assert {use: identity["kind"] for use, identity in train.manifest.tokenizers.items()} == {
        "semantic": "hubert",
        "acoustic": "encodec",
    }

    # Three fits.
    monkeypatch.delenv("MUSDB18_HQ")  # no music while training: 2 steps
    for stage in STAGES:
        config = EXPERIMENTS / f"{stage}.yaml"
        run("fit", "--config", config, "--data.root shards", *SMALL_STAGE, f"--trainer.default_root_dir logs/{stage}")
        assert list((tmp_path / "logs" / stage).rglob("*.ckpt"))
    monkeypatch.setenv("MUSDB18_HQ", str(tmp_path / "musdb"))

    # A vocal -> its accompaniment.
    vocal, _ = vocal_and_band(3.0, 77, 44_100)
    write_audio(tmp_path / "vocal.wav", Audio(vocal[None], 44_100))
    models = [word for stage in STAGES for word in (f"--{stage}", best_checkpoint(Path("logs", stage)))]
    run("generate", *models, "--tokenizers shards/tokenizers", "--vocal vocal.wav --out take --device cpu")
    take = json.loads((tmp_path / "take" / "take.json").read_text())
    assert take["model"]["stages"].keys() == {"semantic", "coarse", "fine"}
    assert probe_audio(tmp_path / "take" / "mix.wav").duration_s == pytest.approx(3.0, abs=0.05)
    assert read_audio(tmp_path / "take" / "instrumental.wav").samples.any()

    # The card, and a listening study of the same clips.
    files = "--tokenizers shards/tokenizers --shards shards --output card --device cpu"
    systems = "ground_truth codec_8 random three_stages"
    metrics = "fad chroma tokens"
    run(
        "evaluate",
        "--config",
        EXPERIMENTS / "evaluate.yaml",
        files,
        SMALL_CARD,
        f"--systems {systems}",
        f"--metrics {metrics}",
        "--embeddings '[{name: logmel}]'",
        "--token_clips 2",
    )
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert "three_stages" in json.dumps(card)
    run(
        "listen",
        "build",
        "--config",
        EXPERIMENTS / "listening.yaml",
        files.replace("--shards shards ", ""),
        SMALL_CARD,
        "--study.folder study --study.same 1 --study.silence 1",
    )

    # Votes of listeners who like the ground truth -> the report.
    study = Study.load(tmp_path / "study")
    key = Key.load(tmp_path / "study" / "key.json", study)
    draw = random.Random(0)
    with VoteStore.for_study(tmp_path / "study" / "votes.sqlite", study) as store:
        for listener in ("ann", "bob"):
            for trial in study.trials:
                assignment = key.assignments[trial.id]
                sides = {"A": assignment.a, "B": assignment.b}
                liked = [side for side, system in sides.items() if system == "ground_truth"]
                side = liked[0] if len(liked) == 1 else "tie" if liked else draw.choice("AB")
                store.add(Vote(listener, trial.id, "AB", dict.fromkeys(CRITERIA, side), 4))  # type: ignore[arg-type]
    capsys.readouterr()
    run("listen", "report", "study")
    printed = capsys.readouterr().out
    assert "three_stages" in printed
    assert "gate" in printed
