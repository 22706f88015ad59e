"""FAD of two folders of sound files, for a line of Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hafm_lightning.audio import Samples, read_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.distances.frechet import GaussianStatistics, frechet_distance
from hafm_lightning.evaluation.embeddings import EmbeddingSource, load_embedding
from hafm_lightning.songs.song import AUDIO_SUFFIXES


def fad(generated: str | Path, reference: str | Path, embedding: str | EmbeddingSource = "vggish") -> float:
    """Frechet audio distance of two folders, whose sub-folders count too; smaller is nearer.

    Every file is brought to one channel, to the embedding's rate and to -20 LUFS. FAD of few rows is too high: compare
    numbers of equally many clips alone, and see ``docs/evaluation.md``.

    Args:
        generated: Folder of sound files.
        reference: Folder of the sound files that they are compared with.
        embedding: ``vggish`` (published weights, 289 MB, downloaded once), ``clap``, ``encodec``, ``hubert``, or
            ``logmel``, which needs no weights; or a source with settings.

    Raises:
        RequestError: A folder holds no sound, a file is damaged, or the weights cannot be loaded.

    >>> import tempfile, numpy as np
    >>> from hafm_lightning.audio import Audio, write_audio
    >>> folder = Path(tempfile.mkdtemp())
    >>> for seed, place in enumerate(["a/1.wav", "a/2.wav", "b/1.wav", "b/2.wav"]):
    ...     noise = np.random.default_rng(seed).normal(scale=0.1, size=(1, 32000))
    ...     write_audio(folder / place, Audio(noise.astype(np.float32), 16000))
    >>> abs(round(fad(folder / "a", folder / "a", embedding="logmel"), 6))
    0.0
    >>> fad(folder / "a", folder / "b", embedding="logmel") > 0
    True
    """
    model = load_embedding(EmbeddingSource(embedding) if isinstance(embedding, str) else embedding)
    statistics = []
    for folder in (Path(generated).expanduser(), Path(reference).expanduser()):
        rows = [model.rows(sound_of(path, model.rate_hz)) for path in sound_files(folder)]
        statistics.append(GaussianStatistics.from_rows(np.concatenate(rows), model.provenance()))
    return frechet_distance(*statistics)


def sound_files(folder: Path) -> list[Path]:
    """The sound files of a folder and of those in it, in order, without hidden ones; RequestError if there is none."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file() and not is_hidden(path.relative_to(folder))
    )
    if not found:
        raise RequestError(f"{folder}: {'holds no sound files' if folder.is_dir() else 'no such folder'}")
    return found


def is_hidden(path: Path) -> bool:
    """Whether a part of a relative path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def sound_of(path: Path, rate_hz: int) -> Samples:
    """One channel ``[L]`` at ``rate_hz``."""
    samples: Samples = read_audio(path, mono=True, rate_hz=rate_hz).samples[0]
    return samples
