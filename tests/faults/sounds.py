"""Odd sounds: what ``generate`` makes of every strange file that people have, and of its name."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from bench import Bench
from oracle import broken_rules
from tiny_band import sing
from tries import Try
from works import WORKS, Work

RATE_HZ = 24_000
Write = Callable[[Path], None]


@dataclass(frozen=True)
class Sound:
    """A file that claims to be a vocal. ``seconds``: of the take; None where it must be refused; 0 for either."""

    name: str
    suffix: str
    write: Write
    seconds: float | None


def voice(seconds: float = 0.8) -> np.ndarray:
    """Samples ``[L]``."""
    return np.asarray(sing(seconds, RATE_HZ).samples[0])


def _wav(samples: Any, rate_hz: int = RATE_HZ, subtype: str = "PCM_16", format_name: str = "WAV") -> Write:
    return lambda path: soundfile.write(path, samples, rate_hz, subtype=subtype, format=format_name)


def _half(write: Write) -> Write:
    def apply(path: Path) -> None:
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return apply


def _header(rate_hz: int, channels: int, bits: int, claimed_bytes: int, kind: int = 1) -> Write:
    """A WAV header over a second of noise, whatever it claims."""
    data = np.random.default_rng(0).integers(0, 255, 4000, np.uint8).tobytes()
    step = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate_hz, (rate_hz * step) & 0xFFFFFFFF, step & 0xFFFF, bits)
    content = (
        b"RIFF" + struct.pack("<I", (36 + claimed_bytes) & 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<I", 16) + form
    )
    content += b"data" + struct.pack("<I", claimed_bytes & 0xFFFFFFFF) + data
    return lambda path: path.write_bytes(content)


def _flac_of_unknown_length(path: Path) -> None:
    soundfile.write(path, voice(), RATE_HZ, format="FLAC")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(bytes(content))


def _flac_of_absurd_length(path: Path) -> None:
    soundfile.write(path, voice(), RATE_HZ, format="FLAC")
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    path.write_bytes(bytes(content))


def _changed(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return change(voice())


def _at(samples: np.ndarray, value: float) -> np.ndarray:
    samples = samples.copy()
    samples[5000] = value
    return samples


STEREO = np.stack([voice(), voice()[::-1]], axis=1)
SOUNDS: tuple[Sound, ...] = (
    Sound("8 bit", ".wav", _wav(voice(), subtype="PCM_U8"), 0.8),
    Sound("24 bit", ".wav", _wav(voice(), subtype="PCM_24"), 0.8),
    Sound("64-bit float", ".wav", _wav(voice(), subtype="DOUBLE"), 0.8),
    Sound("A-law", ".wav", _wav(voice(), subtype="ALAW"), 0.8),
    Sound("IMA ADPCM", ".wav", _wav(voice(), subtype="IMA_ADPCM"), 0),
    Sound("GSM 6.10", ".wav", _wav(voice()[::3], 8000, "GSM610"), 0),
    Sound("RF64", ".wav", _wav(voice(), format_name="RF64"), 0.8),
    Sound("W64", ".w64", _wav(voice(), format_name="W64"), 0.8),
    Sound("AU", ".au", _wav(voice(), format_name="AU"), 0.8),
    Sound("CAF", ".caf", _wav(voice(), format_name="CAF"), 0.8),
    Sound("AIFF", ".aiff", _wav(voice(), format_name="AIFF"), 0.8),
    Sound("FLAC", ".flac", _wav(voice(), format_name="FLAC"), 0.8),
    Sound("stereo", ".wav", _wav(STEREO), 0.8),
    Sound("8 channels", ".wav", _wav(np.tile(voice()[:, None], (1, 8))), 0),
    Sound("64 channels", ".wav", _wav(np.tile(voice()[:, None], (1, 64))), 0),
    Sound("8 kHz", ".wav", _wav(voice()[::3], 8000), 0.8),
    Sound("192 kHz", ".wav", _wav(np.repeat(voice(), 8), 192_000), 0),
    Sound("1 MHz", ".wav", _wav(np.repeat(voice(0.1), 8), 1_000_000), 0),
    Sound("1 Hz", ".wav", _wav(voice()[:300], 1), None),
    Sound("no frames", ".wav", _wav(voice()[:0]), None),
    Sound("one sample", ".wav", _wav(voice()[:1]), 0),
    Sound("100 samples", ".wav", _wav(voice()[:100]), 0),
    Sound("silence", ".wav", _wav(voice() * 0), 0),
    Sound("a constant", ".wav", _wav(np.full(20_000, 0.4)), 0),
    Sound("one NaN", ".wav", _wav(_at(voice(), np.nan), subtype="FLOAT"), None),
    Sound("one infinity", ".wav", _wav(_at(voice(), np.inf), subtype="FLOAT"), None),
    Sound("one sample of 1e30", ".wav", _wav(_at(voice(), 1e30), subtype="FLOAT"), 0),
    Sound("at -75 dBFS", ".wav", _wav(voice() * 2e-4, subtype="FLOAT"), 0.8),
    Sound("at +12 dBFS", ".wav", _wav(voice() * 20, subtype="FLOAT"), 0.8),
    Sound("left is minus right", ".wav", _wav(np.stack([voice(), -voice()], axis=1)), 0.8),
    Sound("half a WAV", ".wav", _half(_wav(voice())), None),
    Sound("half a W64", ".w64", _half(_wav(voice(), format_name="W64")), None),
    Sound("half an AU", ".au", _half(_wav(voice(), format_name="AU")), None),
    Sound("half a FLAC", ".flac", _half(_wav(voice(), format_name="FLAC")), None),
    Sound("half an AIFF", ".aiff", _half(_wav(voice(), format_name="AIFF")), None),
    Sound("half an Ogg", ".ogg", _half(_wav(voice(3), format_name="OGG", subtype="VORBIS")), None),
    Sound("half an Opus", ".opus", _half(_wav(voice(3), format_name="OGG", subtype="OPUS")), None),
    Sound("half an MP3", ".mp3", _half(_wav(voice(3), format_name="MP3", subtype="MPEG_LAYER_III")), 0),
    Sound("a FLAC of unknown length", ".flac", _flac_of_unknown_length, 0.8),
    Sound("a FLAC of absurd length", ".flac", _flac_of_absurd_length, 0),
    Sound("a header of 1 Hz", ".wav", _header(1, 1, 16, 4000), None),
    Sound("a header of 0 Hz", ".wav", _header(0, 1, 16, 4000), None),
    Sound("a header of 4 GHz", ".wav", _header(0xFFFFFFFF, 1, 16, 4000), None),
    Sound("a header of no channels", ".wav", _header(24_000, 0, 16, 4000), None),
    Sound("a header of 65,535 channels", ".wav", _header(24_000, 65_535, 16, 4000), None),
    Sound("a header of 4 GB", ".wav", _header(24_000, 1, 16, 0xFFFFFFF0), 0),
    Sound("a header of an unknown codec", ".wav", _header(24_000, 1, 16, 4000, kind=0x1234), None),
    Sound("an empty file", ".wav", lambda path: path.touch(), None),
    Sound("a text", ".wav", lambda path: path.write_text("lyrics\n" * 100) and None, None),
    Sound("zeros", ".wav", lambda path: path.write_bytes(bytes(4096)) and None, None),
    Sound("a picture", ".wav", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500)) and None, None),
    Sound("a folder", ".wav", lambda path: path.mkdir(), None),
    Sound("a pipe", ".wav", lambda path: os.mkfifo(path), None),
    Sound("/dev/zero", ".wav", lambda path: path.symlink_to("/dev/zero"), None),
    Sound("/dev/full", ".wav", lambda path: path.symlink_to("/dev/full"), None),
)

NAMES = (
    "...wav", "....wav", "..wav", "a b.wav", "a\nb.wav", "-leading.wav", "--out.wav", "ü ♪.wav", "n" * 250 + ".wav",
    "$(touch canary).wav", "a;touch canary.wav", "%s%n.wav", "a\\b.wav", ".wav", "a.wav.wav", "CON.wav",
)  # fmt: skip
"""Names of a vocal in a folder of vocals; a second one lies beside it."""


def _generate(vocal: str) -> Work:
    command = ("generate", f"--vocal={vocal}", "--model", "model", "--out", "out", "--seed", "3")
    return Work("generate", command, ("model",), ("out",), WORKS["generate"].result)


def do_sound(sound: Sound, bench: Bench) -> list[str]:
    """Give ``generate`` a strange vocal: a take of the right length, or a refusal in a few lines."""
    work = _generate(f"odd{sound.suffix}")
    bench.lay_out(work.reads)
    sound.write(bench.inside / f"odd{sound.suffix}")
    ending = bench.run(work)
    found = broken_rules(ending) + bench.outside()
    if found:
        return found
    if sound.seconds is None:
        return [] if ending.code else ["accepted"]
    if ending.code == 0:
        seconds = soundfile.info(bench.inside / "out" / "mix.wav").duration
        if sound.seconds and abs(seconds - sound.seconds) > 0.05:
            return [f"the mix has {seconds:.3f} s, the vocal {sound.seconds} s"]
        peak = float(np.abs(soundfile.read(bench.inside / "out" / "mix.wav")[0]).max(initial=0.0))
        return [] if np.isfinite(peak) and peak <= 1 else [f"the mix has a peak of {peak}"]
    return [f"refused with {ending.code}"] if sound.seconds else []


def do_name(name: str, bench: Bench) -> list[str]:
    """A folder with a vocal of a strange name: its take lies in a folder of its own inside ``--out``."""
    work = _generate("songs")
    bench.lay_out(work.reads)
    (bench.inside / "songs").mkdir()
    for file in (name, "other.wav"):
        with (bench.inside / "songs" / file).open("wb") as stream:
            soundfile.write(stream, voice(0.5), RATE_HZ, format="WAV")
    ending = bench.run(work)
    found = broken_rules(ending) + bench.outside()
    beside = sorted(path.name for path in bench.inside.iterdir())
    if beside != ["model", "out", "songs"]:
        found.append(f"beside --out: {beside}")
    hidden = name.startswith(".")  # is skipped, so that the take of the only other vocal is --out itself
    if (bench.inside / "out" / "mix.wav").exists() != hidden:
        found.append("no take is in --out" if hidden else "a take lies in --out itself")
    if not found and ending.code != 0:
        found.append(f"exit code {ending.code}")
    return found


def sound_tries() -> Iterator[Try]:
    """Every sound and every name."""
    for sound in SOUNDS:
        yield Try("odd sounds", sound.name, (), partial(do_sound, sound))
    for name in NAMES:
        yield Try("path escapes: names of vocals", repr(name), (), partial(do_name, name))
