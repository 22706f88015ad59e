"""Three stages and two tokenizers as one object: from a vocal to its accompaniment, without a Trainer.

    vocal -> vocal_semantic -> semantic stage -> coarse stage -> fine stage -> acoustic decoder -> mix

Choices:

* A long vocal is cut into windows as long as the stages' training clips, each of which begins with tokens of the
  previous window (:mod:`~hafm_lightning.accompanist.windows`) and is tokenized by itself, as in training. A vocal
  shorter than a window goes on mirrored, and the result is cut to its length.
* The semantic tokenizer hears the vocal with the noise of training (:mod:`~hafm_lightning.accompanist.song`).
* Several vocals form a batch, window by window. All random numbers come from (seed, stage, window), so that a take
  does not depend on the others of its batch.

Source: HAFM (arXiv 2604.09054), sections 3.1 (noise), 3.2 (stages) and 3.3 (guidance).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hafm_lightning.accompanist.live import LiveSession
from hafm_lightning.accompanist.live_tracks import LiveOptions
from hafm_lightning.accompanist.mixing import MixOptions, mix_take
from hafm_lightning.accompanist.model_folder import read_model_folder
from hafm_lightning.accompanist.recommended import FROM_MODEL, FromModel, Recommended, changed_sampling, trained_noise
from hafm_lightning.accompanist.rendering import render
from hafm_lightning.accompanist.song import (
    NOISE_AUTO,
    Progress,
    ShareCounter,
    Song,
    Vocal,
    VocalNoise,
    load_vocal,
    noise_sigma,
)
from hafm_lightning.accompanist.stage_network import (
    Precision,
    StageNetwork,
    check_networks,
    condition_names,
    networks_from_checkpoints,
    pick_device,
    pick_precision,
    style_id,
    style_names,
    tokenizers_folder,
    vocal_streams,
)
from hafm_lightning.accompanist.take import Take, machine_facts, model_facts, take_record
from hafm_lightning.accompanist.windows import GRID_S, frames_at, grid_units, overlap_units, window_seed
from hafm_lightning.audio import Audio
from hafm_lightning.kernels import for_inference
from hafm_lightning.modeling.decoding import generate
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.tokenizers import Tokenizers, load_tokenizers
from hafm_lightning.tokens import INSTRUMENTAL_COARSE, INSTRUMENTAL_FINE, STYLE, VOCAL_SEMANTIC


class Accompanist:
    """Accompanies vocals. Made by :meth:`from_checkpoints` or :meth:`from_pretrained`.

    Args:
        networks: The stages in the order in which they write: semantic, coarse and, unless there are two, fine.
        tokenizers: The pair that the stages were trained with.
        styles: Names of the ids of the ``style`` stream.
        origin: Paths or Hub id of the parts, for `take.json`.
        card: Data, licence and metrics of a model folder, for `take.json`.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        precision: ``fp32``, ``bf16``, ``int8`` (CPUs: fastest, rounds weights), or ``auto``.
        recommended: Sampling to begin from and the noise of training; None: the paper's sampling, and the noise that
            the stages or their shards name.

    Attributes:
        sampling: The recommended sampling.
        trained_noise_sigma: Noise on the vocals of training, full scale is 1; ``vocal_noise="auto"`` adds it.
        precision: Type of the weights; never ``auto``.
        precision_note: A line for the user if the machine has no fast operations for the requested precision.
        window: Length of the stages' windows, in grid units.
        right_context: Length of a window's end that the next window writes again, in grid units.

    Raises:
        RequestError: Stages and tokenizers do not belong together, or the device cannot be used.
    """

    def __init__(
        self,
        networks: Sequence[StageNetwork],
        tokenizers: Tokenizers,
        *,
        styles: Sequence[str] = (),
        origin: Mapping[str, str | None] | None = None,
        card: Mapping[str, Any] | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        recommended: Recommended | None = None,
    ) -> None:
        check_networks(networks, tokenizers)
        self.origin, self.card = dict(origin or {}), dict(card or {})
        self.device = pick_device(device)
        self.precision, self.precision_note = pick_precision(precision, self.device, networks)
        self.tokenizers, self.styles = tokenizers, tuple(styles)
        models = [for_inference(network.model, self.device, self.precision) for network in networks]
        self.networks = tuple(replace(n, model=model) for n, model in zip(networks, models, strict=True))
        self.window = min(grid_units(network.duration_s) for network in self.networks)
        # a frame depends on what an earlier stage wrote in its context, which depends on the context of that
        self.right_context = sum(network.right_context_units for network in self.networks)
        given = Recommended(vocal_noise_sigma=trained_noise(networks)) if recommended is None else recommended
        self.sampling, self.trained_noise_sigma = given.sampling, given.vocal_noise_sigma

    # --- making one -------------------------------------------------------------------------------------------

    @classmethod
    def from_checkpoints(
        cls,
        semantic: str | Path,
        coarse: str | Path,
        fine: str | Path | None = None,
        *,
        tokenizers: str | Path | Tokenizers | None = None,
        stages: Literal[2, 3] = 3,
        device: str = "auto",
        precision: Precision = "auto",
    ) -> Accompanist:
        """From the checkpoints of three training runs.

        Args:
            semantic: Checkpoint of a SemanticStage.
            coarse: Checkpoint of a CoarseStage.
            fine: Checkpoint of a FineStage; may be left out with ``stages=2``.
            tokenizers: The shards' folder `tokenizers`, or the loaded pair; default: the folder that training read.
            stages: 2 stops after the coarse stage and decodes its four codebooks alone, for a coarser sound.
            device: As for the class.
            precision: As for the class.

        Raises:
            RequestError: A file is missing, unreadable or of another stage, or they do not belong together.
        """
        networks = networks_from_checkpoints(semantic, coarse, fine, stages)
        origin: dict[str, str | None] = {network.role: str(Path(network.source).resolve()) for network in networks}
        if not isinstance(tokenizers, Tokenizers):
            folder = tokenizers_folder(networks, tokenizers)
            origin["tokenizers"] = str(folder.resolve())
            tokenizers = load_tokenizers(folder, device=pick_device(device))
        styles = style_names(networks)
        return cls(networks, tokenizers, styles=styles, origin=origin, device=device, precision=precision)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        *,
        revision: str | None = None,
        stages: Literal[2, 3] = 3,
        device: str = "auto",
        precision: Precision = "auto",
    ) -> Accompanist:
        """From a model folder that ``export`` wrote, or its copy on the Hub.

        Args:
            folder_or_hub_id: A folder, or ``owner/name``.
            revision: Commit, tag or branch on the Hub.
            stages: As in :meth:`from_checkpoints`.
            device: As for the class.
            precision: As for the class.

        Raises:
            RequestError: The model folder is missing, damaged, of a newer format, or its parts do not belong together.
        """
        folder = read_model_folder(folder_or_hub_id, revision=revision, stages=stages, device=pick_device(device))
        name = str(Path(folder_or_hub_id).resolve()) if Path(folder_or_hub_id).is_dir() else str(folder_or_hub_id)
        return cls(
            folder.networks,
            folder.tokenizers,
            styles=folder.styles,
            origin={"model": name, "revision": revision},
            card=folder.card,
            device=device,
            precision=precision,
            recommended=folder.recommended,
        )

    # --- accompanying -----------------------------------------------------------------------------------------

    def accompany(
        self,
        vocal: Vocal,
        *,
        rate_hz: int | None = None,
        seed: int = 0,
        guidance: float | FromModel = FROM_MODEL,
        temperature: float | FromModel = FROM_MODEL,
        top_k: int | FromModel | None = FROM_MODEL,
        top_p: float | FromModel | None = FROM_MODEL,
        style: str | None = None,
        overlap_s: float | None = None,
        vocal_noise: VocalNoise = NOISE_AUTO,
        mix: MixOptions = MixOptions(),
        on_progress: Progress | None = None,
    ) -> Take:
        """Accompany one vocal of any length.

        Guidance and sampling are the model's recommended ones (:attr:`sampling`) unless they are given.

        Args:
            vocal: A file, sound, or an array of numpy or torch, ``[L]`` or ``[channels, L]``; of any rate.
            rate_hz: Sample rate of an array.
            seed: The same seed gives the same take on the same machine.
            guidance: 1 follows the vocal as in training, above 1 exaggerates it, 0 ignores it.
            temperature: Below 1 more conventional, 0 always the likeliest token.
            top_k: Draw among this many likeliest tokens; None for all.
            top_p: Draw among the likeliest tokens that reach this probability together; None for all.
            style: Name of a style, for models trained with them.
            overlap_s: Seconds of each window of a long vocal that the window before has written; default: half.
            vocal_noise: Standard deviation of noise on the vocal before it is tokenized, 0 for none; ``auto`` is that
                of training (:attr:`trained_noise_sigma`), less for a soft vocal.
            mix: Loudness, gain, sample rate and channels.
            on_progress: Called with the share done; may raise to cancel.

        Raises:
            RequestError: The vocal is missing, unreadable, silent or holds NaN; an option is out of range.
        """
        (take,) = self.accompany_batch(
            [load_vocal(vocal, rate_hz)],
            seeds=[seed],
            options=changed_sampling(self.sampling, guidance, temperature, top_k, top_p),
            style=style,
            overlap_s=overlap_s,
            vocal_noise=vocal_noise,
            mix=mix,
            on_progress=on_progress,
        )
        return take

    def accompany_batch(
        self,
        vocals: Sequence[Vocal],
        *,
        seeds: Sequence[int],
        options: SamplingOptions | None = None,
        style: str | None = None,
        overlap_s: float | None = None,
        vocal_noise: VocalNoise | Sequence[float] = NOISE_AUTO,
        mix: MixOptions = MixOptions(),
        on_progress: Progress | None = None,
    ) -> list[Take]:
        """Accompany several vocals in one batch; arguments as :meth:`accompany`, with one seed for each vocal.

        ``options`` are guidance and sampling, None for the model's. ``vocal_noise`` may be a number for each vocal. The
        real-time factor of each take is that of the batch.
        """
        if not vocals or len(vocals) != len(seeds):
            raise ValueError(f"need one seed for each vocal, got {len(vocals)} vocals and {len(seeds)} seeds")
        began = time.perf_counter()
        chosen_style = style_id(self.networks, self.styles, style)
        overlap = overlap_units(self.window, self.right_context, overlap_s)
        options = self.sampling if options is None else options
        each = [vocal_noise] * len(vocals) if isinstance(vocal_noise, str | float | int) else list(vocal_noise)
        songs = []
        for vocal, seed, noise in zip(map(load_vocal, vocals), seeds, each, strict=True):
            peak = float(np.abs(vocal.audio.samples).max())
            sigma = noise_sigma(noise, self.trained_noise_sigma, peak)
            songs.append(Song.of(vocal, seed, self.window, overlap, self.right_context, sigma))
        counter = ShareCounter(sum(len(song.windows) for song in songs) * len(self.networks), on_progress)
        for number in range(max(len(song.windows) for song in songs)):
            active = [song for song in songs if number < len(song.windows)]
            for prefix in sorted({song.windows[number].prefix for song in active}):
                together = [song for song in active if song.windows[number].prefix == prefix]
                self._write_window(together, number, options, chosen_style, counter)
        decoded = [self._sound(song) for song in songs]
        sounds = [mix_take(song.vocal, sound, mix) for song, sound in zip(songs, decoded, strict=True)]
        factor = (time.perf_counter() - began) / sum(song.vocal.duration_s for song in songs)
        takes = []
        settings = asdict(options) | {"style": style, "overlap_s": float(overlap * GRID_S)}
        settings |= {"stages": len(self.networks), "vocal_noise": vocal_noise if isinstance(vocal_noise, str) else each}
        model = model_facts(self.networks, self.tokenizers, self.origin, self.card, self.window)
        facts = {"model": model, "machine": machine_facts(self.device, self.precision), "real_time_factor": factor}
        for index, (song, sound, mixed) in enumerate(zip(songs, decoded, sounds, strict=True)):
            record = take_record(songs, index, settings, mix, mixed) | facts
            tokens = {name: ids.numpy() for name, ids in song.written.items()}
            takes.append(Take(mixed.instrumental, mixed.mix, sound, tokens, factor, record))
        return takes

    def stream(
        self,
        blocks: Iterable[Audio],
        *,
        seed: int = 0,
        options: SamplingOptions | None = None,
        live: LiveOptions = LiveOptions(),
        style: str | None = None,
        vocal_noise: VocalNoise = NOISE_AUTO,
    ) -> Iterator[Audio]:
        """Accompany a vocal while it is sung.

        Args:
            blocks: The vocal, a piece at a time: any lengths, all of one rate.
            seed: As in :meth:`accompany`.
            options: Guidance and sampling; None for the model's.
            live: Sizes of the steps and of their context.
            style: As in :meth:`accompany`.
            vocal_noise: As in :meth:`accompany`; ``auto`` does not know how soft the vocal will be.

        Yields:
            Mono accompaniment at the acoustic tokenizer's rate (24 kHz), piece after piece, in all as long as the
            vocal. A piece depends on the vocal up to :attr:`LiveSession.look_ahead_s` after its end.

        Raises:
            RequestError: The stages need the whole vocal (prefix conditioning), or blocks differ in rate.
        """
        session = self.live_session(seed=seed, options=options, live=live, style=style, vocal_noise=vocal_noise)
        for block in blocks:
            yield from session.push(block)
        yield from session.finish()

    def live_session(
        self,
        *,
        seed: int = 0,
        options: SamplingOptions | None = None,
        live: LiveOptions = LiveOptions(),
        style: str | None = None,
        vocal_noise: VocalNoise = NOISE_AUTO,
    ) -> LiveSession:
        """The session behind :meth:`stream`, for callers that push and pull at their own pace."""
        chosen_style = style_id(self.networks, self.styles, style)
        return LiveSession(
            self.networks,
            self.tokenizers,
            self.sampling if options is None else options,
            live,
            seed,
            self.window,
            chosen_style,
            noise_sigma(vocal_noise, self.trained_noise_sigma),
        )

    # --- within -----------------------------------------------------------------------------------------------

    def _write_window(
        self, songs: Sequence[Song], number: int, options: SamplingOptions, style_id: int, counter: ShareCounter
    ) -> None:
        """Write one window of several songs, whose prefixes are equally long."""
        pairs = [(song, song.windows[number]) for song in songs]
        conditions: dict[str, Tensor] = {}
        for stream, tokenizer in vocal_streams(self.networks, self.tokenizers):
            rate_hz = tokenizer.identity.sample_rate_hz
            noisy = stream.name == VOCAL_SEMANTIC.name
            clips = [song.cut(window, self.window, rate_hz, noisy) for song, window in pairs]
            conditions[stream.name] = tokenizer.encode(torch.stack(clips)).cpu()
            for (song, window), ids in zip(pairs, conditions[stream.name], strict=True):
                song.append(stream, window, ids)
        if STYLE.name in condition_names(self.networks):
            conditions[STYLE.name] = torch.full((len(songs), 1, 1), style_id)
        for network in self.networks:
            target = network.model.layout.target
            frames, known = frames_at(target, self.window), frames_at(target, pairs[0][1].prefix)
            prefix = torch.stack([song.prefix(target, window) for song, window in pairs]) if known else None
            seeds = [window_seed(song.seed, network.role, window.start) for song, window in pairs]
            progress = counter.within(known, frames)
            ids = generate(
                network.model, conditions, options, seeds, frames=frames, prefix=prefix, on_frame=progress
            ).cpu()
            counter.next(len(songs))
            conditions[target.name] = ids
            for (song, window), written in zip(pairs, ids, strict=True):
                song.append(target, window, written)

    def _sound(self, song: Song) -> Audio:
        """Decode a song's acoustic tokens, up to the vocal's end."""
        streams = (INSTRUMENTAL_COARSE.name, INSTRUMENTAL_FINE.name)
        codes = torch.cat([song.written[name] for name in streams if name in song.written])
        acoustic, vocal = self.tokenizers.acoustic, song.vocal
        rate_hz = acoustic.identity.sample_rate_hz
        length = round(vocal.samples.shape[1] * rate_hz / vocal.rate_hz)
        return Audio(render(acoustic, codes)[None, :length], rate_hz)
