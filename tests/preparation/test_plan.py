"""The plan: splits that share no song and no artist, and shards that depend on the songs alone."""

import json
import random
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.plan import Plan, SplitSettings, divide_songs, make_plan
from hafm_lightning.preparation.quality.fingerprint import DuplicateSettings
from hafm_lightning.preparation.survey import SongFacts
from hafm_lightning.songs.clips import ClipSettings
from hafm_lightning.songs.song import Song
from hafm_lightning.untrusted import checked

NO_DUPLICATES = DuplicateSettings(enabled=False)


def songs_of_artists(counts: list[int], split="train") -> list[Song]:
    return [
        Song(f"{artist}-{number}", split, artist=f"artist {artist}" if artist % 3 else "")
        for artist, count in enumerate(counts)
        for number in range(count)
    ]


@given(st.lists(st.integers(1, 5), min_size=2, max_size=30), st.floats(0.01, 0.9), st.integers(0, 5), st.randoms())
@settings(max_examples=50)
def test_validation_is_disjoint_in_songs_and_artists_and_does_not_depend_on_order(counts, share, seed, shuffler):
    songs = songs_of_artists(counts)
    chosen = SplitSettings(validation_share=share, seed=seed)
    divided = divide_songs(songs, chosen)
    train, validation = ({s.id for s in divided if s.split == name} for name in ("train", "validation"))
    assert train | validation == {song.id for song in songs}
    assert not train & validation
    artists = {name: {s.artist for s in divided if s.split == name and s.artist} for name in ("train", "validation")}
    assert not artists["train"] & artists["validation"]
    assert validation
    assert train
    shuffled = list(songs)
    shuffler.shuffle(shuffled)
    assert {s.id for s in divide_songs(shuffled, chosen) if s.split == "validation"} == validation


def test_the_share_is_met_and_the_seed_draws_other_songs():
    songs = [Song(f"song {i}", "train") for i in range(200)]
    drawn = [
        {s.id for s in divide_songs(songs, SplitSettings(0.1, seed=seed)) if s.split == "validation"} for seed in (0, 1)
    ]
    assert [len(one) for one in drawn] == [20, 20]
    assert len(drawn[0] & drawn[1]) < 10
    assert not [s for s in divide_songs(songs, SplitSettings(0.0)) if s.split == "validation"]


def test_named_songs_become_validation_and_test_songs_stay():
    songs = [Song("a", "train"), Song("b", "train"), Song("t", "test")]
    divided = divide_songs(songs, SplitSettings(validation_songs=("b",)))
    assert [song.split for song in divided] == ["train", "validation", "test"]
    with pytest.raises(RequestError, match="names 'c', which is not among"):
        divide_songs(songs, SplitSettings(validation_songs=("c",)))


def test_a_split_that_the_corpus_gives_is_not_drawn_from():
    given = [Song(f"given {i}", "train", split_given=True) for i in range(30)] + [Song("v", "validation")]
    assert [song.split for song in divide_songs(given, SplitSettings(0.5))] == ["train"] * 30 + ["validation"]
    others = [Song(f"other {i}", "train") for i in range(10)]
    divided = divide_songs(given + others, SplitSettings(0.5))
    assert {song.id for song in divided if song.split == "validation"} <= {"v"} | {song.id for song in others}
    assert sum(song.split == "validation" for song in divided) == 1 + 5


def plan_of(durations: dict[str, float], clips_per_shard=4, **kwargs) -> Plan:
    songs = kwargs.pop("songs", [Song(name, "train") for name in durations])
    facts = kwargs.pop("facts", [SongFacts(name, seconds) for name, seconds in durations.items()])
    return make_plan(
        songs,
        facts,
        clips=ClipSettings(),
        split=SplitSettings(kwargs.pop("validation_share", 0.0)),
        duplicates=kwargs.pop("duplicates", NO_DUPLICATES),
        clips_per_shard=clips_per_shard,
    )


def test_shards_are_filled_with_whole_songs():
    plan = plan_of({"a": 20, "b": 30, "c": 10, "d": 5, "e": 100, "f": 10})
    assert [[song.id for song in unit.songs] for unit in plan.units] == [["a", "b"], ["c", "e"], ["f"]]
    assert [unit.file for unit in plan.units] == [f"shard-{i:05d}.safetensors" for i in range(3)]
    assert [(entry.name, entry.reason.split(" (")[0]) for entry in plan.left_out] == [("d", "shorter than a clip")]
    assert plan.duration_s == 170


def test_a_plan_survives_json_and_does_not_depend_on_the_order_of_songs():
    names = [f"song {i}" for i in range(40)]
    one = plan_of(dict.fromkeys(names, 30.0), validation_share=0.2)
    random.Random(0).shuffle(names)
    two = plan_of(dict.fromkeys(names, 30.0), validation_share=0.2)
    assert one == two
    assert checked(json.loads(json.dumps(asdict(one))), Plan, "here", "") == one
    assert {unit.split for unit in one.units} == {"train", "validation"}


def test_of_two_equal_recordings_the_one_in_test_is_kept(monkeypatch):
    from tiny_corpora import RATE_HZ, vocal_and_band

    from hafm_lightning.preparation.quality.fingerprint import fingerprint, sketch_to_text

    sketch = sketch_to_text(fingerprint([vocal_and_band(20.0, 0)[0]], RATE_HZ))
    songs = [Song("a", "train"), Song("b", "validation"), Song("z", "test")]
    facts = [SongFacts(song.id, 20.0, sketch) for song in songs]
    plan = plan_of({}, songs=songs, facts=facts, duplicates=DuplicateSettings())
    assert [song.id for song in plan.songs("test")] == ["z"]
    assert [(entry.name, entry.reason) for entry in plan.left_out] == [("a", "duplicate of z"), ("b", "duplicate of z")]


def test_songs_that_cannot_be_read_are_named():
    facts = [SongFacts("a", 20.0), SongFacts("b", problem="b.wav: is empty (0 bytes)")]
    plan = plan_of({}, songs=[Song("a", "train"), Song("b", "train")], facts=facts)
    assert [(entry.name, entry.reason) for entry in plan.quarantined] == [("b", "b.wav: is empty (0 bytes)")]
    assert [song.id for song in plan.songs("train")] == ["a"]
