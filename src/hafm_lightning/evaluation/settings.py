"""The settings of ``evaluate``, as its YAML file names them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from itertools import product

from hafm_lightning.evaluation.embeddings import EMBEDDINGS, EmbeddingSource
from hafm_lightning.evaluation.segments import SegmentSettings
from hafm_lightning.evaluation.systems.base import LABELS, MODEL_SYSTEMS
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.songs.separation import SeparationSettings

METRICS = ("fad", "kd", "apa", "beats", "chroma", "key", "onsets", "truth", "speed", "tokens", "probes")
"""Groups of columns (and, for the last two, tables) that can be requested."""
OPTIONAL_SYSTEMS = ("clean_vocal", "other_vocal", "separated")
"""Systems that a card shows only where they are named."""


@dataclass(frozen=True)
class ProtocolSettings:
    """The segments of one table; see :class:`~hafm_lightning.evaluation.segments.SegmentSettings`.

    Attributes:
        name: Heading and folder name.
        duration_s: Length of a segment in seconds.
        clips: Segments in all; 0 takes ``per_song`` of every song.
        per_song: Most segments of one song; 0 for no limit.
        gate_db: Frames this far below the song's loud vocal frames are silent.
        active: Least share of a segment's frames above the gate.
        seed: Seed of the random choice.
    """

    name: str
    duration_s: float
    clips: int = 0
    per_song: int = 0
    gate_db: float = -30.0
    active: float = 0.7
    seed: int = 0

    def segments(self, root: str, split: str) -> SegmentSettings:
        """The settings of the segments of one corpus and split."""
        fields = {name: value for name, value in asdict(self).items() if name != "name"}
        return SegmentSettings(root, split, **fields)


@dataclass(frozen=True)
class TuningSettings:
    """What ``evaluate --tune-sampling`` tries: every combination of the three lists, and ``sampling`` itself.

    Attributes:
        guidance: Scales of classifier-free guidance.
        temperature: Divisors of the logits.
        top_k: Numbers of likeliest tokens.
        split: Songs to try on: of these, only songs that no stage was trained on, as far as ``shards`` tell.
        songs: Most songs, one segment of each.
    """

    guidance: tuple[float, ...] = (1.0, 1.5, 3.0)
    temperature: tuple[float, ...] = (0.7, 0.9)
    top_k: tuple[int, ...] = (100, 250)
    split: str = "train"
    songs: int = 24

    def __post_init__(self) -> None:
        self.options()
        if self.songs < 2:
            raise ValueError(f"songs must be 2 or more, for intervals, got {self.songs}")

    def options(self) -> list[SamplingOptions]:
        """Every combination."""
        return [SamplingOptions(*values) for values in product(self.guidance, self.temperature, self.top_k)]


@dataclass(frozen=True)
class EvaluateSettings:
    """What is evaluated, on what, and how.

    Attributes:
        output: Folder of the card and of the results that the next run reads again.
        root: Songs in the layout of MUSDB18-HQ.
        protocols: Which segments are evaluated; each protocol has a table.
        tokenizers: Folder of the tokenizers that the model was trained with.
        shards: Prepared shards, whose ``train`` split ``retrieval`` searches; empty leaves that row out.
        semantic: Checkpoint of the semantic stage (the command also takes a folder of runs); empty leaves the model's
            rows out.
        coarse: Checkpoint of the coarse stage.
        fine: Checkpoint of the fine stage; empty leaves three stages out.
        model: An exported model folder or Hub id, in place of the three checkpoints.
        models: Name -> another model that the card compares with it: an exported folder, a Hub id, or a folder with the
            runs ``semantic``, ``coarse`` and ``fine``. All play with the same ``sampling`` and seeds.
        split: Split whose songs are evaluated.
        systems: Rows of the card, in this order.
        metrics: Groups of columns, in any order.
        embeddings: Embeddings for FAD, KD and APA.
        reference: ``ground_truth``: the true accompaniments of the same segments. ``train``: of training segments.
        reference_clips: Segments of the ``train`` reference.
        statistics: Embedding name -> statistics file that replaces the reference for FAD.
        sampling: Guidance, temperature and top-k.
        tuning: What ``--tune-sampling`` tries.
        seed: Seed of every random choice.
        batch_clips: Clips generated at once; 1 gives the speed that a single user sees.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        precision: ``auto``, ``fp32``, ``bf16``.
        separated: Folder of separated vocals, ``<song>/vocals.wav``, for the row ``separated``.
        separation: A separation model that computes them where ``separated`` is empty.
        vocal_noise_sigma: Standard deviation of the noise on vocals for the token tables; full scale is 1.
        token_clips: Most clips of the token tables and probes; 0 for all.
        token_split: Split of ``shards`` whose stored tokens the token table scores; empty for the segments of the
            longest protocol. Probes always use segments.
        players: Row whose clips the page plays, from best to worst.
        player_clips: Number of these clips; with 3, the best, the median and the worst.
        rank_by: Column that ranks these clips.
        pairing: Music of the row ``random``: ``spare``: segments that are not evaluated; ``next``: the next evaluated
            segment of another song, as in ``other_vocal``.
        differences: Controls that are subtracted from the row ``players`` clip by clip, in a table of their own.
        workers: Processes that generate and score side by side, one thread each; 1 for this process with all its
            threads, 0 for one process a core. On a GPU they only score.
        wandb_project: Weights & Biases project that gets the table; empty for none.
    """

    output: str
    root: str
    protocols: tuple[ProtocolSettings, ...]
    tokenizers: str
    shards: str = ""
    semantic: str = ""
    coarse: str = ""
    fine: str = ""
    model: str = ""
    models: dict[str, str] = field(default_factory=dict)
    split: str = "test"
    systems: tuple[str, ...] = tuple(name for name in LABELS if name not in OPTIONAL_SYSTEMS)
    metrics: tuple[str, ...] = METRICS
    embeddings: tuple[EmbeddingSource, ...] = (EmbeddingSource(),)
    reference: str = "ground_truth"
    reference_clips: int = 200
    statistics: dict[str, str] = field(default_factory=dict)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    seed: int = 0
    batch_clips: int = 1
    device: str = "auto"
    precision: str = "auto"
    separated: str = ""
    separation: SeparationSettings = field(default_factory=SeparationSettings)
    vocal_noise_sigma: float = 0.0
    token_clips: int = 64
    token_split: str = ""
    players: str = "three_stages"
    player_clips: int = 3
    rank_by: str = "chroma_cosine"
    pairing: str = "spare"
    differences: tuple[str, ...] = ()
    workers: int = 1
    wandb_project: str = ""

    def __post_init__(self) -> None:
        _check_names("systems", self.systems, tuple(LABELS))
        _check_names("metrics", self.metrics, METRICS)
        _check_names("reference", (self.reference,), ("ground_truth", "train"))
        _check_names("statistics", tuple(self.statistics), EMBEDDINGS)
        _check_names("pairing", (self.pairing,), ("spare", "next"))
        _check_names("differences", self.differences, self.systems)
        if self.differences:
            _check_names("players", (self.players,), self.systems)
        if "other_vocal" in self.systems and "three_stages" not in self.systems:
            raise ValueError("systems: other_vocal uses the takes of three_stages; name both")
        if self.token_split and not self.shards:
            raise ValueError("token_split needs `shards`, which hold the tokens")
        odd = [name for name in self.models if not re.fullmatch(r"[\w-]+", name)]
        if odd:
            raise ValueError(f"models: names are of letters, digits, '-' and '_', got {', '.join(odd)}")
        names = [protocol.name for protocol in self.protocols]
        if not names or len(set(names)) < len(names) or not all(re.fullmatch(r"[\w-]+", name) for name in names):
            raise ValueError(f"protocols need distinct names of letters, digits, '-' and '_', got {names}")
        sources = [source.name for source in self.embeddings]
        if len(set(sources)) < len(sources):
            raise ValueError(f"embeddings: each may be named once, got {sources}")
        if self.model and (self.semantic or self.coarse or self.fine):
            raise ValueError("give either `model` or the checkpoints `semantic`, `coarse`, `fine`, not both")
        if self.semantic and not self.coarse:
            raise ValueError("semantic is given without coarse: two stages at least are needed for sound")
        at_least_1 = (self.batch_clips, self.reference_clips, self.player_clips)
        if min(at_least_1) < 1 or min(self.token_clips, self.workers) < 0:
            raise ValueError("batch_clips, reference_clips and player_clips start at 1, token_clips and workers at 0")

    @property
    def has_model(self) -> bool:
        """Whether there is a model to evaluate."""
        return bool(self.model or self.semantic)

    def absent(self, system: str) -> str:
        """Why a requested row cannot be computed; empty if it can."""
        if system == "retrieval" and not self.shards:
            return "no `shards` to search"
        if system in MODEL_SYSTEMS and not self.has_model:
            return "no `model` and no checkpoints"
        if system in MODEL_SYSTEMS[1:] and self.semantic and not self.fine:
            return "no `fine` checkpoint"
        if system == "separated" and not (self.separated or self.separation.model):
            return "neither `separated` vocals nor a `separation` model"
        return ""


def _check_names(key: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{key}: unknown {', '.join(unknown)}; choose from {', '.join(known)}")
