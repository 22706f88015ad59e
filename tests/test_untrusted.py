"""Whatever lies in a file, it is read or refused in one line."""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hafm_lightning import limits, untrusted
from hafm_lightning.errors import RequestError
from tests.support.damaged_json import damaged_fields, damaged_texts


@dataclass(frozen=True)
class Song:
    """A part of :class:`Album`."""

    title: str
    seconds: float
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Album:
    """A schema for tests."""

    year: int
    songs: list[Song]
    notes: dict[str, Any]

    def __post_init__(self) -> None:
        if self.year == 0:
            raise ValueError("the year 0 does not exist")


ALBUM = {"year": 1999, "songs": [{"title": "a", "seconds": 3, "files": ["x.wav", "y.wav"]}], "notes": {"by": ["me"]}}


def read(text: bytes | str) -> Any:
    return untrusted.parse_json(text, "FILE", advice="ADVICE")


def album(content: Any) -> Album:
    return untrusted.checked(content, Album, "FILE", "ADVICE")


def refusal(text: bytes | str) -> str:
    with pytest.raises(RequestError) as refused:
        album(read(text))
    message = str(refused.value)
    assert message.startswith("FILE")
    assert "ADVICE" in message
    assert len(message) < 500
    assert message.isprintable(), "one line"
    return message


@pytest.mark.parametrize("damage", list(damaged_texts(ALBUM)), ids=lambda damage: damage.name)
def test_damaged_texts_are_refused_in_one_line(damage: Any) -> None:
    refusal(damage.text)


@pytest.mark.parametrize("damage", list(damaged_fields(ALBUM)), ids=lambda damage: damage.name)
def test_damaged_fields_are_refused_unless_they_fit(damage: Any) -> None:
    try:
        content = album(read(damage.text))
    except RequestError:
        refusal(damage.text)
    else:
        assert not damage.is_certain
        assert album(json.loads(json.dumps(asdict(content)))) == content


def test_messages_name_the_path_of_the_field_and_the_type() -> None:
    for seconds, wanted in (("3", "valid number"), (None, "valid number"), (True, "valid number")):
        wrong = {**ALBUM, "songs": [{"title": "a", "seconds": seconds}]}
        assert f"songs[0].seconds: must be a {wanted}" in refusal(json.dumps(wrong))
    assert "year: must be a valid integer, got 1999.0" in refusal(json.dumps({**ALBUM, "year": 1999.0}))
    assert "songs: is missing" in refusal('{"year": 1, "notes": {}}')
    assert "colour: is unknown" in refusal(json.dumps({**ALBUM, "colour": 1}))
    assert "the year 0 does not exist" in refusal(json.dumps({**ALBUM, "year": 0}))
    kept = untrusted.checked({**ALBUM, "colour": 1}, Album, "FILE", "ADVICE", unknown="ignore")
    assert kept == album(ALBUM)
    assert kept.songs[0].files == ("x.wav", "y.wav")


def test_names_of_files_that_are_not_utf8_survive() -> None:
    odd = os.fsdecode(b"gr\xfcn.wav")
    song = {"title": odd, "seconds": 1.0, "files": [odd]}
    content = album(read(json.dumps({**ALBUM, "songs": [song], "notes": {odd: [odd]}})))
    assert content.songs[0] == Song(odd, 1.0, (odd,))
    assert content.notes == {odd: [odd]}


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_valid_json_is_read_as_the_standard_reader_does(content: Any) -> None:
    if "Infinity" not in (text := json.dumps(content)):
        assert read(text) == read(b"\xef\xbb\xbf" + text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("limit", "fits", "refused"),
    [
        ("json_depth", "[" * 5 + "]" * 5, "[" * 6 + "]" * 6),
        ("json_digits", "12345", "[123456]"),
        ("json_items", "[1,2,3,4]", '{"a": [1,2], "b": [3,4]}'),
        ("json_bytes", '"aaa"', '"aaaa"'),
    ],
)
def test_each_limit_holds_exactly(limit: str, fits: str, refused: str) -> None:
    with limits.using(**{limit: 5}):
        read(fits)
        read('"[[["' if limit == "json_depth" else fits)
        with pytest.raises(RequestError, match="5"):
            read(refused)


def test_brackets_and_digits_in_strings_count_for_nothing() -> None:
    text = json.dumps(["[" * 1000, "9" * 1000, '\\"[[' * 500, "a,b" * 500])
    with limits.using(json_depth=1, json_digits=1, json_items=4):
        assert read(text) == json.loads(text)


@pytest.mark.parametrize("text", ['"' + '\\"' * 200_000, "[" * 400_000, '"a' * 200_000, "1" * 400_000])
def test_the_time_is_linear_for_hostile_texts(text: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(RequestError):
        read(text)
    assert time.perf_counter() - begin < 10


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    odd: list[str | Path] = [pipe, tmp_path, Path("/dev/zero"), Path("/dev/full"), "a\0b"]
    odd += [tmp_path / name for name in ("link", "nowhere", "circle", "socket", "x" * 300, "not/there")]
    for path in odd:
        with pytest.raises(RequestError, match="ADVICE") as refused:
            untrusted.read_json(path, what="WHAT", advice="ADVICE")
        assert str(refused.value).isprintable()
        with pytest.raises(RequestError, match=r"WHAT (cannot|is|has)"):
            untrusted.check_file(path, what="WHAT", advice="ADVICE")
    good = tmp_path / "good.json"
    good.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    (tmp_path / "fine").symlink_to(good)
    assert untrusted.read_json(tmp_path / "fine", what="WHAT", advice="ADVICE") == {"a": 1}
    assert untrusted.check_file(good, what="WHAT", advice="ADVICE") == 11
    with limits.using(json_bytes=10), pytest.raises(RequestError, match="11 bytes, at most 10"):
        untrusted.read_json(good, what="WHAT", advice="ADVICE")


ELSEWHERE = ["", ".", "..", "...", " ", ". .", "a/b", "../a", "/etc/passwd", "a\\b", "C:a", "c:\\a", "a\nb", "a\0b"]


@pytest.mark.parametrize("name", [*ELSEWHERE, "x" * 256, "ä" * 128, None, 3, ["a"]])
def test_names_that_lead_elsewhere_are_refused(name: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="THING") as refused:
        untrusted.child(tmp_path, name, "THING")
    assert str(refused.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["a.wav", "...wav", ".hidden", "x" * 255, "grün 5:30.wav", "a..b", "~", "-x", "\udce6"]
)
def test_other_names_stay_in_the_folder(name: str, tmp_path: Path) -> None:
    path = untrusted.child(tmp_path, name, "THING")
    assert path.parent == tmp_path
    assert path.name == name


def test_stems_are_safe_and_ordinary_ones_stay() -> None:
    assert untrusted.file_stem("song.wav") == "song"
    assert untrusted.file_stem("my.song.v2.flac") == "my.song.v2"
    assert untrusted.file_stem("noending") == "noending"
    assert untrusted.file_stem("...wav") == "__"
    assert untrusted.file_stem("..") == "_"
    assert untrusted.file_stem("") == "_"
    assert untrusted.file_stem("a/../b.wav") == "b"
    assert untrusted.file_stem("a\\..\\b.wav") == "b"
    assert untrusted.file_stem("C:b.wav") == "C_b"
    assert untrusted.file_stem("x\ny.wav") == "x_y"
    long = [untrusted.file_stem("ä" * 200 + end + ".wav") for end in ("1", "2")]
    assert long[0] != long[1]
    assert all(len(stem.encode()) < 240 for stem in long)


@settings(deadline=None)
@given(st.text(st.characters(codec=None)))
def test_every_stem_is_a_name(name: str) -> None:
    stem = untrusted.file_stem(name)
    path = untrusted.child("folder", stem, "THING")
    assert path.parent == Path("folder")
    assert stem not in (".", "..")
