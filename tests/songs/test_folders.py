"""Folders of songs or stems: what is listed, in which order, and what is not used; FMA's metadata."""

from pathlib import Path

import pytest
from tiny_corpora import touch, write_stems, write_tracks_csv

from hafm_lightning.errors import RequestError
from hafm_lightning.songs import SongFolder, StemFolder
from hafm_lightning.songs.song import Quarantined, Song


def test_a_song_folder_lists_audio_files_in_order_of_their_names(tmp_path):
    for name in ("b.wav", "a/z.mp3", "a/y.FLAC", "cover.jpg", "a/notes.txt", ".hidden.wav", "c/d/e.ogg"):
        touch(tmp_path / name, len(name))
    listing = SongFolder(str(tmp_path)).listing()
    assert [song.id for song in listing.songs] == ["b.wav", "a/y.FLAC", "a/z.mp3", "c/d/e.ogg"]
    assert listing.songs[0] == Song("b.wav", "train", mixture=str(tmp_path / "b.wav"), bytes=5)
    assert listing.songs[0].needs_separation
    assert listing.quarantined == []


def test_stem_folders_sum_what_is_not_the_vocal(tmp_path):
    write_stems(tmp_path / "one" / "song", 0.1)
    for name in ("vocals.wav", "drums.flac", "bass.flac", "mixture.wav", "cover.png"):
        touch(tmp_path / "two" / name)
    touch(tmp_path / "no vocals" / "drums.wav")
    touch(tmp_path / "only vocals" / "vocals.wav")
    touch(tmp_path / "twice" / "vocals.wav")
    touch(tmp_path / "twice" / "vocals.mp3")
    listing = StemFolder(str(tmp_path), split="test").listing()
    songs = {song.id: song for song in listing.songs}
    assert set(songs) == {"one/song", "two"}
    assert songs["two"].accompaniment == (str(tmp_path / "two" / "bass.flac"), str(tmp_path / "two" / "drums.flac"))
    assert songs["two"].mixture == str(tmp_path / "two" / "mixture.wav")
    assert songs["two"].split == "test"
    assert {entry.name for entry in listing.quarantined} == {"no vocals", "only vocals", "twice"}


def test_missing_corpora_and_wrong_splits_are_refused(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        SongFolder(str(tmp_path / "nowhere")).listing()
    with pytest.raises(ValueError, match="choose one of train"):
        StemFolder(str(tmp_path), split="dev")


def test_fma_metadata_give_artist_genre_licence_and_choose_songs(tmp_path):
    def track(number, genre, licence, seconds, **more):
        return {"id": number, "track.genre_top": genre, "track.license": licence, "track.duration": seconds} | more

    tracks = [
        track("2", "Rock", "Attribution", "168", **{"artist.id": "7"}),
        track("3", "", "CC0", "30", **{"artist.id": "7", "track.genres": "[85, 21]"}),
        track("5", "Rock", "Attribution-NoDerivatives", "200", **{"artist.id": "8"}),
        track("10", "Pop", "Attribution", "999", **{"artist.name": "Nine, Ltd", "set.split": "test"}),
        track("11", "Rock", "Attribution", ""),  # of unknown length
    ]
    metadata = write_tracks_csv(tmp_path / "fma_metadata", tracks)
    for number in (2, 3, 5, 10, 11, 99):
        touch(tmp_path / "fma_full" / f"{number // 1000:03d}" / f"{number:06d}.mp3")
    corpus = SongFolder(str(tmp_path / "fma_full"), metadata=str(metadata), use_fma_split=True)
    listing = corpus.listing()
    assert [(song.id, song.artist, song.genre, song.split) for song in listing.songs] == [
        ("000002", "7", "Rock", "train"),
        ("000003", "7", "Rock", "train"),  # Garage, whose top-level genre is Rock
        ("000005", "8", "Rock", "train"),
        ("000010", "Nine, Ltd", "Pop", "test"),
        ("000011", "", "Rock", "train"),
    ]
    assert listing.left_out == [Quarantined("000/000099.mp3", "not in the metadata")]
    chosen = SongFolder(
        str(tmp_path / "fma_full"),
        metadata=str(metadata),
        genres=("Rock",),
        licences=("attribution", "cc0"),
        without_licences=("NoDerivatives",),
        min_duration_s=60,
    ).listing()
    assert [song.id for song in chosen.songs] == ["000002", "000011"]
    assert {entry.name: entry.reason for entry in chosen.left_out} == {
        "000003": "shorter than 60 s",
        "000005": "licence 'Attribution-NoDerivatives' is excluded",
        "000010": "genre 'Pop' is not wanted",
        "000/000099.mp3": "not in the metadata",
    }


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "track_id,x\n,y\n,\nfive,6\n"])
def test_metadata_that_are_not_fmas_are_refused(tmp_path, content):
    touch(tmp_path / "songs" / "000002.mp3")
    (tmp_path / "meta").mkdir()
    if content is not None:
        (tmp_path / "meta" / "tracks.csv").write_text(content)
    with pytest.raises(RequestError, match=r"tracks\.csv"):
        SongFolder(str(tmp_path / "songs"), metadata=str(tmp_path / "meta")).listing()


@pytest.mark.parametrize(
    "content", [b"", b"genre_id,title\n1,Rock\n", b"genre_id,title,top_level\n1,\xff,1\n", b"genre_id\n"]
)
def test_genres_that_are_not_fmas_are_refused_or_unknown(tmp_path, content):
    touch(tmp_path / "songs" / "000002.mp3")
    track = {"id": "2", "track.genre_top": "", "track.license": "", "track.duration": "30", "track.genres": "[1]"}
    metadata = write_tracks_csv(tmp_path / "meta", [track])
    (metadata / "genres.csv").write_bytes(content)
    corpus = SongFolder(str(tmp_path / "songs"), metadata=str(metadata))
    if content in (b"", b"genre_id\n"):  # no genres
        assert [song.genre for song in corpus.listing().songs] == [""]
    else:
        with pytest.raises(RequestError, match=r"genres\.csv"):
            corpus.listing()


def test_fields_of_any_length_are_read(tmp_path):
    """Biographies in FMA's tracks.csv exceed the 131,072 characters that the csv module allows."""
    import csv

    before = csv.field_size_limit()
    touch(tmp_path / "songs" / "000002.mp3")
    write_tracks_csv(tmp_path / "meta", [{"id": "2", "artist.id": "7", "album.comments": "x" * 300_000}])
    corpus = SongFolder(str(tmp_path / "songs"), metadata=str(tmp_path / "meta"))
    assert [song.artist for song in corpus.listing().songs] == ["7"]
    assert csv.field_size_limit() == before


def test_nested_genres_are_refused_in_a_line(tmp_path):
    touch(tmp_path / "songs" / "000002.mp3")
    write_tracks_csv(tmp_path / "meta", [{"id": "2", "track.genres": "[" * 5000}])
    with pytest.raises(RequestError, match="not FMA's"):
        SongFolder(str(tmp_path / "songs"), metadata=str(tmp_path / "meta")).listing()


def test_hidden_files_are_counted_and_outputs_of_this_program_are_no_songs(tmp_path):
    for name in ("a.wav", "._a.wav", ".b.flac", "sub/c.mp3", "sub/._c.mp3"):
        touch(tmp_path / name)
    marks = {"take": "take.json", "shards": "work/settings.json", "card": "card.json", "study": "study.json"}
    for folder, mark in marks.items():
        touch(tmp_path / "out" / folder / mark)
        touch(tmp_path / "out" / folder / "sounds" / "x.wav")
    listing = SongFolder(str(tmp_path)).listing()
    assert [song.id for song in listing.songs] == ["a.wav", "sub/c.mp3"]
    assert listing.quarantined == []
    reasons = {Path(entry.name).name: entry.reason for entry in listing.left_out}
    assert set(reasons) == {*marks, tmp_path.name}
    assert all(mark in reasons[folder] for folder, mark in marks.items())
    assert reasons[tmp_path.name].startswith("3 hidden files")


def test_songs_beside_their_own_shards_are_listed_again_the_same(tmp_path):
    touch(tmp_path / "a.wav")
    before = SongFolder(str(tmp_path)).listing().songs
    for name in ("work/settings.json", "examples/00-vocal.wav", "train/shard-00000.safetensors"):
        touch(tmp_path / name)
    assert SongFolder(str(tmp_path)).listing().songs == before
