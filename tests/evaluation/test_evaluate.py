"""The whole card from the command, on a tiny toy band."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_music import CLIP_S, TinyMusic, save_stage, tiny_stage

from hafm_lightning.accompanist import Accompanist
from hafm_lightning.audio import read_audio
from hafm_lightning.cli import main
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.card import load_card
from hafm_lightning.evaluation.distances.frechet import GaussianStatistics
from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding
from hafm_lightning.evaluation.segments import SegmentSettings, clip_file_stem, load_clip, select_segments
from hafm_lightning.evaluation.systems.band import Band
from hafm_lightning.evaluation.systems.retrieval import Retrieval
from hafm_lightning.processes.locks import LOCK_NAME, Lock
from hafm_lightning.shards import open_shards


@pytest.fixture(scope="module")
def config(music: TinyMusic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    settings = {
        "output": str(root / "card"),
        "root": str(music.songs),
        "tokenizers": str(music.tokenizers_folder),
        "shards": str(music.shards),
        **{
            name: str(save_stage(tiny_stage(name), music, root / f"{name}.ckpt"))
            for name in ("semantic", "coarse", "fine")
        },
        "protocols": [{"name": "short", "duration_s": CLIP_S, "clips": 6, "active": 0.3}],
        "sampling": {"guidance": 1.0},
    }
    (root / "evaluate.yaml").write_text(yaml.safe_dump(settings))
    return root / "evaluate.yaml"


def test_the_command_makes_the_card(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--config", str(config)]) == 0
    assert "card.html" in capsys.readouterr().out
    folder = config.parent / "card"
    text = (folder / "card.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the card"))
    card = load_card(folder / "card.json")
    assert card.absent == {}
    table, tokens = card.tables
    rows = {row.system: row for row in table.rows}
    trivial = ["vocal_alone", "silence", "noise"]
    models = ["retrieval", "two_stages", "three_stages"]
    assert list(rows) == ["ground_truth", "codec_8", "codec_4", "random", *trivial, *models]
    assert all((row.clips, row.failed) == (6, 0) for row in table.rows)

    def value(system: str, column: str) -> float:
        found = rows[system].values[column].value
        assert found is not None
        return found

    fads = [value(system, "fad_logmel") for system in rows]
    assert value("ground_truth", "fad_logmel") == min(fads) == pytest.approx(0, abs=1e-9)
    assert value("codec_8", "fad_logmel") < value("codec_4", "fad_logmel") < value("three_stages", "fad_logmel")
    for column in ("chroma_cosine", "onset_f1_reference", "chord_accuracy", "beat_f_measure"):
        assert value("ground_truth", column) > value("random", column)
        low, high = rows["ground_truth"].values[column].low, rows["ground_truth"].values[column].high
        assert low is not None
        assert high is not None
        assert low <= value("ground_truth", column) <= high
    assert value("three_stages", "real_time_factor") > 0
    assert rows["ground_truth"].values["real_time_factor"].note == "nothing is generated"
    assert "5 s" in rows["ground_truth"].values["apa_logmel"].note
    assert [row.system for row in tokens.rows] == ["semantic", "coarse", "fine"]
    assert all(5 < (row.values["loss"].value or 0) < 8 for row in tokens.rows)  # untrained: about log V
    assert [plot.title for plot in card.plots] == [
        *(
            f"{stage}: {probe}"
            for stage in ("semantic", "coarse")
            for probe in ("vocal moved in time", "vocal transposed", "noise on the vocal")
        ),
        "fine: conditions moved in time",
    ]
    assert "ground truth, codec 8 codebooks against random pairing, on the same clips: " in table.checks[1]
    assert "3 songs: the intervals are wide" in table.checks[-1]
    for column in ("chroma_cosine", "beat_f_measure", "onset_f1"):
        assert value("silence", column) == value("noise", column) == 0
    assert value("vocal_alone", "chroma_cosine") == pytest.approx(1)
    assert [value(system, "lost") for system in rows][4:7] == [0, 1, 1]
    assert len(table.players) == 3
    assert all("by chroma" in player.title for player in table.players)
    for player in table.players:
        assert all(read_audio(folder / file).duration_s == CLIP_S for file in player.sounds.values())


def test_a_second_run_computes_nothing_and_says_the_same(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = config.parent / "card" / "card.json"
    if not card.is_file():  # this test alone
        assert main(["evaluate", "--config", str(config)]) == 0
    before = card.read_text()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Band, "play", refuse)
    monkeypatch.setattr(Retrieval, "play", refuse)
    monkeypatch.setattr(LogMelEmbedding, "rows", refuse)
    monkeypatch.setattr("hafm_lightning.evaluation.protocol.clip_scores.SongTracks", refuse)
    monkeypatch.setattr("hafm_lightning.evaluation.evaluate.token_table", refuse)
    assert main(["evaluate", "--config", str(config)]) == 0
    assert card.read_text() == before


def test_a_folder_in_which_another_evaluation_works_is_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Lock(tmp_path / "card" / LOCK_NAME)
    assert other.acquire()
    arguments = ["evaluate", "--config", str(config), "--systems", "ground_truth", "--output", str(tmp_path / "card")]
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error: {tmp_path / 'card'} is in use by process {os.getpid()} on ")
    assert len(lines) <= 5
    other.release(erase=True)
    assert list((tmp_path / "card").iterdir()) == []
    assert main(arguments) == 0
    assert not [path for path in (tmp_path / "card").iterdir() if path.name.startswith(LOCK_NAME)]


def test_rows_and_columns_can_be_chosen(config: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(config), "--output", str(tmp_path / "few")]
    assert (
        main(["evaluate", *arguments, "--systems", "ground_truth,codec_4", "--metrics", "fad", "--set", "seed=3"]) == 0
    )
    (table,) = load_card(tmp_path / "few" / "card.json").tables
    assert [row.system for row in table.rows] == ["ground_truth", "codec_4"]
    assert [column.key for column in table.columns] == ["fad_logmel", "fad_infinity_logmel"]


def test_a_failed_clip_is_counted_and_stays_in_every_mean(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bad = Accompanist.accompany_batch, []

    def failing(band: Accompanist, vocals: Any, *, seeds: list[int], options: Any, vocal_noise: Any) -> Any:
        bad[:] = bad or [seeds[1]]  # the second clip of the first batch, also when it is tried alone
        if bad[0] in seeds:
            raise RequestError("the vocal cannot be heard")
        return real(band, vocals, seeds=seeds, options=options, vocal_noise=vocal_noise)

    monkeypatch.setattr(Accompanist, "accompany_batch", failing)
    arguments = ["--config", str(config), "--output", str(tmp_path), "--systems", "two_stages"]
    assert main(["evaluate", *arguments, "--metrics", "fad", "chroma", "--set", "batch_clips=4"]) == 0
    (table,) = load_card(tmp_path / "card.json").tables
    (row,) = table.rows
    assert (row.clips, row.failed, row.failures) == (6, 1, {"the vocal cannot be heard": 1})
    assert "6 rows a system" in table.about[-1]
    (kept,) = (tmp_path / "short" / "scores").glob("*.json")
    scores = [clip["chroma_cosine"] for clip in json.loads(kept.read_text())["clips"].values()]
    assert scores.count(0.0) == 1
    assert row.values["chroma_cosine"].value == pytest.approx(sum(scores) / 6)
    assert "1 failed: the vocal cannot be heard" in (tmp_path / "card.md").read_text()


def test_training_songs_or_a_statistics_file_may_be_the_reference(config: Path, tmp_path: Path) -> None:
    common = ["evaluate", "--config", str(config), "--systems", "ground_truth", "--metrics", "fad", "kd"]
    first = tmp_path / "train"
    assert main([*common, "--output", str(first), "--set", "reference=train", "reference_clips=5"]) == 0
    values = load_card(first / "card.json").tables[0].rows[0].values
    assert (values["fad_logmel"].value or 0) > 0
    statistics = first / "short" / "statistics" / "logmel.npz"
    assert GaussianStatistics.load(statistics).provenance["clips"] == 5
    second = tmp_path / "file"
    assert main([*common, "--output", str(second), "--set", f"statistics.logmel={statistics}"]) == 0
    again = load_card(second / "card.json").tables[0].rows[0].values
    assert again["fad_logmel"].value == values["fad_logmel"].value
    assert "without rows" in again["kd_logmel"].note


def test_statistics_of_another_embedding_are_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal widths are not enough: 128 numbers of another framing would give a distance that means nothing."""
    rows = np.random.default_rng(0).standard_normal((20, 128))
    other = LogMelEmbedding(framing="google")
    common = ["evaluate", "--config", str(config), "--systems", "ground_truth", "--metrics", "fad"]
    for name, provenance in (("other", other.provenance(clips=5)), ("nameless", {})):
        path = tmp_path / f"{name}.npz"
        GaussianStatistics.from_rows(rows, provenance).save(path)
        assert main([*common, "--output", str(tmp_path / "card"), "--set", f"statistics.logmel={path}"]) == 2
        assert "its rows were made by" in capsys.readouterr().err


def test_speed_from_runs_of_other_batches_says_so(config: Path, tmp_path: Path) -> None:
    common = ["evaluate", "--config", str(config), "--output", str(tmp_path), "--systems", "two_stages"]
    common += ["--metrics", "speed", "--set"]
    notes = []
    for batch_clips in (2, 2, 3):
        assert main([*common, f"batch_clips={batch_clips}"]) == 0
        (table,) = load_card(tmp_path / "card.json").tables
        assert f"{batch_clips} clips at once" in table.columns[0].note
        notes.append(table.rows[0].values["real_time_factor"].note)
    assert notes == ["", "", "from earlier runs with 2 clips at once"]


def test_separated_vocals_have_a_row_of_their_own(config: Path, music: TinyMusic, tmp_path: Path) -> None:
    """Where separation is perfect, the model plays the same and the gap is zero."""
    for song in (music.songs / "test").iterdir():
        shutil.copytree(song, tmp_path / "separated" / song.name)
    arguments = ["--config", str(config), "--output", str(tmp_path / "card"), "--metrics", "fad", "probes"]
    arguments += ["--systems", "three_stages", "separated", "--set", f"separated={tmp_path / 'separated'}"]
    assert main(["evaluate", *arguments]) == 0
    card = load_card(tmp_path / "card" / "card.json")
    clean, separated = card.tables[0].rows
    assert clean.values["fad_logmel"] == separated.values["fad_logmel"]
    gaps = [plot.baselines["separated vocals"] for plot in card.plots if plot.title.endswith("noise on the vocal")]
    assert len(gaps) == 2
    assert max(map(abs, gaps)) < 0.02  # soxr meets the segment's edge instead of its surroundings


def test_without_a_model_the_controls_alone_are_shown(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    for key in ("semantic", "coarse", "fine", "shards"):
        settings.pop(key)
    settings |= {"output": str(tmp_path / "controls"), "metrics": ["fad", "tokens"]}
    (tmp_path / "controls.yaml").write_text(yaml.safe_dump(settings))
    assert main(["evaluate", "--config", str(tmp_path / "controls.yaml")]) == 0
    card = load_card(tmp_path / "controls" / "card.json")
    assert [row.system for row in card.tables[0].rows] == [
        *("ground_truth", "codec_8", "codec_4", "random", "vocal_alone", "silence", "noise")
    ]
    assert card.absent["retrieval"] == "no `shards` to search"
    assert "three_stages" in card.absent


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--systems", "grund_truth"], "unknown grund_truth"),
        (["--metrics", "fud"], "unknown fud"),
        (["--set", "embeddings=[{name: vggosh}]"], "unknown embedding 'vggosh'"),
        (["--set", "protokols=1"], "did you mean 'protocols'"),
        (["--set", "model=x"], "either `model` or the checkpoints"),
        (["--set", "tokenizers=/absent"], "no tokenizer in"),
        (["--set", "root=/absent"], "does not exist"),
    ],
)
def test_wrong_requests_exit_with_2_and_say_why(
    config: Path, tmp_path: Path, changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--config", str(config), "--output", str(tmp_path), *changes]) == 2
    assert message in capsys.readouterr().err


def test_a_model_of_other_tokenizers_is_refused(config: Path, music: TinyMusic, tmp_path: Path) -> None:
    from hafm_lightning.tokenizers import save_tokenizers
    from hafm_lightning.tokenizers.offline import OfflineSemanticTokenizer

    sounds = [np.random.default_rng(i).standard_normal(32000).astype(np.float32) * 0.1 for i in range(8)]
    other = OfflineSemanticTokenizer.train(iter(sounds))
    save_tokenizers(other, music.tokenizers.acoustic, tmp_path / "tokenizers")
    arguments = ["--config", str(config), "--output", str(tmp_path), "--systems", "two_stages", "--metrics", "fad"]
    assert main(["evaluate", *arguments, "--set", f"tokenizers={tmp_path / 'tokenizers'}"]) == 2


def test_processes_and_controls_of_other_vocals(config: Path, music: TinyMusic, tmp_path: Path) -> None:
    """Two processes give the card of one; the controls hold the sounds of the next clip of another song."""
    cards = []
    for workers in (1, 2):
        output = tmp_path / str(workers)
        arguments = ["--config", str(config), "--output", str(output), "--metrics", "chroma", "tokens", "--systems"]
        arguments += ["other_vocal", "three_stages", "random", "--set", "pairing=next", "batch_clips=2"]
        arguments += ["differences=[random, other_vocal]", "token_split=test", f"workers={workers}"]
        assert main(["evaluate", *arguments]) == 0
        cards.append(load_card(output / "card.json"))
    one, two = cards
    assert [[row.values for row in table.rows] for table in one.tables] == [
        [row.values for row in table.rows] for table in two.tables
    ]
    assert two.facts["processes"] == 2
    table, differences, tokens = one.tables
    assert [row.system for row in table.rows] == ["other_vocal", "three_stages", "random"]

    selection = select_segments(SegmentSettings(str(music.songs), "test", CLIP_S, clips=6, active=0.3))
    songs = [segment.song.id for segment in selection.segments]
    folders = {folder.name.split("-")[0]: folder for folder in (tmp_path / "2" / "short" / "generations").iterdir()}

    def sound(system: str, index: int) -> np.ndarray:
        name = clip_file_stem(selection.segments[index].key)
        return read_audio(folders[system] / f"{name}.wav").samples

    for index, song in enumerate(songs):
        other = next(i % 6 for i in range(index + 1, index + 6) if songs[i % 6] != song)
        np.testing.assert_array_equal(sound("other_vocal", index), sound("three_stages", other))
        expected = load_clip(selection.segments[other], music.tokenizers).accompaniment
        np.testing.assert_array_equal(sound("random", index)[0], expected)

    chroma = {row.system: row.values["chroma_cosine"].value or 0.0 for row in table.rows}
    for row, control in zip(differences.rows, ("random", "other_vocal"), strict=True):
        assert row.values["chroma_cosine"].value == pytest.approx(chroma["three_stages"] - chroma[control])
    assert all(row.clips == len(open_shards(music.shards, "test")) for row in tokens.rows)
    semantic, coarse, fine = (row.values for row in tokens.rows)
    assert semantic["other_song_gap"] == semantic["other_vocal_gap"]  # the vocal is its only condition
    assert coarse["other_song_gap"] != coarse["other_vocal_gap"]
    assert fine["other_song_gap"].value is not None
    assert fine["other_vocal_gap"].note == "the stage has no vocal among its conditions"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["systems=[other_vocal]"], "other_vocal uses the takes of three_stages"),
        (["token_split=test", "shards=''"], "token_split needs `shards`"),
        (["pairing=best"], "pairing: unknown best"),
        (["systems=[ground_truth]", "differences=[random]"], "differences: unknown random"),
        (["workers=-1"], "workers at 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: list[str], words: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--config", str(config), "--set", *changes]) == 2
    assert words in capsys.readouterr().err


def test_columns_of_clips_need_no_embedding(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--metrics chroma` downloaded VGGish's 289 MB."""
    monkeypatch.setattr("hafm_lightning.evaluation.evaluate.load_embedding", lambda _: pytest.fail("loaded"))
    arguments = ["--config", str(config), "--output", str(tmp_path), "--systems", "ground_truth", "--metrics", "chroma"]
    assert main(["evaluate", *arguments]) == 0


def test_songs_too_short_for_one_protocol_leave_that_one_out(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = (
        {"name": name, "duration_s": length, "clips": 3, "active": 0.3} for name, length in (("a", 1), ("b", 60))
    )
    arguments = ["--config", str(config), "--systems", "ground_truth", "--metrics", "chroma"]
    both = f"protocols={json.dumps([long, short])}"
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "both"), both]) == 0
    card = load_card(tmp_path / "both" / "card.json")
    assert [table.name for table in card.tables] == ["a"]
    assert "no vocal-active segment of 60.0 s" in card.absent["protocol b"]
    capsys.readouterr()
    none = f"protocols={json.dumps([long])}"
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "none"), none]) == 2
    assert "no vocal-active segment" in capsys.readouterr().err


def test_texts_may_be_empty_on_the_command_line(config: Path, tmp_path: Path) -> None:
    """`--set shards=` and `--fine ""` were refused as null, so that a file's setting could not be taken back."""
    arguments = ["--config", str(config), "--output", str(tmp_path), "--metrics", "chroma", "--systems"]
    assert (
        main(["evaluate", *arguments, "ground_truth", "retrieval", "three_stages", "--set", "shards=", "--fine", ""])
        == 0
    )
    card = load_card(tmp_path / "card.json")
    assert card.absent == {"retrieval": "no `shards` to search", "three_stages": "no `fine` checkpoint"}


def test_an_unset_environment_variable_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MUSDB18_HQ", raising=False)
    assert main(["evaluate", "--config", str(repository / "experiments" / "evaluate.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: root: the environment variable MUSDB18_HQ is not set"
    assert "KeyError" not in " ".join(lines)
    assert len(lines) <= 3


def test_a_failed_clip_makes_no_system_faster(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure after a hundredth of a second counted as a very fast clip."""

    def failing(*_: Any, **__: Any) -> Any:
        raise RequestError("the vocal cannot be heard")

    monkeypatch.setattr(Accompanist, "accompany_batch", failing)
    arguments = ["--config", str(config), "--output", str(tmp_path), "--systems", "two_stages", "--metrics", "speed"]
    assert main(["evaluate", *arguments]) == 0
    (row,) = load_card(tmp_path / "card.json").tables[0].rows
    assert row.values["real_time_factor"].value is None
    assert row.values["real_time_factor"].note == "every clip failed"
    assert row.failed == 6
