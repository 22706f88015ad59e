"""The metadata of FMA: artists, genres, licences, splits, and files that are not FMA's."""

import pytest
from tiny_corpora import touch, write_tracks_csv

from hafm_lightning.errors import RequestError
from hafm_lightning.songs import SongFolder
from hafm_lightning.songs.song import Quarantined


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
