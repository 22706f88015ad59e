"""The settings of ``listen build``: those of ``evaluate``, and a section ``study``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from hafm_lightning.evaluation.settings import EvaluateSettings
from hafm_lightning.evaluation.systems.base import LABELS
from hafm_lightning.listening.study import CRITERIA, SILENCE, check_criteria

QUESTION = "Which accompaniment matches the vocal better?"
LOWEST_RATE_HZ = 8000
LARGEST_SEED = (1 << 53) - 1
"""Every JSON reader keeps integers up to this."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class StudySettings:
    """One listening study.

    Attributes:
        folder: Folder to write; it must not exist yet.
        protocol: Name of the protocol in ``protocols`` whose clips are used; empty for the first.
        systems: Systems of ``evaluate`` that are compared, every one with every other.
        sounds: Name -> folder of accompaniments that another program made, one file for each clip. They are compared
            like ``systems``.
        trials: Comparisons of two systems; 0 for every pair of systems on every clip. Fewer are spread evenly over
            pairs and clips.
        same: Control trials with ground truth on both sides.
        silence: Control trials of the vocal alone against ground truth.
        seed: Decides order and sides. Whoever knows it can find the mapping, so leave it null: it is drawn at random
            and kept in key.json.
        rate_hz: Sample rate of all files, at most that of the codec; 0 for that of the codec.
        loudness_lufs: Loudness of every file (ITU-R BS.1770-4). It is lowered for the whole study where a true peak
            would pass -1 dB.
        title: Heading of the page; it should not tell what is compared.
        question: What listeners are asked.
        criteria: Any of ``rhythm``, ``harmony``, ``overall``.
        vocals: Folder for the vocals of the clips, for programs whose sounds are to be compared; nothing else is done
            then.
        webmushra: Folder for the same study in webMUSHRA's layout; empty for none.
    """

    folder: str = ""
    protocol: str = ""
    systems: tuple[str, ...] = ("three_stages", "ground_truth", "random")
    sounds: dict[str, str] = field(default_factory=dict)
    trials: int = 0
    same: int = 3
    silence: int = 3
    seed: int | None = None
    rate_hz: int = 0
    loudness_lufs: float = -23.0
    title: str = "Vocals and accompaniments"
    question: str = QUESTION
    criteria: tuple[str, ...] = CRITERIA
    vocals: str = ""
    webmushra: str = ""

    def __post_init__(self) -> None:
        unknown = [name for name in self.systems if name not in LABELS]
        if unknown:
            raise ValueError(f"systems: unknown {', '.join(unknown)}; choose from {', '.join(LABELS)}")
        wrong = [name for name in self.sounds if not _NAME.fullmatch(name) or name == SILENCE]
        if wrong:
            raise ValueError(f"sounds: {wrong[0][:40]!r} cannot name a system; take letters, digits, '-', '_' and '.'")
        names = [*self.systems, *self.sounds]
        twice = sorted({name for name in names if names.count(name) > 1} | {n for n in self.sounds if n in LABELS})
        if twice:
            raise ValueError(f"systems: two have the name {twice[0]}; each needs a name of its own")
        if len(names) < 2:
            raise ValueError(f"systems: a comparison needs two, got {', '.join(names) or 'none'}")
        if min(self.trials, self.same, self.silence) < 0:
            raise ValueError("trials, same and silence start at 0")
        if self.seed is not None and not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed must lie between 0 and {LARGEST_SEED}")
        if self.rate_hz and self.rate_hz < LOWEST_RATE_HZ:
            raise ValueError(f"rate_hz must be 0 or at least {LOWEST_RATE_HZ}, got {self.rate_hz}")
        if not (math.isfinite(self.loudness_lufs) and -50 <= self.loudness_lufs <= -10):
            raise ValueError(f"loudness_lufs must lie between -50 and -10, got {self.loudness_lufs}")
        check_criteria(self.criteria)

    @property
    def names(self) -> tuple[str, ...]:
        """All systems that are compared."""
        return (*self.systems, *self.sounds)


@dataclass(frozen=True)
class ListenSettings(EvaluateSettings):
    """What is evaluated, on what, and how; and the listening study that is made of it.

    Attributes:
        study: The study. Of the other settings only those count that decide about clips and generations; the kept
            generations of `evaluate` with the same settings are used again.
    """

    study: StudySettings = field(default_factory=StudySettings)
