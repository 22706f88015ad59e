"""Probes: cross-entropy on held-out clips while a stage's conditions are changed.

Each probe replaces the vocal in a stage's conditions and scores the same true target: with null conditions, with
another song's vocal, with the vocal moved in time, transposed, or in noise. The result is the paired difference to the
true vocal, clip by clip, with an interval over songs. A stage that ignores its vocal gives level curves at 0; one that
follows harmony but not time gives a flat curve over time and a steep one over semitones.

The stage's vocal streams are changed; a stage without one (fine) is probed through all its conditions, where only
moving in time and exchanging are possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hafm_lightning.audio import Samples
from hafm_lightning.evaluation.intervals import paired_difference_interval
from hafm_lightning.evaluation.segments import MusicClip, Stretch, encoded
from hafm_lightning.evaluation.token_scores.scores import score_clips, vocal_conditions, vocal_streams
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.token_scores import other_song, without_conditions
from hafm_lightning.page.figures import Curve, Plot
from hafm_lightning.progress import ProgressBar, progress
from hafm_lightning.songs.clips import with_noise
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokens import CLIP_DURATION_S, VOCAL_SEMANTIC, TokenBatch, TokenStream

SHIFTS_S = (-2.0, -1.0, -0.48, -0.24, -0.12, 0.0, 0.12, 0.24, 0.48, 1.0, 2.0)
"""How far the vocal is moved, in seconds (multiples of 0.04); above 0 it comes late."""
SEMITONES = (-4, -2, -1, 0, 1, 2, 4)
NOISE_SIGMAS = (0.0, 0.003, 0.01, 0.03, 0.1)
"""Standard deviation of the noise on the vocal, re full scale; the paper trains with 0.01."""
Y_LABEL = "cross-entropy − true, nats"

Streams = dict[str, Tensor]


@dataclass(frozen=True)
class Probe:
    """One figure of a stage: what it reads at each size of a change, and for level lines, by their labels."""

    title: str
    x_label: str
    steps: dict[float, Streams]
    levels: dict[str, Streams]


def probe_plots(
    networks: Mapping[str, TokenModel],
    clips: Sequence[MusicClip],
    batch: TokenBatch,
    tokenizers: Tokenizers,
    noise_sigma: float = 0.0,
    separated: Callable[[MusicClip], Samples] | None = None,
    context_s: float = CLIP_DURATION_S,
) -> list[Plot]:
    """All probes that these stages allow, stage by stage.

    Args:
        networks: Stage name -> network in eval mode.
        clips: Clips of at least two songs.
        batch: Their tokens, made by ``tokenizers``.
        noise_sigma: Noise that the vocals of ``batch`` carry; probes carry it too, except over noise.
        separated: Gives a clip's vocal as separated from the mixture, mono at the semantic rate.
        context_s: Seconds of the song that the tokenizers hear at once.
    """
    songs = [clip.segment.song.id for clip in clips]
    only_semantic = any(vocal_conditions(model) == (VOCAL_SEMANTIC,) for model in networks.values())
    stretches = [Stretch.of(clip, context_s) for clip in clips] if only_semantic else []
    changed = _changed_vocals(stretches, batch, tokenizers, noise_sigma, separated) if only_semantic else []
    probes = {name: _probes_of(model, batch, changed) for name, model in networks.items()}
    passes = sum(1 + len(_levels(of_stage)) + sum(len(it.steps) for it in of_stage) for of_stage in probes.values())
    with progress("Probes", total=passes, unit="passes") as bar:
        plots = (_plots_of(name, model, batch, songs, probes[name], bar) for name, model in networks.items())
        return list(chain.from_iterable(plots))


def _probes_of(model: TokenModel, batch: TokenBatch, changed: Sequence[Probe]) -> list[Probe]:
    """The probes of a stage; ``changed`` are those of the vocal's semantic tokens."""
    streams, of_vocal = vocal_streams(model), vocal_conditions(model)
    what = "vocal" if of_vocal else "conditions"
    steps = {shift: shifted(batch, streams, shift) for shift in SHIFTS_S}
    other = {f"{what} of another song": other_song(batch, streams)}
    null = {"no conditions at all": without_conditions(batch, model.layout.conditions)}
    probes = [Probe(f"{what} moved in time", "seconds late", steps, other | null)]
    if of_vocal == (VOCAL_SEMANTIC,):
        probes += [replace(probe, levels=other | probe.levels) for probe in changed]
    return probes


def _changed_vocals(
    stretches: Sequence[Stretch],
    batch: TokenBatch,
    tokenizers: Tokenizers,
    noise_sigma: float,
    separated: Callable[[MusicClip], Samples] | None,
) -> list[Probe]:
    """The vocal transposed, and in noise; a level line shows separated vocals."""
    total = len(SEMITONES) + len(NOISE_SIGMAS) + (separated is not None)
    with progress("Probes: changed vocals", total=total, unit="changes") as bar:

        def with_vocals(change: Callable[[MusicClip], Samples], sigma: float) -> Streams:
            noisy = [with_noise(change(it.wide), it.clip_id, sigma, 0) for it in stretches]
            bar.advance()
            return {**batch.streams, VOCAL_SEMANTIC.name: encoded(tokenizers.semantic, stretches, noisy)}

        pitch = {float(n): with_vocals(partial(transposed, semitones=n), noise_sigma) for n in SEMITONES}
        noise = {sigma: with_vocals(lambda clip: clip.sound.vocal, sigma) for sigma in NOISE_SIGMAS}
        levels = {} if separated is None else {"separated vocals": with_vocals(separated, noise_sigma)}
    return [
        Probe("vocal transposed", "semitones", pitch, {}),
        Probe("noise on the vocal", "sigma re full scale", noise, levels),
    ]


def _plots_of(
    name: str, model: TokenModel, batch: TokenBatch, songs: list[str], probes: Sequence[Probe], bar: ProgressBar
) -> Iterator[Plot]:
    def losses(streams: Streams | None = None) -> npt.NDArray[np.float64]:
        scores = score_clips(model, batch, streams)
        bar.advance()
        return scores.losses

    true = losses()
    baselines = {label: float((losses(streams) - true).mean()) for label, streams in _levels(probes).items()}
    for probe in probes:
        gaps = [paired_difference_interval(losses(streams), true, groups=songs) for streams in probe.steps.values()]
        bounds = ([gap.mean for gap in gaps], [gap.low for gap in gaps], [gap.high for gap in gaps])
        levels = {label: baselines[label] for label in probe.levels}
        yield Plot(f"{name}: {probe.title}", probe.x_label, Y_LABEL, [Curve(name, list(probe.steps), *bounds)], levels)


def _levels(probes: Sequence[Probe]) -> dict[str, Streams]:
    """The level lines of a stage, each once."""
    return {label: streams for probe in probes for label, streams in probe.levels.items()}


def shifted(clips: TokenBatch, streams: Sequence[TokenStream], shift_s: float) -> Streams:
    """The clips' streams with some moved later by ``shift_s``, circularly."""
    moved = {s.name: clips[s.name].roll(round(shift_s * s.rate_hz), dims=-1) for s in streams}
    return {**clips.streams, **moved}


def transposed(clip: MusicClip, semitones: int) -> Samples:
    """The clip's vocal transposed, same length; phase vocoder (librosa), which leaves its own traces in the sound."""
    if not semitones:
        return clip.sound.vocal
    import librosa

    moved = librosa.effects.pitch_shift(clip.sound.vocal, sr=clip.semantic_hz, n_steps=semitones)
    return np.asarray(moved, dtype=np.float32)
