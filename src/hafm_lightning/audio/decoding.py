"""What libsndfile cannot do, for :mod:`hafm_lightning.audio`.

It does not read m4a, aac, wma or the sound of a video: :func:`ffmpeg_decoded` does.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hafm_lightning import limits
from hafm_lightning.errors import RequestError

_FS_SLACK_BYTES = 1 << 20  # ffmpeg stops a packet before or after the size that it was given
_RUN_UP_S = 1.0  # decoded before a window and dropped: many frames of any codec


def left_to_ffmpeg(path: Path) -> bool:
    """True if libsndfile cannot read the file and ffmpeg is installed."""
    import soundfile

    if shutil.which("ffmpeg") is None or not path.is_file() or path.stat().st_size == 0:
        return False
    try:
        with readable_source(path) as source, soundfile.SoundFile(source):
            return False
    except soundfile.LibsndfileError:
        return True
    except OSError:  # no permission: reading the file reports it
        return False


def native(path: Path) -> str | bytes:
    """The path for soundfile: bytes, since a file name need not be UTF-8; text on Windows."""
    return str(path) if sys.platform == "win32" else os.fsencode(path)


@contextmanager
def readable_source(path: Path) -> Iterator[str | bytes | IO[bytes]]:
    """What soundfile opens for reading: the path, or the open file where the name would mislead libsndfile.

    libsndfile takes an MP3 for Sound Designer II if a macOS resource fork of its name lies beside it.
    """
    forks = (path.parent / f"._{path.name}", path.parent / ".AppleDouble" / path.name)
    if not any(map(os.path.exists, forks)):  # which is False for names that are too long
        yield native(path)
        return
    with path.open("rb") as file:
        yield file


@contextmanager
def ffmpeg_decoded(path: Path, *, start_s: float = 0.0, duration_s: float | None = None) -> Iterator[Path]:
    """Decode a window of the first sound track into a temporary float wav, which the end of the block deletes.

    ffmpeg must be installed. RequestError if it cannot decode the file; OSError (``ENOSPC``) if the temporary folder is
    full.
    """
    with tempfile.TemporaryDirectory(prefix="hafm-ffmpeg-") as folder:
        decoded = Path(folder) / "decoded.wav"
        command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-xerror", "-protocol_whitelist", "file"]
        # The first frame after a seek lacks its overlap with the one before, even after a seek to 0: seek to an
        # earlier time and drop what comes before the window.
        seek_s = max(0.0, start_s - _RUN_UP_S)
        if seek_s:
            command += ["-ss", repr(float(seek_s))]
        command += ["-i", f"file:{path.absolute()}", "-map", "0:a:0", "-c:a", "pcm_f32le", "-rf64", "auto"]
        if start_s:
            command += ["-ss", repr(float(start_s - seek_s))]
        most = limits.current()
        longest_s = most.audio_seconds + 1 if duration_s is None else duration_s
        command += ["-t", repr(float(longest_s)), "-fs", str(most.audio_bytes), "-f", "wav", str(decoded)]
        run = subprocess.run(command, capture_output=True, check=False)
        if run.returncode != 0 or not decoded.is_file():
            lines = run.stderr.decode("utf-8", "replace").strip().splitlines()
            if any("No space left on device" in line for line in lines):
                text = f"ffmpeg filled {Path(folder).parent} decoding {path.name}; set TMPDIR to a larger disk"
                raise OSError(errno.ENOSPC, text)
            reason = lines[-1] if lines else f"exit code {run.returncode}"
            raise RequestError(f"{path}: not readable as audio (ffmpeg: {reason}); convert it to WAV or FLAC")
        if decoded.stat().st_size >= most.audio_bytes - _FS_SLACK_BYTES:  # ffmpeg stops there without an error
            raise RequestError(
                f"{path}: decodes to more than {most.audio_bytes} bytes; "
                f'cut it, or set {limits.VARIABLE}="audio_bytes={2 * most.audio_bytes}"'
            )
        yield decoded
