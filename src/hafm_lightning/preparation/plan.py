"""The plan: the split of each song, and the songs of each shard.

It depends on the songs, their lengths and the settings alone. A shard is a fixed list of songs, so that every process
makes the same shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.quality.fingerprint import DuplicateSettings, find_duplicates, sketch_from_text
from hafm_lightning.preparation.survey import SongFacts
from hafm_lightning.shards import SPLITS
from hafm_lightning.songs.clips import ClipSettings, clip_starts
from hafm_lightning.songs.song import Quarantined, Song
from hafm_lightning.tokens import STYLE

UNKNOWN_STYLE = "unknown"  # style of songs without a genre
# Of a recording that occurs twice the copy in the first of these splits is kept, so that no test song is used for
# training.
_PREFERENCE = ("test", "validation", "train")


@dataclass(frozen=True)
class SplitSettings:
    """How songs of ``train`` are divided between train and validation.

    Attributes:
        validation_share: Share of the songs that become validation; 0 draws none. Songs whose split comes from the
            corpus (``use_fma_split``) are not drawn.
        by_artist: Keep all songs of an artist in one split, if the artist is known.
        seed: Another seed draws other songs.
        validation_songs: Song ids that become validation; if any are given, no other song is drawn.
        train_clips: Most clips of ``train``, chosen by ``seed`` after the quality filter; null keeps all.
        validation_clips: Most clips of ``validation``.
    """

    validation_share: float = 0.1
    by_artist: bool = True
    seed: int = 0
    validation_songs: tuple[str, ...] = ()
    train_clips: int | None = None
    validation_clips: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}, must lie in [0, 1)")
        for name in ("train_clips", "validation_clips"):
            cap = getattr(self, name)
            if cap is not None and cap < 1:
                raise ValueError(f"{name} is {cap}, must be 1 or more (null keeps all)")

    def cap(self, split: str) -> int | None:
        """Most clips of a split; None for all."""
        return {"train": self.train_clips, "validation": self.validation_clips}.get(split)


@dataclass(frozen=True)
class Unit:
    """The work unit: one shard."""

    split: str  # its split
    number: int  # its number in the split
    songs: tuple[Song, ...]  # the songs of the shard, in order
    duration_s: float  # total length of the songs, in seconds

    @property
    def file(self) -> str:
        """Name of the shard's file."""
        return f"shard-{self.number:05d}.safetensors"


@dataclass(frozen=True)
class Plan:
    """The decisions before the work begins."""

    units: list[Unit]  # the shards of all splits
    quarantined: list[Quarantined]  # songs that the survey could not read
    left_out: list[Quarantined]  # readable songs that are not used: duplicates, and songs shorter than a clip

    def songs(self, split: str) -> list[Song]:
        """Songs of a split."""
        return [song for unit in self.units if unit.split == split for song in unit.songs]

    @property
    def duration_s(self) -> float:
        """Total length of the songs, in seconds."""
        return sum(unit.duration_s for unit in self.units)

    def style_names(self) -> list[str]:
        """Genres of the songs, sorted; the first name is for songs without one. RequestError if there are too many."""
        genres = {song.genre for unit in self.units for song in unit.songs}
        names = [UNKNOWN_STYLE, *sorted(genres - {"", UNKNOWN_STYLE})]
        if len(names) > STYLE.vocabulary:
            raise RequestError(
                f"the corpora have {len(names)} genres, the style stream holds {STYLE.vocabulary}\n"
                "keep some of them by `genres`, or set styles: false"
            )
        return names

    def problem(self) -> str:
        """The first contradiction in a plan that was read from a file, or an empty string."""
        numbers = set()
        for unit in self.units:
            if unit.split not in SPLITS or not 0 <= unit.number < 10**6:
                return f"a shard {unit.number} of the split {unit.split!r:.60}"
            if (unit.split, unit.number) in numbers:
                return f"shard {unit.number} of {unit.split!r} is listed twice"
            numbers.add((unit.split, unit.number))
            if any(song.split != unit.split for song in unit.songs):
                return f"a shard of {unit.split!r} with songs of other splits"
            names = [
                name for song in unit.songs for name in (song.id, song.mixture or song.vocals, *song.accompaniment)
            ]
            if any(not name or "\0" in name for name in names):
                return f"a song of shard {unit.number} of {unit.split!r} has no name that a file can have"
        songs = [song.id for unit in self.units for song in unit.songs]
        return "" if len(set(songs)) == len(songs) else "a song is in two shards"


def make_plan(
    songs: Sequence[Song],
    facts: Iterable[SongFacts],
    *,
    clips: ClipSettings,
    split: SplitSettings,
    duplicates: DuplicateSettings,
    clips_per_shard: int,
) -> Plan:
    """Choose songs, divide them into splits, and group them into shards of ``clips_per_shard`` clips or a few more."""
    facts_of = {fact.id: fact for fact in facts}
    quarantined = [Quarantined(song.id, facts_of[song.id].problem) for song in songs if facts_of[song.id].problem]
    usable = [song for song in songs if not facts_of[song.id].problem]
    left_out = []
    if duplicates.enabled:
        preferred = sorted(usable, key=lambda song: (_PREFERENCE.index(song.split), song.id))
        sketches = {song.id: sketch_from_text(facts_of[song.id].sketch) for song in preferred}
        original = find_duplicates(sketches, duplicates)
        left_out += [Quarantined(s.id, f"duplicate of {original[s.id]}") for s in usable if s.id in original]
        usable = [song for song in usable if song.id not in original]
    durations_s = {song.id: facts_of[song.id].duration_s for song in usable}
    counts = {name: len(clip_starts(duration_s, clips)) for name, duration_s in durations_s.items()}
    for name in (name for name, count in counts.items() if not count):
        reason = f"shorter than a clip ({durations_s[name]:.3f} s of {clips.duration_s:g} s)"
        left_out.append(Quarantined(name, reason))
    divided = divide_songs([song for song in usable if counts[song.id]], split)
    units = []
    for name in SPLITS:
        chosen = sorted((song for song in divided if song.split == name), key=lambda song: song.id)
        batch: list[Song] = []
        number = 0
        for song in chosen:
            batch.append(song)
            if sum(counts[item.id] for item in batch) >= clips_per_shard or song is chosen[-1]:
                duration_s = sum(durations_s[item.id] for item in batch)
                units.append(Unit(name, number, tuple(batch), round(duration_s, 6)))
                batch, number = [], number + 1
    return Plan(units, quarantined, left_out)


def divide_songs(songs: Sequence[Song], settings: SplitSettings) -> list[Song]:
    """Give each song of ``train`` its final split, ``train`` or ``validation``; others keep theirs.

    Songs whose split comes from the corpus are not drawn, but may be named; RequestError if a named song is unknown.
    """
    if settings.validation_songs:
        missing = sorted(set(settings.validation_songs) - {song.id for song in songs})
        if missing:
            raise RequestError(
                f"split.validation_songs names {missing[0]!r}, which is not among the {len(songs)} usable songs\n"
                "correct the name, or leave it out: the song may be damaged, too short or a duplicate"
            )
        chosen = set(settings.validation_songs)
    else:
        chosen = _drawn([song for song in songs if song.split == "train" and not song.split_given], settings)
    return [replace(s, split="validation") if s.split == "train" and s.id in chosen else s for s in songs]


def _drawn(pool: Sequence[Song], settings: SplitSettings) -> set[str]:
    """Ids of the songs that become validation: the first groups, in an order that depends on seed and name alone."""
    groups: dict[str, list[str]] = {}
    for song in pool:
        key = f"artist:{song.artist}" if settings.by_artist and song.artist else f"song:{song.id}"
        groups.setdefault(key, []).append(song.id)
    wanted = round(settings.validation_share * len(pool))
    if settings.validation_share and len(groups) > 1:
        wanted = max(wanted, 1)
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{settings.seed}:{key}".encode()).digest())
    chosen: set[str] = set()
    for key in order[:-1]:  # one group stays for training
        if len(chosen) >= wanted:
            break
        chosen.update(groups[key])
    return chosen
