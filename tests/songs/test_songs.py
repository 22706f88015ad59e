"""Several corpora together."""

from tiny_corpora import touch

from hafm_lightning.songs import SongFolder, list_songs


def test_two_corpora_with_the_same_names_keep_apart(tmp_path):
    for corpus in ("one", "two"):
        touch(tmp_path / corpus / "song.wav")
    listing = list_songs((SongFolder(str(tmp_path / "one")), SongFolder(str(tmp_path / "two"))))
    assert [song.id for song in listing.songs] == ["0:song.wav", "1:song.wav"]
