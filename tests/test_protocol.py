"""Segments, systems, caches, intervals and probes on a tiny toy band; the whole card from the command."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from tiny_music import CLIP_S, TinyMusic, tiny_stage

from hafm_lightning.audio import Audio, read_audio, write_audio
from hafm_lightning.cli import main
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card import load_card
from hafm_lightning.evaluation.embeddings import LogMelEmbedding
from hafm_lightning.evaluation.frechet import GaussianStatistics, frechet_distance
from hafm_lightning.evaluation.generations import Generations
from hafm_lightning.evaluation.jackknife import jackknife_interval
from hafm_lightning.evaluation.probes import Probes, score_clips, vocal_streams
from hafm_lightning.evaluation.retrieval import Retrieval
from hafm_lightning.evaluation.segments import (
    MusicClip,
    SegmentSettings,
    load_clip,
    read_segment,
    select_segments,
    tokenize_clips,
    vocal_activity,
)
from hafm_lightning.evaluation.separated import SeparatedVocals
from hafm_lightning.evaluation.set_scores import Reference, clip_rows, fad_of, kd_of
from hafm_lightning.evaluation.systems import (
    Band,
    GroundTruth,
    Outcome,
    RandomPairing,
    System,
    ThroughCodec,
    fitted,
)
from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.preparation.clips import MARGIN_S, clip_sound
from hafm_lightning.preparation.separation import SeparationSettings
from hafm_lightning.preparation.shards import open_shards
from hafm_lightning.preparation.stems import cut_windows, read_blocks
from hafm_lightning.stages import Stage
from hafm_lightning.tokens import TokenBatch

SETTINGS: dict[str, Any] = {"duration_s": CLIP_S, "clips": 6, "active": 0.3}


def selection(music: TinyMusic, **changes: Any) -> Any:
    return select_segments(SegmentSettings(str(music.songs), **{**SETTINGS, **changes}))


# --- segments ---------------------------------------------------------------------------------------------------


def test_segments_are_drawn_in_rounds_over_songs_and_do_not_overlap(music: TinyMusic) -> None:
    chosen = selection(music)
    songs = [segment.song.id for segment in chosen.segments]
    assert len(set(songs[:3])) == 3
    assert len(set(songs[3:])) == 3
    everything = chosen.segments + chosen.spare
    for first in everything:
        for second in everything:
            if first is not second and first.song.id == second.song.id:
                assert abs(first.start_s - second.start_s) >= CLIP_S
    assert [s.clip_id for s in selection(music).segments] == [s.clip_id for s in chosen.segments]
    assert [s.clip_id for s in selection(music, seed=1).segments] != [s.clip_id for s in chosen.segments]


def test_segments_are_vocal_active(music: TinyMusic) -> None:
    for segment in selection(music, clips=0, per_song=9, active=0.8).segments:
        vocal = read_audio(segment.song.vocals, mono=True)
        active = vocal_activity(vocal.samples[0], vocal.rate_hz, -30.0)
        first = round(segment.start_s * 10)
        assert active[first : first + round(CLIP_S * 10)].mean() >= 0.8


def test_activity_follows_the_loudness_of_the_voice() -> None:
    level = np.repeat([1.0, 0.5, 0.02, 0.0, 1.0], 1600).astype(np.float32)
    vocal = level * np.sin(np.arange(8000) * 0.3).astype(np.float32)
    assert vocal_activity(vocal, 16000, -30.0).tolist() == [True, True, False, False, True]
    assert not vocal_activity(np.zeros(8000, np.float32), 16000, -30.0).any()


def test_too_few_segments_and_unreadable_songs_are_told(music: TinyMusic, tmp_path: Path) -> None:
    assert selection(music, clips=500).missing == 500 - len(selection(music, clips=500).segments)
    shutil.copytree(music.songs, tmp_path / "songs")
    (tmp_path / "songs" / "test" / "toyband_test_0001" / "vocals.wav").write_bytes(b"not audio")
    chosen = select_segments(SegmentSettings(str(tmp_path / "songs"), **SETTINGS))
    assert chosen.songs == 2
    assert len(chosen.problems) == 1
    assert "toyband_test_0001" in chosen.problems[0]
    with pytest.raises(RequestError, match="no vocal-active segment"):
        selection(music, duration_s=60.0)


def test_a_segment_sounds_as_preparation_cuts_it(music: TinyMusic) -> None:
    for segment in selection(music, clips=3).segments:
        window = next(cut_windows(read_blocks(segment.song, None), 44100, iter([segment.start_s]), CLIP_S, MARGIN_S))
        expected, found = clip_sound(window, 16000, 24000, True), read_segment(segment, 16000, 24000)
        np.testing.assert_allclose(found.vocal, expected.vocal, atol=1e-6)
        np.testing.assert_allclose(found.instrumental_acoustic, expected.instrumental_acoustic, atol=1e-6)
        assert found.vocal.shape == (16000,)


# --- systems ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(music: TinyMusic) -> list[MusicClip]:
    return [load_clip(segment, music.tokenizers) for segment in selection(music).segments]


def test_codec_ceiling_is_the_decoded_truth(music: TinyMusic, clips: list[MusicClip]) -> None:
    for codebooks in (8, 4):
        codes = music.tokenizers.acoustic.encode(torch.from_numpy(clips[0].accompaniment)[None])
        expected = music.tokenizers.acoustic.decode(codes[:, :codebooks])[0].numpy()
        (outcome,) = ThroughCodec(music.tokenizers, codebooks).play(clips[:1])
        np.testing.assert_array_equal(outcome.samples, expected)


def test_random_pairing_takes_unevaluated_music_of_other_songs(music: TinyMusic) -> None:
    chosen = selection(music, clips=3)
    pairing = RandomPairing(chosen.segments, chosen.spare, lambda s: load_clip(s, music.tokenizers), seed=0)
    evaluated = {segment.clip_id for segment in chosen.segments}
    for segment in chosen.segments:
        partner = pairing.partners[segment.clip_id]
        assert partner.song.id != segment.song.id
        assert partner.clip_id not in evaluated
    without_spare = RandomPairing(chosen.segments, [], lambda s: load_clip(s, music.tokenizers), seed=0)
    assert all(without_spare.partners[s.clip_id].song.id != s.song.id for s in chosen.segments)


def test_retrieval_finds_a_training_vocal_again(music: TinyMusic) -> None:
    retrieval = Retrieval(open_shards(music.shards, "train"), music.tokenizers)
    shard_clips = retrieval.reader.clip_ids
    for index in (0, 3, 5):
        tokens = retrieval.reader[index]["vocal_semantic"][0].astype(np.int64)
        found = retrieval.nearest(tokens)
        assert found is not None
        assert (shard_clips[found[0]], found[1]) == (shard_clips[index], 0.0)
        # 0.6 s of it, from 0.4 s on
        assert retrieval.nearest(tokens[20:]) == (index, 0.4)
    assert retrieval.nearest(np.zeros(51, np.int64)) is None


class FakeBand:
    """An Accompanist that fails, is silent, or hums, by the clip's loudest sample."""

    def __init__(self, bad: set[str], reason: str) -> None:
        self.bad, self.reason = bad, reason
        self.networks = [SimpleNamespace(role="semantic", sha256="0")]
        self.tokenizers = SimpleNamespace(identities=dict)
        self.precision = "fp32"
        self.calls: list[int] = []

    def accompany_batch(self, vocals: Sequence[Audio], *, seeds: Sequence[int], options: SamplingOptions) -> list[Any]:
        self.calls.append(len(vocals))
        takes = []
        for vocal in vocals:
            samples = np.sin(np.arange(24000, dtype=np.float32) * 0.1)
            if f"{np.abs(vocal.samples).max():.6f}" in self.bad:
                if self.reason == "raises":
                    raise RequestError("the vocal: is silent; there is nothing to accompany")
                samples = samples * (np.float32("nan") if self.reason == "nan" else 0)
            takes.append(SimpleNamespace(instrumental=Audio(samples[None], 24000), sample_rate_hz=24000))
        return takes


@pytest.mark.parametrize(
    ("reason", "message"), [("raises", "is silent"), ("nan", "NaN"), ("silent", "sound is silent")]
)
def test_a_failed_clip_is_silence_with_a_reason_and_spares_the_others(
    clips: list[MusicClip], reason: str, message: str
) -> None:
    vocal = read_audio(clips[1].segment.song.vocals, start_s=clips[1].segment.start_s, duration_s=CLIP_S)
    band = FakeBand({f"{np.abs(vocal.samples).max():.6f}"}, reason)
    outcomes = Band(band, SamplingOptions(), 0, "three_stages").play(clips[:3])  # type: ignore[arg-type]
    assert [bool(outcome.failure) for outcome in outcomes] == [False, True, False]
    assert message in outcomes[1].failure
    assert not outcomes[1].samples.any()
    assert all(len(outcome.samples) == 24000 for outcome in outcomes)
    assert all(outcome.seconds is not None for outcome in outcomes)


def test_sounds_are_fitted_to_the_clip(clips: list[MusicClip]) -> None:
    short, long = np.ones(100, np.float32), np.ones(30000, np.float32)
    assert fitted(clips[0], short).samples.sum() == 100
    assert len(fitted(clips[0], long).samples) == len(clips[0].accompaniment)


class Counting(GroundTruth):
    def __init__(self, identity: str = "a") -> None:
        super().__init__()
        self.identity = identity
        self.played = 0

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        self.played += len(clips)
        return [replace(outcome, seconds=2.0) for outcome in super().play(clips)]


def test_generations_are_kept_and_a_stopped_run_continues(music: TinyMusic, tmp_path: Path) -> None:
    segments = selection(music).segments

    def play(system: System, upto: int) -> Generations:
        made = Generations(tmp_path, system, 24000)
        made.make(segments[:upto], lambda s: load_clip(s, music.tokenizers), 2, lambda _: None)
        return made

    system = Counting()
    play(system, 3)
    made = play(system, 6)
    assert system.played == 6
    clip = load_clip(segments[4], music.tokenizers)
    np.testing.assert_array_equal(made.outcome(segments[4]).samples, clip.accompaniment)
    assert made.outcome(segments[4]).seconds == 2.0
    (made.folder / made.entries[segments[4].key].file).unlink()
    play(system, 6)
    assert system.played == 7
    longer = replace(segments[0], duration_s=CLIP_S + 0.04)
    assert Generations(tmp_path, system, 24000).missing([longer]) == [longer]
    other = Counting("b")
    play(other, 6)
    assert other.played == 6
    (made.folder / "index.json").write_text("{}")
    with pytest.raises(RequestError, match="damaged"):
        Generations(tmp_path, system, 24000)


# --- numbers ----------------------------------------------------------------------------------------------------


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).standard_normal(15)
    found = jackknife_interval(lambda kept: float(values[kept].mean()), list(range(15)))
    half = 1.959964 * values.std(ddof=1) / math.sqrt(15)
    assert found.value == pytest.approx(values.mean())
    assert found.high is not None
    assert found.high - found.value == pytest.approx(half, rel=1e-6)
    assert jackknife_interval(lambda kept: 1.0, ["a", "a", "b"]).low is None


def test_set_scores_are_those_of_all_rows(clips: list[MusicClip]) -> None:
    embedding = LogMelEmbedding()
    rows = [clip_rows(embedding, clip.accompaniment, 24000) for clip in clips]
    vocals = np.concatenate([clip_rows(embedding, clip.vocal, 24000) for clip in clips])
    reference = Reference("vocals", GaussianStatistics.from_rows(vocals), vocals)
    songs = [clip.segment.song.id for clip in clips]
    expected = frechet_distance(GaussianStatistics.from_rows(np.concatenate(rows)), reference.statistics)
    assert fad_of(rows, songs, reference).value == pytest.approx(expected, rel=1e-6)
    kd = kd_of(rows, songs, reference, 0)
    assert kd is not None
    assert kd.value > 0


def test_fad_ranks_clean_codec_and_noise(music: TinyMusic) -> None:
    segments = selection(music, clips=0, per_song=9).segments
    everything = [load_clip(segment, music.tokenizers) for segment in segments]
    embedding, songs = LogMelEmbedding(), [segment.song.id for segment in segments]
    true = [clip_rows(embedding, clip.accompaniment, 24000) for clip in everything]
    reference = Reference("true", GaussianStatistics.from_rows(np.concatenate(true)), np.concatenate(true))
    noise = np.random.default_rng(0).standard_normal((len(everything), 24000)).astype(np.float32) * 0.1
    variants = {
        "clean": true,
        "codec 8": [clip_rows(embedding, o.samples, 24000) for o in ThroughCodec(music.tokenizers, 8).play(everything)],
        "codec 4": [clip_rows(embedding, o.samples, 24000) for o in ThroughCodec(music.tokenizers, 4).play(everything)],
        "noise": [clip_rows(embedding, samples, 24000) for samples in noise],
    }
    distances = [fad_of(rows, songs, reference).value for rows in variants.values()]
    assert distances == sorted(distances)
    assert len(set(distances)) == 4


# --- probes -----------------------------------------------------------------------------------------------------


class Parrot(torch.nn.Module):
    """Expects the accompaniment to be the vocal's token at the same frame, and hears nothing else."""

    layout = SequenceLayout.of(["vocal_semantic"], "instrumental_semantic", "parallel", "aligned")
    device = torch.device("cpu")

    def forward(self, streams: dict[str, torch.Tensor]) -> torch.Tensor:
        vocal = streams["vocal_semantic"]
        heard = torch.nn.functional.one_hot(vocal.clamp(min=0), 500).float() * 8.0
        return torch.where((vocal < 0)[..., None], torch.zeros(()), heard)


def test_probes_show_how_far_a_stage_listens(music: TinyMusic, clips: list[MusicClip]) -> None:
    batch = tokenize_clips(clips, music.tokenizers)
    batch = TokenBatch({**batch.streams, "instrumental_semantic": batch["vocal_semantic"]}, batch.clip_ids)
    model: Any = Parrot()
    passes: list[int] = []
    probes = Probes({"semantic": model}, clips, batch, music.tokenizers, on_pass=lambda: passes.append(1))
    time, semitones, noise = probes.plots()
    assert len(passes) == Probes.passes({"semantic": model}, separated=False)
    losses = dict(zip(time.curves[0].x, time.curves[0].y, strict=True))
    assert losses[0.0] == 0
    assert min(losses[0.12], losses[-0.12]) > 0
    assert losses[0.48] > losses[0.12]
    assert time.baselines["semantic: another song"] > losses[0.12]
    assert dict(zip(semitones.curves[0].x, semitones.curves[0].y, strict=True))[4.0] > 0
    assert noise.curves[0].y[0] == 0
    assert noise.curves[0].y[-1] > noise.curves[0].y[1]
    assert score_clips(model, batch).accuracy.mean() == 1.0
    assert [stream.name for stream in vocal_streams(model)] == ["vocal_semantic"]


def test_separated_vocals_equal_to_the_clean_ones_leave_no_gap(
    music: TinyMusic, clips: list[MusicClip], tmp_path: Path
) -> None:
    for clip in clips:
        write_audio(tmp_path / clip.segment.song.id / "vocals.wav", read_audio(clip.segment.song.vocals))
    vocals = SeparatedVocals(str(tmp_path), SeparationSettings())
    clean = read_audio(clips[0].segment.song.vocals, start_s=clips[0].segment.start_s, duration_s=CLIP_S)
    np.testing.assert_array_equal(vocals.read(clips[0].segment).samples, clean.samples)
    model: Any = Parrot()
    batch = tokenize_clips(clips, music.tokenizers)
    same = [clip.sound.vocal for clip in clips]
    noise = Probes({"semantic": model}, clips, batch, music.tokenizers, separated=same).over_noise()
    assert noise.baselines == {"semantic: separated vocals": 0.0}
    with pytest.raises(RequestError, match="no folder"):
        SeparatedVocals(str(tmp_path / "absent"), SeparationSettings())


class Everything:
    """A separator that takes the whole mixture for the vocal."""

    identity = {"kind": "everything"}
    rate_hz = 44100
    margin_s = 1.0

    def __init__(self) -> None:
        self.firsts: list[int] = []

    def separate(self, mixture: np.ndarray, first: int = 0) -> Any:
        self.firsts.append(first)
        return SimpleNamespace(vocals=mixture)


def test_separation_is_cut_where_the_segment_lies(clips: list[MusicClip], monkeypatch: pytest.MonkeyPatch) -> None:
    separator = Everything()
    monkeypatch.setattr("hafm_lightning.evaluation.separated.load_separator", lambda _: separator)
    vocals = SeparatedVocals("", SeparationSettings(model="x.onnx"))
    for clip in clips:
        segment = clip.segment
        expected = read_audio(segment.song.mixture, start_s=segment.start_s, duration_s=CLIP_S)
        np.testing.assert_array_equal(vocals.read(segment).samples, expected.samples)
    assert all(first % 44100 == 0 for first in separator.firsts)


# --- the command ------------------------------------------------------------------------------------------------


def saved(stage: Stage, music: TinyMusic, path: Path) -> str:
    stage.tokenizers, stage.duration_s = music.tokenizers.identities(), CLIP_S
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=0, barebones=True)
    trainer.strategy.connect(stage)
    trainer.save_checkpoint(path)
    return str(path)


@pytest.fixture(scope="module")
def config(music: TinyMusic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    settings = {
        "output": str(root / "card"),
        "root": str(music.songs),
        "tokenizers": str(music.tokenizers_folder),
        "shards": str(music.shards),
        **{name: saved(tiny_stage(name), music, root / f"{name}.ckpt") for name in ("semantic", "coarse", "fine")},
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
    assert list(rows) == ["ground_truth", "codec_8", "codec_4", "random", "retrieval", "two_stages", "three_stages"]
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
    assert [plot.title for plot in card.plots] == ["Vocal moved in time", "Vocal transposed", "Noise on the vocal"]
    assert len(table.players) == 3
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
    monkeypatch.setattr("hafm_lightning.evaluation.clip_scores.coherence_scores", refuse)
    monkeypatch.setattr("hafm_lightning.evaluation.evaluate.token_table", refuse)
    assert main(["evaluate", "--config", str(config)]) == 0
    assert card.read_text() == before


def test_rows_and_columns_can_be_chosen(config: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(config), "--output", str(tmp_path / "few")]
    assert (
        main(["evaluate", *arguments, "--systems", "ground_truth,codec_4", "--metrics", "fad", "--set", "seed=3"]) == 0
    )
    (table,) = load_card(tmp_path / "few" / "card.json").tables
    assert [row.system for row in table.rows] == ["ground_truth", "codec_4"]
    assert [column.key for column in table.columns] == ["fad_logmel", "fad_infinity_logmel"]


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
    gaps = card.plots[2].baselines
    assert set(gaps) == {"semantic: separated vocals", "coarse: separated vocals"}
    assert max(map(abs, gaps.values())) < 0.02  # soxr meets the segment's edge instead of its surroundings


def test_without_a_model_the_controls_alone_are_shown(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    for key in ("semantic", "coarse", "fine", "shards"):
        settings.pop(key)
    settings |= {"output": str(tmp_path / "controls"), "metrics": ["fad", "tokens"]}
    (tmp_path / "controls.yaml").write_text(yaml.safe_dump(settings))
    assert main(["evaluate", "--config", str(tmp_path / "controls.yaml")]) == 0
    card = load_card(tmp_path / "controls" / "card.json")
    assert [row.system for row in card.tables[0].rows] == ["ground_truth", "codec_8", "codec_4", "random"]
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
