"""The tokenizers of a corpus: trained on its training songs, loaded, or taken from another corpus.

Choices:

* Training clips are drawn from the training songs only, with the same filter and the same noise as the clips that will
  be tokenized; vocals and accompaniments take turns, since one semantic tokenizer serves both.
* A corpus for evaluation must be tokenized by the tokenizers of the training corpus: ``folder`` takes them over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hafm_lightning.errors import RequestError
from hafm_lightning.local_pool import Pool
from hafm_lightning.preparation.quality.filters import broken_rules, measure
from hafm_lightning.preparation.shard_work import SoundSettings, TokenizerLoader, cached_separator, single_threaded
from hafm_lightning.progress import progress
from hafm_lightning.shards import clip_id
from hafm_lightning.songs.clips import MARGIN_S, ClipSettings, ClipSound, clip_sound, clip_starts, with_noise
from hafm_lightning.songs.song import Song, reason_of
from hafm_lightning.songs.stems import read_window, readable
from hafm_lightning.tokenizers import AcousticTokenizer, SemanticTokenizer, save_tokenizers
from hafm_lightning.tokenizers.base import ACOUSTIC_SAMPLE_RATE_HZ, SEMANTIC_SAMPLE_RATE_HZ

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
        layer: Whose output is the feature, counted from 1.
        centroids: File of centroids trained elsewhere; empty trains them on the corpus.
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
    """Which tokenizers, and how they come about.

    Attributes:
        folder: Take the tokenizers of another corpus (its ``tokenizers`` folder); empty makes them as said below.
        semantic: ``Offline`` or ``Hubert``.
        acoustic: ``Offline`` or ``Encodec``.
        training_clips: Clips of the training songs that trained tokenizers see.
        seed: Of the choice of clips and of k-means.
    """

    folder: str = ""
    semantic: Offline | Hubert = field(default_factory=Offline)
    acoustic: Offline | Encodec = field(default_factory=Offline)
    training_clips: int = 120
    seed: int = 0

    def __post_init__(self) -> None:
        if self.training_clips < 1:
            raise ValueError(f"training_clips is {self.training_clips}, must be at least 1")


@dataclass(frozen=True)
class Excerpt:
    """A clip of a song, by name: ``song``, ``start_s`` in seconds."""

    song: Song
    start_s: float


class ExcerptPool:
    """All clips of some songs in a drawn order, without a list of them (a large corpus has millions)."""

    def __init__(self, songs: Sequence[Song], durations_s: Mapping[str, float], clips: ClipSettings, seed: int) -> None:
        """Args:
        songs: Where clips are drawn from.
        durations_s: Length of each song by its id, in seconds.
        clips: Where clips lie.
        seed: Of the order.
        """
        self._songs = songs
        self._durations_s = durations_s
        self._clips = clips
        self._ends = np.cumsum([len(clip_starts(durations_s[song.id], clips)) for song in songs], dtype=np.int64)
        self._order = np.random.default_rng(seed).permutation(int(self._ends[-1]) if len(songs) else 0)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, places: slice) -> list[Excerpt]:
        """The excerpts at ``places`` of the drawn order."""
        chosen = self._order[places]
        songs = np.searchsorted(self._ends, chosen, side="right")
        excerpts = []
        for clip, number in zip(chosen.tolist(), songs.tolist(), strict=True):
            song = self._songs[number]
            starts = clip_starts(self._durations_s[song.id], self._clips)
            excerpts.append(Excerpt(song, starts[clip - int(self._ends[number]) + len(starts)]))
        return excerpts


@dataclass(frozen=True)
class ExcerptWork:
    """Reads excerpts, in any process. A clip that is damaged or fails the filter gives None.

    Attributes:
        sound: What decides the waveforms.
        filtered: Whether clips have to pass the filter; False for those that did before.
    """

    sound: SoundSettings
    filtered: bool

    def __call__(self, excerpts: tuple[Excerpt, ...]) -> list[ClipSound | None]:
        """Sound of each excerpt; vocals carry their noise."""
        with single_threaded():
            return [self._read(excerpt) for excerpt in excerpts]

    def _read(self, excerpt: Excerpt) -> ClipSound | None:
        song, clips = excerpt.song, self.sound.clips
        separator = cached_separator(self.sound.separation) if song.needs_separation else None
        try:
            with readable(song) as files:
                window = read_window(files, separator, excerpt.start_s, clips.duration_s, MARGIN_S)
        except (OSError, ValueError) as error:
            reason_of(error)  # raises what is not the song's fault
            return None
        sound = clip_sound(window, SEMANTIC_SAMPLE_RATE_HZ, ACOUSTIC_SAMPLE_RATE_HZ, vocal_acoustic=False)
        if self.filtered and broken_rules(measure(window, sound, self.sound.filters), self.sound.filters):
            return None
        name = clip_id(song.id, excerpt.start_s)
        noisy = with_noise(sound.vocal, name, self.sound.noise_sigma, self.sound.seed)
        return ClipSound(noisy, sound.instrumental, sound.instrumental_acoustic, None)


def make_tokenizers(
    settings: TokenizerSettings,
    folder: Path,
    excerpts: ExcerptPool,
    *,
    sound: SoundSettings,
    engine: Pool,
    load: TokenizerLoader,
    device: str,
) -> None:
    """Write the tokenizers to ``folder``; those that are there already are kept.

    Args:
        settings: Which ones.
        folder: Gets ``semantic`` and ``acoustic``.
        excerpts: The clips that may be trained on.
        sound: What decides their waveforms.
        engine: Reads them.
        load: Reads tokenizers from a folder.
        device: Where pretrained models run meanwhile, HuBERT to train its centroids.

    Raises:
        RequestError: Weights are not reachable, or the corpus is too small to train on.
    """
    if (folder / "semantic").is_dir() and (folder / "acoustic").is_dir():
        return
    if settings.folder:
        taken = load(Path(settings.folder).expanduser(), "cpu")
        save_tokenizers(taken.semantic, taken.acoustic, folder)
        return
    sounds = TrainingSounds(excerpts, settings.training_clips, sound, engine)
    acoustic = _acoustic(settings, sounds, device)
    semantic = _semantic(settings, sounds, device)
    save_tokenizers(semantic, acoustic, folder)


def _semantic(settings: TokenizerSettings, sounds: TrainingSounds, device: str) -> SemanticTokenizer:
    if isinstance(settings.semantic, Offline):
        from hafm_lightning.tokenizers.offline import OfflineSemanticTokenizer

        return OfflineSemanticTokenizer.train(sounds.semantic(), settings.seed)
    from hafm_lightning.tokenizers.hubert import HubertFeatures, HubertTokenizer

    chosen = settings.semantic
    features = HubertFeatures.from_pretrained(
        chosen.source, layer=chosen.layer, revision=chosen.revision or None, device=device
    )
    if chosen.centroids:
        return HubertTokenizer.with_centroids(features, chosen.centroids, trust_pickle=chosen.trust_pickle)
    return HubertTokenizer.train(sounds.semantic(), features, settings.seed)


def _acoustic(settings: TokenizerSettings, sounds: TrainingSounds, device: str) -> AcousticTokenizer:
    if isinstance(settings.acoustic, Offline):
        from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer

        return OfflineAcousticTokenizer.train(sounds.acoustic(), settings.seed)
    from hafm_lightning.tokenizers.encodec import EncodecTokenizer

    chosen = settings.acoustic
    return EncodecTokenizer.from_pretrained(chosen.source, revision=chosen.revision or None, device=device)


class TrainingSounds:
    """The clips that tokenizers are trained on: the first ones of a drawn order that can be read and pass the filter.

    They are read again for each tokenizer, a few at a time, so that memory does not grow with their number.
    """

    def __init__(self, drawn: ExcerptPool, wanted: int, sound: SoundSettings, engine: Pool) -> None:
        self._drawn = drawn
        self._wanted = min(wanted, len(drawn))
        self._sound = sound
        self._engine = engine
        self._chosen: list[Excerpt] = []

    def semantic(self) -> Waves:
        """At 16 kHz: a vocal, its accompaniment, the next vocal, ..."""
        for sound in self._sounds("Training the semantic tokenizer"):
            yield sound.vocal
            yield sound.instrumental

    def acoustic(self) -> Waves:
        """Accompaniments at 24 kHz."""
        for sound in self._sounds("Training the acoustic tokenizer"):
            yield sound.instrumental_acoustic

    def _sounds(self, description: str) -> Iterator[ClipSound]:
        with progress(description, self._wanted, "clips") as bar:
            for sound in self._again() if self._chosen else self._first_time():
                yield sound
                bar.advance(1)

    def _first_time(self) -> Iterator[ClipSound]:
        """Read in the drawn order until enough clips pass, and remember them."""
        chosen: list[Excerpt] = []
        for first in range(0, len(self._drawn), self._wanted):
            for excerpt, sound in self._read(self._drawn[first : first + self._wanted], filtered=True):
                if sound is not None and len(chosen) < self._wanted:
                    chosen.append(excerpt)
                    yield sound
            if len(chosen) == self._wanted:
                break
        if not chosen:
            raise RequestError(
                "no clip of the training songs passes the filter, so no tokenizer can be trained\n"
                "loosen the thresholds under `filters`, or take trained tokenizers by `tokenizers.folder`"
            )
        self._chosen = chosen

    def _again(self) -> Iterator[ClipSound]:
        for _, sound in self._read(self._chosen, filtered=False):
            if sound is not None:
                yield sound

    def _read(self, excerpts: Sequence[Excerpt], filtered: bool) -> Iterator[tuple[Excerpt, ClipSound | None]]:
        """Sounds in the order of the excerpts, whatever the order in which they are read."""
        tasks = [tuple(excerpts[i : i + _CLIPS_PER_TASK]) for i in range(0, len(excerpts), _CLIPS_PER_TASK)]
        early: dict[int, list[ClipSound | None]] = {}
        following = 0
        for index, sounds in self._engine.map(ExcerptWork(self._sound, filtered), tasks):
            early[index] = sounds
            while following in early:
                yield from zip(tasks[following], early.pop(following), strict=True)
                following += 1
