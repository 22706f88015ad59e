"""Sound files whose headers lie, made from whole files by changing their bytes."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 44_100


def noise(seconds: float, channels: int = 2, seed: int = 0) -> np.ndarray:
    """float32 ``[L, channels]``, half of it silence, so that a variable bit rate varies."""
    samples = 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * RATE_HZ), channels))
    samples[: len(samples) // 2] *= 0.001
    return samples.astype(np.float32)


def flac_claiming(path: Path, samples: np.ndarray, frames: int) -> Path:
    """A FLAC file whose STREAMINFO states ``frames``, in 36 bits; 0 stands for unknown."""
    soundfile.write(path, samples, RATE_HZ)
    data = bytearray(path.read_bytes())
    packed = int.from_bytes(data[18:26], "big")
    data[18:26] = (packed >> 36 << 36 | frames).to_bytes(8, "big")
    path.write_bytes(data)
    return path


def mp3_of_variable_rate(path: Path, samples: np.ndarray) -> Path:
    """An MP3 of variable rate, with its Xing header."""
    with soundfile.SoundFile(
        path, "w", RATE_HZ, samples.shape[1], format="MP3", bitrate_mode="VARIABLE", compression_level=0.3
    ) as file:
        file.write(samples)
    return path


def without_xing(path: Path) -> Path:
    """Remove the frame with the Xing header: what an encoder writes to a pipe."""
    data = path.read_bytes()
    kbps = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[data[2] >> 4]
    path.write_bytes(data[144 * kbps * 1000 // RATE_HZ + (data[2] >> 1 & 1) :])
    return path


def with_xing_frames(path: Path, frames: int) -> Path:
    """State another number of MPEG frames in the Xing header."""
    data = bytearray(path.read_bytes())
    place = data.find(b"Xing")
    data[place + 8 : place + 12] = struct.pack(">I", frames)
    path.write_bytes(data)
    return path


def wav_claiming(path: Path, rate_hz: int, channels: int, size: int = 1300) -> Path:
    """A small wav of zeros that claims this rate and number of channels."""
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate_hz, rate_hz * channels * 2 & 0xFFFFFFFF, 2, 16)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", size) + bytes(size)
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)
    return path


def wav_of_codec(path: Path, number: int) -> Path:
    """A wav that names a codec by its number."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(8000))
    data = bytearray(path.read_bytes())
    data[20:22] = struct.pack("<H", number)
    path.write_bytes(data)
    return path
