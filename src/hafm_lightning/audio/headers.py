"""What the headers of sound files claim, compared with the bytes that are there.

libsndfile reads a wav, aiff, au, W64 or Ogg file whose end is missing as a shorter file, without an error:
:func:`missing_bytes` finds those. It takes the length of an MP3 without a Xing or VBRI header from the bit rate of the
first frame, which is wrong for variable rates: :func:`mpeg_frames` counts. Names of codecs serve the messages.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

_UNKNOWN_SIZE = 0x7FFFF000
"""Programs that write to a pipe cannot know the size and declare this much or more: not a truncation."""
_LARGEST_OGG_PAGE = 65_307  # bytes
_WAV_CODECS = {
    0x0002: "Microsoft ADPCM",
    0x0011: "IMA ADPCM",
    0x0031: "GSM 6.10",
    0x0040: "G.721 ADPCM",
    0x0045: "G.726 ADPCM",
    0x0050: "MPEG layer 1 or 2",
    0x0055: "MP3",
    0x0064: "G.726 ADPCM",
    0x0065: "G.722 ADPCM",
    0x0069: "Xbox ADPCM",
    0x0070: "Dolby AC-3",
    0x0083: "G.729",
    0x00FF: "AAC",
    0x0160: "Windows Media Audio 1",
    0x0161: "Windows Media Audio 2",
    0x0162: "Windows Media Audio Professional",
    0x0270: "ATRAC3",
    0x2000: "Dolby AC-3",
    0x2001: "DTS",
    0xA109: "Speex",
    0xF1AC: "FLAC",
}


def missing_bytes(path: Path) -> int:
    """Bytes of sound that a file's header declares and the file does not hold; 0 for other formats.

    Formats: wav, RF64, BW64, aiff, aifc, 8SVX, W64, AU, CAF and Ogg (of which 1 stands for a missing end).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(40)
        for starts, check in _CHECKS.items():
            if head.startswith(starts):
                return max(0, check(file, size, head))
    return 0


def _chunks(file: IO[bytes], size: int, head: bytes) -> int:
    """RIFF and IFF: chunks of a name and 32 bits of size; RF64 has the size of the sound in the chunk ``ds64``."""
    form, kind = head[:4], head[8:12]
    if kind == b"WAVE" and form != b"FORM":
        order, sound = "<", b"data"
    elif form == b"FORM" and kind in (b"AIFF", b"AIFC", b"8SVX", b"16SV"):
        order, sound = ">", b"SSND" if kind.startswith(b"AIF") else b"BODY"
    else:
        return 0
    wide_size = None
    position = 12
    while position + 8 <= size:
        file.seek(position)
        name, declared = struct.unpack(f"{order}4sI", file.read(8))
        if name == b"ds64":
            wide_size = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        elif name == sound:
            if declared == 0xFFFFFFFF and wide_size is not None:
                declared = wide_size
            elif declared >= _UNKNOWN_SIZE:
                return 0
            return position + 8 + int(declared) - size
        position += 8 + int(declared) + int(declared) % 2
    return 0


def _wave64(file: IO[bytes], size: int, head: bytes) -> int:
    """W64: chunks of 16 bytes of name and 64 bits of size, which includes these 24 bytes, at multiples of 8."""
    position = 40
    while position + 24 <= size:
        file.seek(position)
        name, declared = struct.unpack("<16sQ", file.read(24))
        if name.startswith(b"data"):
            return 0 if declared >= 1 << 62 else position + int(declared) - size
        if declared < 24:
            return 0
        position += (int(declared) + 7) // 8 * 8
    return 0


def _next_au(file: IO[bytes], size: int, head: bytes) -> int:
    """AU: offset and size of the sound; all ones if the size is unknown."""
    order = ">" if head.startswith(b".snd") else "<"
    offset, declared = struct.unpack(f"{order}II", head[4:12].ljust(8, b"\0"))
    return 0 if declared >= _UNKNOWN_SIZE else offset + declared - size


def _core_audio(file: IO[bytes], size: int, head: bytes) -> int:
    """CAF: chunks of a name and 64 bits of size; -1 if the size of the sound is unknown."""
    position = 8
    while position + 12 <= size:
        file.seek(position)
        name, declared = struct.unpack(">4sq", file.read(12))
        if name == b"data" and declared == -1:
            return 0
        if declared < 0:
            return 0
        position += 12 + int(declared)
        if name == b"data":
            return position - size
    return position - size


def _ogg(file: IO[bytes], size: int, head: bytes) -> int:
    """Ogg: the last page is whole and has the mark of the stream's end."""
    file.seek(max(0, size - 2 * _LARGEST_OGG_PAGE))
    tail = file.read()
    start = tail.rfind(b"OggS")
    while start >= 0:
        page = tail[start : start + 27]
        segments = tail[start + 27 : start + 27 + page[26]] if len(page) == 27 else b""
        if len(page) == 27 and page[4] == 0:  # else the four letters happen to be in the sound
            left = start + 27 + page[26] + sum(segments) - len(tail)
            if len(segments) < page[26] or left > 0:
                return max(1, left)
            return 0 if page[5] & 4 else 1
        if len(page) < 27:
            return 1
        start = tail.rfind(b"OggS", 0, start)
    return 1


_CHECKS: dict[bytes, Callable[[IO[bytes], int, bytes], int]] = {
    b"RIFF": _chunks,
    b"RF64": _chunks,
    b"BW64": _chunks,
    b"FORM": _chunks,
    b"riff": _wave64,
    b".snd": _next_au,
    b"dns.": _next_au,
    b"caff": _core_audio,
    b"OggS": _ogg,
}


def wav_codec(path: Path) -> str:
    """The codec of a wav file with its number; empty for PCM and for other files."""
    with path.open("rb") as file:
        head = file.read(4096)
    place = head.find(b"fmt ")
    if head[8:12] != b"WAVE" or place < 0 or len(head) < place + 10:
        return ""
    number = struct.unpack("<H", head[place + 8 : place + 10])[0]
    if number in (1, 3, 0xFFFE):
        return ""
    return f"{_WAV_CODECS.get(number, 'an unknown codec')} (WAV format 0x{number:04X})"


class MpegHeader(NamedTuple):
    """The header of a frame of MPEG audio, layer 3."""

    size: int  # length of the frame in bytes
    samples: int  # of each channel in a frame
    first: bytes  # the four bytes of the header


_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_KBPS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def mpeg_header(four: bytes) -> MpegHeader | None:
    """The frame of layer 3 that begins with these bytes; None if none does."""
    if len(four) < 4 or four[0] != 0xFF or four[1] & 0xE0 != 0xE0 or four[1] >> 1 & 3 != 1:
        return None
    version, rate, kbps = four[1] >> 3 & 3, four[2] >> 2 & 3, four[2] >> 4
    if version == 1 or rate == 3 or kbps in (0, 15):
        return None
    samples = 1152 if version == 3 else 576
    size = samples // 8 * _KBPS[version == 3][kbps] * 1000 // _RATES[version][rate] + (four[2] >> 1 & 1)
    return MpegHeader(size, samples, four)


def mpeg_frames(path: Path) -> tuple[int, MpegHeader] | None:
    """Samples in the frames of an MP3 file whose header states no length, and its first frame; None for other files."""
    with path.open("rb") as file:
        if file.seek(0, 2) < 200:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = 0
            if data[:3] == b"ID3":
                a, b, c, d = data[6:10]
                place = 10 + (a << 21 | b << 14 | c << 7 | d)
            first = mpeg_header(data[place : place + 4])
            if first is None or mpeg_header(data[place + first.size : place + first.size + 4]) is None:
                return None
            frame = data[place : place + first.size]
            if any(mark in frame[:200] for mark in (b"Xing", b"Info", b"VBRI")):
                return None
            count = 0
            header: MpegHeader | None = first
            while header is not None and place + header.size <= len(data):
                count += 1
                place += header.size
                header = mpeg_header(data[place : place + 4])
            return count * first.samples, first
