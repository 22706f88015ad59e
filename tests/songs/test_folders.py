"""Folders of songs or stems: what is listed, in which order, and what is not used."""

import pytest
from tiny_corpora import touch, write_stems

from hafm_lightning.errors import RequestError
from hafm_lightning.songs import SongFolder, StemFolder
from hafm_lightning.songs.song import Song


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
