"""Probes: cross-entropy on held-out clips while a stage's conditions are changed.

Each probe replaces the vocal in a stage's conditions and scores the same true target: with null conditions, with
another song's vocal, with the vocal moved in time, transposed, or in noise. The result is the paired difference to the
true vocal, clip by clip, with an interval over songs. A stage that ignores its vocal gives level curves at 0; one that
follows harmony but not time gives a flat curve over time and a steep one over semitones.

The stage's vocal streams are changed; a stage without one (fine) is probed through all its conditions, where only
moving in time and exchanging are possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hafm_lightning.evaluation.card.card import Curve, Plot
from hafm_lightning.evaluation.intervals import paired_difference_interval
from hafm_lightning.evaluation.segments import MusicClip
from hafm_lightning.evaluation.token_scores.scores import (
    CLIPS_AT_ONCE,
    has_vocal,
    score_clips,
    vocal_streams,
)
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.token_scores import other_song, without_conditions
from hafm_lightning.songs.clips import with_noise
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokens import VOCAL_ACOUSTIC, VOCAL_SEMANTIC, TokenBatch, TokenStream

SHIFTS_S = (-2.0, -1.0, -0.48, -0.24, -0.12, 0.0, 0.12, 0.24, 0.48, 1.0, 2.0)
"""How far the vocal is moved, in seconds (multiples of 0.04); above 0 it comes late."""
SEMITONES = (-4, -2, -1, 0, 1, 2, 4)
NOISE_SIGMAS = (0.0, 0.003, 0.01, 0.03, 0.1)
"""Standard deviation of the noise on the vocal, re full scale; the paper trains with 0.01."""
Y_LABEL = "cross-entropy − true, nats"

Samples = npt.NDArray[np.float32]
Losses = npt.NDArray[np.float64]


def has_only_semantic_vocal(model: TokenModel) -> bool:
    """Whether semantic tokens are the only tokens of the vocal among the stage's conditions."""
    names = {stream.name for stream in model.layout.conditions}
    return VOCAL_SEMANTIC.name in names and VOCAL_ACOUSTIC.name not in names


def shifted(clips: TokenBatch, streams: Sequence[TokenStream], shift_s: float) -> dict[str, Tensor]:
    """The clips' streams with some moved later by ``shift_s``, circularly."""
    moved = dict(clips.streams)
    for stream in streams:
        moved[stream.name] = moved[stream.name].roll(round(shift_s * stream.rate_hz), dims=-1)
    return moved


def with_vocals(clips: TokenBatch, vocals: Sequence[Samples], tokenizers: Tokenizers) -> TokenBatch:
    """The clips with the semantic tokens of other vocals (mono ``[L]`` at the semantic rate)."""
    parts = [
        tokenizers.semantic.encode(torch.from_numpy(np.stack(vocals[start : start + CLIPS_AT_ONCE]))).cpu()
        for start in range(0, len(vocals), CLIPS_AT_ONCE)
    ]
    return TokenBatch({**clips.streams, VOCAL_SEMANTIC.name: torch.cat(parts)}, clips.clip_ids)


def transposed(clip: MusicClip, semitones: int) -> Samples:
    """The clip's vocal transposed, same length; phase vocoder (librosa), which leaves its own traces in the sound."""
    if not semitones:
        return clip.sound.vocal
    import librosa

    moved = librosa.effects.pitch_shift(clip.sound.vocal, sr=clip.semantic_hz, n_steps=semitones)
    return np.asarray(moved, dtype=np.float32)


class Probes:
    """Runs the probes of every stage on one set of clips.

    Args:
        networks: Stage name -> network in eval mode.
        clips: Clips of at least two songs.
        batch: Their tokens.
        tokenizers: The pair that made them.
        noise_sigma: Noise that the vocals of ``batch`` carry; probes carry it too, except over noise.
        separated: The clips' vocals as separated from the mixtures, mono at the semantic rate.
        on_pass: Called after each pass of a stage over the clips.
    """

    def __init__(
        self,
        networks: Mapping[str, TokenModel],
        clips: Sequence[MusicClip],
        batch: TokenBatch,
        tokenizers: Tokenizers,
        noise_sigma: float = 0.0,
        separated: Sequence[Samples] | None = None,
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        self.networks, self.clips, self.batch, self.tokenizers = networks, clips, batch, tokenizers
        self.noise_sigma, self.separated, self.on_pass = noise_sigma, separated, on_pass
        self.songs = [clip.segment.song.id for clip in clips]
        self.true = {name: self._losses(model, batch.streams) for name, model in networks.items()}
        # Levels to read the curves by: another song's vocal, and no conditions at all.
        self.other = {
            name: self._level(name, other_song(batch, vocal_streams(model))) for name, model in networks.items()
        }
        self.null = {
            name: self._level(name, without_conditions(batch, model.layout.conditions))
            for name, model in networks.items()
        }
        # Stages whose vocal tokens can be computed again from a changed vocal.
        self.retokenizable = {name: model for name, model in networks.items() if has_only_semantic_vocal(model)}

    def _losses(self, model: TokenModel, streams: Mapping[str, Tensor]) -> Losses:
        losses = score_clips(model, self.batch, streams).losses
        self.on_pass()
        return losses

    def _level(self, name: str, streams: Mapping[str, Tensor]) -> float:
        """Mean change of one stage's loss."""
        return float((self._losses(self.networks[name], streams) - self.true[name]).mean())

    def _curve(self, name: str, xs: Sequence[float], losses: Sequence[Losses]) -> Curve:
        gaps = [paired_difference_interval(values, self.true[name], groups=self.songs) for values in losses]
        bounds = ([gap.mean for gap in gaps], [gap.low for gap in gaps], [gap.high for gap in gaps])
        return Curve(name, [float(x) for x in xs], *bounds)

    def _noisy(self, vocals: Sequence[Samples], sigma: float) -> list[Samples]:
        return [with_noise(vocal, clip.clip_id, sigma, 0) for vocal, clip in zip(vocals, self.clips, strict=True)]

    def over_time(self, name: str) -> Plot:
        """A stage's vocal conditions (:func:`~hafm_lightning.evaluation.token_scores.scores.vocal_streams`) moved by
        :data:`SHIFTS_S`."""
        model = self.networks[name]
        streams = vocal_streams(model)
        losses = [self._losses(model, shifted(self.batch, streams, shift)) for shift in SHIFTS_S]
        what = "vocal" if has_vocal(model) else "conditions"
        levels = {f"{what} of another song": self.other[name], "no conditions at all": self.null[name]}
        title = f"{name}: {what} moved in time"
        return Plot(title, "seconds late", Y_LABEL, [self._curve(name, SHIFTS_S, losses)], levels)

    def over_vocals(
        self, what: str, x_label: str, xs: Sequence[float], vocals_at: Callable[[float], list[Samples]]
    ) -> dict[str, Plot]:
        """Other vocals in place of the true ones, tokenized once for all stages: a plot of each stage."""
        variants = [with_vocals(self.batch, vocals_at(x), self.tokenizers).streams for x in xs]
        plots = {}
        for name, model in self.retokenizable.items():
            curve = self._curve(name, xs, [self._losses(model, variant) for variant in variants])
            levels = {"vocal of another song": self.other[name]}
            plots[name] = Plot(f"{name}: {what}", x_label, Y_LABEL, [curve], levels)
        return plots

    def over_semitones(self) -> dict[str, Plot]:
        """The vocal transposed by :data:`SEMITONES`."""

        def vocals_at(semitones: float) -> list[Samples]:
            return self._noisy([transposed(clip, round(semitones)) for clip in self.clips], self.noise_sigma)

        return self.over_vocals("vocal transposed", "semitones", SEMITONES, vocals_at)

    def over_noise(self) -> dict[str, Plot]:
        """Noise of :data:`NOISE_SIGMAS` on the clean vocal; a level line shows separated vocals."""
        clean = [clip.sound.vocal for clip in self.clips]
        plots = self.over_vocals(
            "noise on the vocal", "sigma re full scale", NOISE_SIGMAS, lambda sigma: self._noisy(clean, sigma)
        )
        if self.separated is not None:
            streams = with_vocals(self.batch, self._noisy(self.separated, self.noise_sigma), self.tokenizers).streams
            for name, plot in plots.items():
                plot.baselines["separated vocals"] = self._level(name, streams)
        return plots

    def plots(self) -> list[Plot]:
        """All probes that these stages allow, stage by stage."""
        vocal = [self.over_semitones(), self.over_noise()] if self.retokenizable else []
        return [
            plot
            for name in self.networks
            for plot in (self.over_time(name), *(plots[name] for plots in vocal if name in plots))
        ]

    @staticmethod
    def passes(networks: Mapping[str, TokenModel], separated: bool) -> int:
        """Passes that the constructor and :meth:`plots` make, for a progress bar."""
        retokenizable = sum(has_only_semantic_vocal(model) for model in networks.values())
        each = len(SEMITONES) + len(NOISE_SIGMAS) + separated
        return len(networks) * (3 + len(SHIFTS_S)) + retokenizable * each
