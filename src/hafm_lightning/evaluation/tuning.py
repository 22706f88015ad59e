"""The search for a model's guidance and sampling: every combination on validation songs, compared clip by clip.

The songs are some that no stage has trained on and that the card does not show, so that the choice flatters no number
of the card. Combinations are compared with the sampling of the settings on the same clips with the same seeds. The best
of many is better than it deserves on the clips that have chosen it: where its difference to the present sampling is not
significant, the present one stays.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.card import Card, Column
from hafm_lightning.evaluation.card.page import write_card
from hafm_lightning.evaluation.contrasts import Contrasts
from hafm_lightning.evaluation.evaluate import Evaluation
from hafm_lightning.evaluation.intervals import Interval
from hafm_lightning.evaluation.protocol.clip_scores import clip_cells, score_played
from hafm_lightning.evaluation.protocol.columns import clip_columns
from hafm_lightning.evaluation.protocol.table import contrasts_of, model_table, system_table
from hafm_lightning.evaluation.segments import ClipReader, SelectedClips, select_segments
from hafm_lightning.evaluation.settings import EvaluateSettings
from hafm_lightning.evaluation.systems.generations import Generations
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.processes.locks import LOCK_NAME, held
from hafm_lightning.processes.pool import local_pool
from hafm_lightning.shards import open_shards, song_of

FOLDER = "tuning"
"""Folder of the search in ``output``."""
CONTROLS = ("codec_8", "random")
"""Rows that show whether a column can tell right from wrong on these clips."""
CLIP_GROUPS = ("chroma", "key", "beats", "onsets", "truth")


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Attributes:
        card: All combinations, and their differences to the present sampling; written to ``folder``.
        folder: Folder of the card.
        column: What the combinations were ranked by.
        best: The combination with the highest mean.
        score: Its mean.
        gain: By how much it is better than the present sampling; None for the present sampling itself.
    """

    card: Card
    folder: Path
    column: Column
    best: SamplingOptions
    score: float
    gain: Interval | None

    @property
    def recommended(self) -> SamplingOptions | None:
        """The best combination where it is significantly better than the present sampling."""
        return self.best if self.gain is not None and self.gain.low > 0 else None


def words_of(sampling: SamplingOptions) -> str:
    """A combination as a heading."""
    top_p = "" if sampling.top_p is None else f", top-p {sampling.top_p:g}"
    top_k = "all tokens" if sampling.top_k is None else f"top-k {sampling.top_k}"
    return f"guidance {sampling.guidance:g}, temperature {sampling.temperature:g}, {top_k}{top_p}"


def row_of(sampling: SamplingOptions) -> str:
    """A combination as the name of a row and of a folder."""
    return "sampling-" + "-".join(str(value) for value in asdict(sampling).values())


def tune_sampling(settings: EvaluateSettings) -> Tuned:
    """Try every combination of ``settings.tuning``, write a card, and return the best combination.

    Raises:
        RequestError: There is no model, no validation song, or ``rank_by`` is no score of a clip.
    """
    if not settings.has_model:
        raise RequestError("--tune-sampling needs a model\nname `model`, or the checkpoints semantic, coarse and fine")
    output = Path(settings.output) / FOLDER
    quiet = replace(settings, systems=CONTROLS, metrics=CLIP_GROUPS, embeddings=(), differences=(), models={})
    advice = "wait for it, or choose another folder: --output DIR"
    with local_pool(settings.workers, threads=1) as pool, held(output / LOCK_NAME, str(output), advice, erase=True):
        evaluation = Evaluation(quiet, pool)
        clips = validation_clips(settings, ClipReader.of(evaluation.tokenizers))
        present = settings.sampling
        tried = list(dict.fromkeys([present, *settings.tuning.options()]))
        source = replace(evaluation.source, stages=3 if settings.model or settings.fine else 2)
        played = evaluation.play(output, clips)
        for sampling in tried:
            label = words_of(sampling) + (" (present)" if sampling == present else "")
            made = Generations(output, evaluation.band(source, row_of(sampling), sampling, label))
            made.make(clips, settings.batch_clips, pool)
            played[row_of(sampling)] = made
        columns = clip_columns(CLIP_GROUPS)
        scores = score_played(clips, played, output / "scores", pool)
        contrasts = contrasts_of(clips, played, scores, columns, {})
        table = system_table("sampling", clips, played, clip_cells(clips, scores, columns), contrasts)
        chosen = next((column for column in table.columns if column.key == settings.rank_by), None)
        if chosen is None or chosen.better != "higher":
            known = ", ".join(column.key for column in table.columns if column.better == "higher")
            raise RequestError(f"rank_by: these songs have no score {settings.rank_by!r}\nchoose from {known}")
        differences = model_table(table, contrasts, [row_of(sampling) for sampling in tried])
        best, score, gain = best_of(tried, present, chosen.key, contrasts)
        names = {"best": words_of(best), "ranked by": chosen.label, "songs": f"{len(set(clips.songs))} of validation"}
        about = [
            *table.about,
            f"validation songs, ranked by {chosen.label}; the best of {len(tried)} is flattered here",
        ]
        tables = [replace(table, about=about), replace(differences, name="sampling minus the present one")]
        card = Card("Search for guidance and sampling", names, tables, [], evaluation.absent)
        write_card(card, output)
    return Tuned(card, output, chosen, best, score, gain)


def best_of(
    tried: list[SamplingOptions], present: SamplingOptions, key: str, contrasts: Contrasts
) -> tuple[SamplingOptions, float, Interval | None]:
    """The combination with the highest mean of a column, the mean, and its difference to the present one."""
    means = {sampling: float(np.mean(contrasts.clips[key][row_of(sampling)])) for sampling in tried}
    best = max(tried, key=lambda sampling: means[sampling])  # the first of equal ones: the present one
    gain = None if best == present else contrasts.difference(key, row_of(best), row_of(present))
    return best, means[best], gain


def validation_clips(settings: EvaluateSettings, reader: ClipReader) -> SelectedClips:
    """One segment of each validation song, as long as those of the first protocol.

    Validation songs are those of ``tuning.split`` in the validation split of ``shards``; where the shards hold none of
    them, those that are not in the training split either.

    Raises:
        RequestError: Fewer than two are left.
    """
    protocol, tuning = settings.protocols[0], settings.tuning
    drawn = select_segments(replace(protocol, clips=0, per_song=1).segments(settings.root, tuning.split))
    trained, held_out = songs_of(settings.shards, "train"), songs_of(settings.shards, "validation")
    fit = [it for it in drawn.segments if is_among(it.song.id, tuning.split, held_out)]
    fit = fit or [it for it in drawn.segments if not is_among(it.song.id, tuning.split, trained)]
    if len({segment.song.id for segment in fit}) < 2:
        raise RequestError(
            f"{settings.root}/{tuning.split} has {len(fit)} songs with singing that no stage has trained on, of "
            f"{drawn.songs}: at least 2 are needed\n"
            "name songs of another corpus (--root) or split (--tuning.split), other than those of the final card"
        )
    chosen = replace(drawn, segments=fit[: tuning.songs], spare=[])
    return SelectedClips(chosen, reader)


def songs_of(shards: str, split: str) -> set[str]:
    """Songs in a split of shards; none where there are no shards or no such split."""
    if not shards or ("://" not in shards and not (Path(shards).expanduser() / split).is_dir()):
        return set()
    return {song_of(clip_id) for clip_id in open_shards(shards, split).clip_ids}


def is_among(song: str, split: str, songs: set[str]) -> bool:
    """Whether a song is one of the shards' songs, whose ids name the split where two splits have equal names."""
    return song in songs or f"{split}/{song}" in songs
