"""The tokenizers of a corpus: trained on its training songs, loaded, or copied from another corpus.

Training clips have the same filter and the same noise as the clips that are tokenized later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.quality.filters import broken_rules, measure
from hafm_lightning.preparation.shard_work import (
    SoundSettings,
    TokenizerLoader,
    separator_for,
    single_threaded,
    song_window,
)
from hafm_lightning.processes.pool import Pool, in_order
from hafm_lightning.progress import progress
from hafm_lightning.shards import clip_id
from hafm_lightning.songs.clips import ClipSound, clip_sound, clip_starts, with_noise
from hafm_lightning.songs.song import Song, reason_of
from hafm_lightning.tokenizers import AcousticTokenizer, SemanticTokenizer, save_tokenizers
from hafm_lightning.tokenizers.base import ACOUSTIC_SAMPLE_RATE_HZ, SEMANTIC_SAMPLE_RATE_HZ
from hafm_lightning.tokenizers.encodec import EncodecTokenizer
from hafm_lightning.tokenizers.hubert import HubertFeatures, HubertTokenizer
from hafm_lightning.tokenizers.kmeans import import_centroids
from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer, OfflineSemanticTokenizer

Waves = Iterator[npt.NDArray[np.float32]]

_CLIPS_PER_TASK = 4


@dataclass(frozen=True)
class Offline:
    """Tokens that need no download, trained on the corpus in seconds. Not the paper's tokens."""


@dataclass(frozen=True)
class Hubert:
    """The paper's semantic tokens: k-means over the features of one HuBERT layer.

    Attributes:
        source: Hub id or local folder of the model.
        revision: Commit or tag of a Hub id; empty takes the pinned one.
        layer: Its output is the feature; counted from 1.
        centroids: File of trained centroids; empty trains them on the corpus.
        trust_pickle: Allow a joblib or pickle file of centroids, which runs code from the file when it is loaded.
    """

    source: str = "facebook/hubert-base-ls960"
    revision: str = ""
    layer: int = 9
    centroids: str = ""
    trust_pickle: bool = False


@dataclass(frozen=True)
class Encodec:
    """The paper's acoustic tokens: EnCodec's 24 kHz model at 6 kb/s.

    Attributes:
        source: Hub id or local folder of the model.
        revision: Commit or tag of a Hub id; empty takes the pinned one.
    """

    source: str = "facebook/encodec_24khz"
    revision: str = ""


@dataclass(frozen=True)
class TokenizerSettings:
    """Which tokenizers, and how they are made.

    Attributes:
        folder: Copy the tokenizers of another corpus (its ``tokenizers`` folder); empty makes new ones.
        semantic: ``Offline`` or ``Hubert``.
        acoustic: ``Offline`` or ``Encodec``.
        training_clips: Clips of the training songs on which tokenizers are trained.
        seed: Seed of the choice of clips and of k-means.
    """

    folder: str = ""
    semantic: Offline | Hubert = field(default_factory=Offline)
    acoustic: Offline | Encodec = field(default_factory=Offline)
    training_clips: int = 120
    seed: int = 0

    def __post_init__(self) -> None:
        if self.training_clips < 1:
            raise ValueError(f"training_clips is {self.training_clips}, must be at least 1")


Excerpt = tuple[Song, float]
"""A clip of a song by name: the song, and its start in seconds."""


@dataclass(frozen=True)
class ExcerptWork:
    """Reads excerpts, in any process. A clip that is damaged or fails the filter gives None."""

    sound: SoundSettings

    def __call__(self, excerpts: tuple[Excerpt, ...]) -> list[ClipSound | None]:
        """Sound of each excerpt; vocals carry their noise."""
        with single_threaded():
            return [self._read(song, start_s) for song, start_s in excerpts]

    def _read(self, song: Song, start_s: float) -> ClipSound | None:
        separator = separator_for(song, self.sound.separation)  # its errors concern every song
        try:
            window = song_window(song, start_s, self.sound, separator)
        except (OSError, ValueError) as error:
            reason_of(error)  # raises the errors of this machine
            return None
        sound = clip_sound(window, SEMANTIC_SAMPLE_RATE_HZ, ACOUSTIC_SAMPLE_RATE_HZ, vocal_acoustic=False)
        if broken_rules(measure(window, sound, self.sound.filters), self.sound.filters):
            return None
        vocal = with_noise(sound.vocal, clip_id(song.id, start_s), self.sound.noise_sigma, self.sound.seed)
        return replace(sound, vocal=vocal)


def make_tokenizers(
    settings: TokenizerSettings, folder: Path, sounds: TrainingSounds, load: TokenizerLoader, device: str
) -> None:
    """Write the folders ``semantic`` and ``acoustic`` to ``folder``, unless both are there already.

    Pretrained models run on ``device``. RequestError if weights are not reachable, or if no clip can be used for
    training.
    """
    if (folder / "semantic").is_dir() and (folder / "acoustic").is_dir():
        return
    if settings.folder:  # a corpus for evaluation needs the tokenizers of the training corpus
        copied = load(Path(settings.folder).expanduser(), "cpu")
        save_tokenizers(copied.semantic, copied.acoustic, folder)
        return
    chosen = settings.acoustic
    acoustic: AcousticTokenizer
    if isinstance(chosen, Offline):
        acoustic = OfflineAcousticTokenizer.train(sounds.acoustic(), settings.seed)
    else:
        acoustic = EncodecTokenizer.from_pretrained(chosen.source, revision=chosen.revision or None, device=device)
    save_tokenizers(_semantic(settings, sounds, device), acoustic, folder)


def _semantic(settings: TokenizerSettings, sounds: TrainingSounds, device: str) -> SemanticTokenizer:
    chosen = settings.semantic
    if isinstance(chosen, Offline):
        return OfflineSemanticTokenizer.train(sounds.semantic(), settings.seed)
    revision = chosen.revision or None
    features = HubertFeatures.from_pretrained(chosen.source, layer=chosen.layer, revision=revision, device=device)
    if chosen.centroids:
        centroids = torch.from_numpy(import_centroids(chosen.centroids, trust_pickle=chosen.trust_pickle))
        return HubertTokenizer(features, centroids, {"imported_from": Path(chosen.centroids).name})
    return HubertTokenizer.train(sounds.semantic(), features, settings.seed)


class TrainingSounds:
    """The clips for training tokenizers: the first ones of a drawn order that can be read and pass the filter.

    The order is drawn without a list of the clips, and each tokenizer reads them again, a few at a time, so that memory
    does not grow with their number.
    """

    def __init__(
        self,
        songs: Sequence[Song],
        durations_s: Mapping[str, float],
        settings: TokenizerSettings,
        sound: SoundSettings,
        pool: Pool,
    ) -> None:
        """``durations_s``: length of each song by its id."""
        self._songs = songs
        self._starts: Callable[[Song], list[float]] = lambda song: clip_starts(durations_s[song.id], sound.clips)
        self._ends = np.cumsum([len(self._starts(song)) for song in songs])  # clips up to the end of each song
        self._order = np.random.default_rng(settings.seed).permutation(int(self._ends[-1]))
        self._count = min(settings.training_clips, len(self._order))
        self._work, self._pool = ExcerptWork(sound), pool

    def semantic(self) -> Waves:
        """At 16 kHz: a vocal, its accompaniment, the next vocal, ..., since one tokenizer is used for both."""
        for sound in self._sounds("Training the semantic tokenizer"):
            yield sound.vocal
            yield sound.instrumental

    def acoustic(self) -> Waves:
        """Accompaniments at 24 kHz."""
        for sound in self._sounds("Training the acoustic tokenizer"):
            yield sound.instrumental_acoustic

    def _sounds(self, description: str) -> Iterator[ClipSound]:
        passed: list[int] = []
        with progress(description, self._count, "clips") as bar:
            for first in range(0, len(self._order), self._count):
                numbers = self._order[first : first + self._count].tolist()
                for number, sound in zip(numbers, self._read(numbers), strict=True):
                    if sound is not None and len(passed) < self._count:
                        passed.append(number)
                        yield sound
                        bar.advance(1)
                if len(passed) == self._count:
                    break
        if not passed:
            raise RequestError(
                "no clip of the training songs passes the filter, so no tokenizer can be trained\n"
                "loosen the thresholds under `filters`, or give trained tokenizers as `tokenizers.folder`"
            )
        self._order = np.array(passed)  # the next tokenizer does not read the rejected ones again

    def _read(self, numbers: Sequence[int]) -> Iterator[ClipSound | None]:
        excerpts = [self._excerpt(number) for number in numbers]
        tasks = [tuple(excerpts[i : i + _CLIPS_PER_TASK]) for i in range(0, len(excerpts), _CLIPS_PER_TASK)]
        for sounds in in_order(self._pool.map(self._work, tasks)):
            yield from sounds

    def _excerpt(self, number: int) -> Excerpt:
        """The clip of this number in the list of all clips."""
        song = int(np.searchsorted(self._ends, number, side="right"))
        starts = self._starts(self._songs[song])
        return self._songs[song], starts[number - int(self._ends[song]) + len(starts)]
