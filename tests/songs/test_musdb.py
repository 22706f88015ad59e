"""MUSDB18: complete or partial folders, and ``.stem.mp4`` files decoded once."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_corpora import touch, vocal_and_band, write_musdb

from hafm_lightning.audio import read_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.songs import MusdbHQ, MusdbStems, list_songs, musdb
from hafm_lightning.songs.song import Quarantined


def test_musdb_is_complete_or_says_what_is_missing(tmp_path):
    root = write_musdb(tmp_path / "musdb", train=2, test=1, seconds=0.1)
    with pytest.raises(RequestError, match="holds 2 songs, MUSDB18-HQ has 100"):
        MusdbHQ(str(root)).listing()
    (root / "train" / "Artist 1 - Song train 1" / "bass.wav").unlink()
    listing = MusdbHQ(str(root), allow_partial=True).listing()
    assert [(song.id, song.split, song.artist) for song in listing.songs] == [
        ("Artist 0 - Song train 0", "train", "Artist 0"),
        ("Artist 0 - Song test 0", "test", "Artist 0"),
    ]
    assert [Path(path).stem for path in listing.songs[0].accompaniment] == ["drums", "bass", "other"]
    assert listing.quarantined == [Quarantined("train/Artist 1 - Song train 1", "incomplete: no bass.wav")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="no songs in train/ or test/"):
        MusdbHQ(str(tmp_path / "empty"), allow_partial=True).listing()


def test_a_full_musdb_has_100_and_50_songs(tmp_path):
    for split, count in (("train", 100), ("test", 50)):
        for number in range(count):
            for stem in ("vocals", "drums", "bass", "other", "mixture"):
                touch(tmp_path / split / f"{number}" / f"{stem}.wav")
    listing = list_songs((MusdbHQ(str(tmp_path)),))
    assert len(listing.songs) == 150
    assert len({song.id for song in listing.songs}) == 150  # the same folder names in train and test
    assert "train/0" in {song.id for song in listing.songs}


class FFmpegError(Exception):
    """Like ffmpeg-python's: no relative of any other error, and silent about the reason."""

    stderr = b"[mov] moov atom not found\nB.stem.mp4: Invalid data found\n"


class FakeTrack:
    """What ``musdb.MultiTrack`` does, without ffmpeg: five streams of constants."""

    rate = 8000.0

    def __init__(self, path, name, subset, stem_id):
        if "broken" in name:
            raise FFmpegError("ffprobe error (see stderr output for detail)")

    def load_audio(self, path, stem_id):
        return np.full((800, 2), stem_id / 10, np.float64)


def test_stem_mp4_are_decoded_once_into_the_layout_of_hq(tmp_path, monkeypatch):
    for split, name in (("train", "A - one"), ("train", "B - broken"), ("test", "C - two")):
        touch(tmp_path / "musdb18" / split / f"{name}.stem.mp4")
    monkeypatch.setattr(musdb, "_track_class", lambda: FakeTrack)
    corpus = MusdbStems(str(tmp_path / "musdb18"), decoded=str(tmp_path / "hq"), allow_partial=True)
    listing = corpus.listing()
    assert [(song.id, song.split) for song in listing.songs] == [("A - one", "train"), ("C - two", "test")]
    assert [(entry.name, entry.reason) for entry in listing.quarantined] == [
        ("train/B - broken", "cannot be decoded: B.stem.mp4: Invalid data found")
    ]
    vocals = read_audio(listing.songs[0].vocals)
    assert vocals.samples.shape == (2, 800)
    np.testing.assert_allclose(vocals.samples, 0.4, atol=1e-4)  # vocals are the fifth stream
    before = Path(listing.songs[0].vocals).stat().st_mtime_ns
    corpus.listing()
    assert Path(listing.songs[0].vocals).stat().st_mtime_ns == before
    assert not list(tmp_path.rglob(".writing-*"))


def test_without_ffmpeg_stem_mp4_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    touch(tmp_path / "train" / "A.stem.mp4")
    with pytest.raises(RequestError, match="needs ffmpeg and ffprobe"):
        MusdbStems(str(tmp_path), decoded=str(tmp_path / "hq"), allow_partial=True).listing()
    with pytest.raises(RequestError, match="holds no train"):
        MusdbStems(str(tmp_path / "train"), decoded=str(tmp_path / "hq")).listing()


def test_a_partial_copy_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    """All songs were decoded, 30 GB of them, before they were counted."""
    for name in ("A - one", "B - two"):
        touch(tmp_path / "musdb18" / "train" / f"{name}.stem.mp4")
    monkeypatch.setattr(musdb, "_track_class", lambda: pytest.fail("decoded"))
    with pytest.raises(RequestError, match="holds 2 songs, MUSDB18 has 100; nothing was decoded"):
        MusdbStems(str(tmp_path / "musdb18"), decoded=str(tmp_path / "hq")).listing()
    assert not (tmp_path / "hq").exists()


def write_stem_mp4(path, stems, rate_hz):
    """A ``.stem.mp4`` by the real ffmpeg: mixture, drums, bass, other, vocals as five AAC streams of one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs, maps = [], []
    for number, name in enumerate(musdb.STREAMS):
        wav = path.with_name(f"{name}.wav")
        soundfile.write(wav, stems[name].T, rate_hz, subtype="FLOAT")
        inputs += ["-i", wav]
        maps += ["-map", f"{number}:a"]
    options = [*inputs, *maps, "-c:a", "aac", "-b:a", "256k", "-f", "mp4", path]
    subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", *options], check=True)
    for name in musdb.STREAMS:
        path.with_name(f"{name}.wav").unlink()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed here")
def test_a_real_stem_mp4_is_decoded_by_musdb(tmp_path):
    pytest.importorskip("musdb", reason="musdb is not installed here (extra musdb)")
    vocal, band = (np.stack([part, 0.8 * part]) for part in vocal_and_band(2.0, 0, 44_100))
    stems = {"drums": 0.2 * band, "bass": 0.3 * band, "other": 0.5 * band, "vocals": vocal, "mixture": vocal + band}
    write_stem_mp4(tmp_path / "musdb18" / "train" / "A - one.stem.mp4", stems, 44_100)
    (tmp_path / "musdb18" / "train" / "B - broken.stem.mp4").write_bytes(b"no film")
    listing = MusdbStems(str(tmp_path / "musdb18"), decoded=str(tmp_path / "hq"), allow_partial=True).listing()
    (entry,) = listing.quarantined
    assert entry.name == "train/B - broken"
    assert "Invalid data found" in entry.reason
    (song,) = listing.songs
    files = dict(zip(("drums", "bass", "other"), song.accompaniment, strict=True)) | {"vocals": song.vocals}
    for name, file in files.items():
        audio = read_audio(file)
        assert audio.rate_hz == 44_100
        length = min(audio.samples.shape[1], stems[name].shape[1])
        assert abs(audio.samples.shape[1] - stems[name].shape[1]) < 2500  # AAC pads
        error = audio.samples[:, :length] - stems[name][:, :length]
        assert np.square(error).mean() < 0.05 * np.square(stems[name]).mean(), name


def test_stems_that_overshoot_full_scale_are_kept_as_they_are(tmp_path, monkeypatch):
    """As decoded AAC does: 16 bits would clip it, and a refused file would cost the song."""

    class LoudTrack(FakeTrack):
        def load_audio(self, path, stem_id):
            return np.full((800, 2), 0.9 + stem_id / 10, np.float64)

    touch(tmp_path / "musdb18" / "test" / "A - one.stem.mp4")
    monkeypatch.setattr(musdb, "_track_class", lambda: LoudTrack)
    listing = MusdbStems(str(tmp_path / "musdb18"), decoded=str(tmp_path / "hq"), allow_partial=True).listing()
    (song,) = listing.songs
    np.testing.assert_allclose(read_audio(song.vocals).samples, 1.3, atol=1e-6)
    assert soundfile.info(song.mixture).subtype == "PCM_16"  # 0.9 fits


def test_a_full_disk_while_decoding_is_no_fault_of_the_song(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise RequestError("vocals.wav: cannot be written (No space left on device); free space")

    touch(tmp_path / "musdb18" / "test" / "A - one.stem.mp4")
    monkeypatch.setattr(musdb, "_track_class", lambda: FakeTrack)
    monkeypatch.setattr(musdb, "write_audio", full)
    with pytest.raises(RequestError, match="No space left"):
        MusdbStems(str(tmp_path / "musdb18"), decoded=str(tmp_path / "hq"), allow_partial=True).listing()
    assert not list((tmp_path / "hq").rglob(".writing-*"))
