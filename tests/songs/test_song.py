"""Audio files below a folder: links, names of any bytes, folders without permission."""

import os
from pathlib import Path

from tiny_corpora import touch

from hafm_lightning.songs import SongFolder
from hafm_lightning.songs.song import Quarantined, walk_audio


def test_links_are_followed_once_and_loops_end(tmp_path):
    touch(tmp_path / "corpus" / "a.wav")
    touch(tmp_path / "elsewhere" / "b.wav")
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "self").symlink_to(tmp_path / "corpus" / "self")
    (tmp_path / "corpus" / "circle.wav").symlink_to(tmp_path / "corpus" / "circle.wav")
    (tmp_path / "corpus" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    listing = SongFolder(str(tmp_path / "corpus")).listing()
    assert [song.id for song in listing.songs] == ["a.wav", "linked/b.wav"]
    assert {Path(entry.name).name for entry in listing.quarantined} == {"circle.wav", "gone.wav"}


def test_names_that_are_not_utf8_or_very_long_become_ids(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    touch(tmp_path / ("x" * 250 + ".wav"))
    touch(tmp_path / "new\nline.wav")
    ids = [song.id for song in SongFolder(str(tmp_path)).listing().songs]
    assert "caf\\xe9.wav" in ids
    assert "x" * 250 + ".wav" in ids
    assert "new\\u000aline.wav" in ids
    for name in ids:
        name.encode("utf-8")


def test_a_folder_without_permission_is_put_aside(tmp_path, monkeypatch):
    touch(tmp_path / "a.wav")
    closed = touch(tmp_path / "closed" / "b.wav").parent
    original = os.scandir

    def scandir(folder):
        if Path(folder) == closed:
            raise PermissionError(13, "Permission denied", str(closed))
        return original(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    quarantined: list[Quarantined] = []
    assert [path.name for path, _ in walk_audio(tmp_path, quarantined)] == ["a.wav"]
    assert quarantined == [Quarantined(str(closed), "folder cannot be opened: Permission denied")]
