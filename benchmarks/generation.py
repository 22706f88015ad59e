"""How fast is generation? Steps against MusicGen's decoder and against memory bandwidth, takes against real time.

    python benchmarks/generation.py --device cpu --json benchmarks/results/generation_cpu.json
    python benchmarks/generation.py --device cuda --json benchmarks/results/generation_cuda.json
    python benchmarks/generation.py --parts song --model demo/model --song-s 180        # a trained model's seams

Stages have the paper's size and random weights: time does not depend on what is learnt. Within a part, what is compared
takes turns, and medians over the rounds are reported, so that other programs on the machine disturb both alike; the
load average is written down too. Parts that need hardware which is not there are reported as "not run".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from _facts import machine, peak_memory_bytes
from _seams import seam_test

from hafm_lightning.accompanist import Accompanist
from hafm_lightning.accompanist.stage_network import Precision, StageNetwork, build_network, pick_precision
from hafm_lightning.audio import Audio, resample, write_audio
from hafm_lightning.kernels import for_inference
from hafm_lightning.kernels.base import WeightPrecision
from hafm_lightning.kernels.cpu.processor import multiplies_bf16
from hafm_lightning.modeling.decoding import Decoder, decoder_for
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.transformer import Transformer
from hafm_lightning.stages import CoarseStage, FineStage, SemanticStage
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer, OfflineSemanticTokenizer
from hafm_lightning.tokens import CLIP_DURATION_S
from hafm_lightning.toyband.corpus import synthesise_song

PAPER = {"pattern": "flattened", "conditioning": "prefix"}
PRESETS: Mapping[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "paper": (PAPER, PAPER, PAPER),
    "live": (
        {"pattern": "flattened", "conditioning": "aligned"},
        {"pattern": "delay", "conditioning": "aligned"},
        {"pattern": "nonautoregressive", "conditioning": "aligned"},
    ),
}
"""Name -> settings of the semantic, coarse and fine stages."""
CONTEXT_STEPS = 150
"""Steps in the cache when a step is compared with MusicGen's."""
STEPS_TIMED = 24
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
PRECISIONS: tuple[WeightPrecision, ...] = ("fp32", "bf16", "int8")
PARTS = ("step", "bandwidth", "live", "song", "gpu")


def main() -> None:
    """Run the parts asked for; print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=5, help="turns of everything that is compared")
    parser.add_argument("--song-s", type=float, default=180.0, help="length of the long vocal, in seconds")
    parser.add_argument("--model", help="a model folder for the long vocal; default: random stages of preset live")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    runs: dict[str, Callable[[], Any]] = {
        "step": lambda: compare_steps(arguments.rounds),
        "bandwidth": lambda: compare_bandwidth(arguments.rounds),
        "live": lambda: time_live(arguments.rounds),
        "song": lambda: time_song(arguments.song_s, arguments.model),
        "gpu": lambda: time_gpu(arguments.device),
    }
    results: dict[str, Any] = {"machine": machine(arguments.threads) | {"cpu_bf16": multiplies_bf16()}}
    for part in arguments.parts:
        wanted = "cuda" if part == "gpu" else "cpu"
        results[part] = runs[part]() if arguments.device == wanted else "not run"
        print(f"{part}: {json.dumps(results[part], indent=1)}", flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


# --- one step ---------------------------------------------------------------------------------------------------


def compare_steps(rounds: int) -> dict[str, Any]:
    """One guided step of a coarse stage against one of the same-size MusicGen decoder, both at 150 steps of context."""
    networks = {name: coarse_network("aligned", name) for name in PRECISIONS}
    ours = {name: stage_step(stage_decoder(network.model, CONTEXT_STEPS)) for name, network in networks.items()}
    theirs = musicgen_step(CONTEXT_STEPS)
    times: dict[str, list[float]] = {name: [] for name in (*PRECISIONS, "musicgen")}
    for _ in range(rounds):
        for name, step in (*ours.items(), ("musicgen", theirs)):
            times[name].append(timed(step, STEPS_TIMED))
    chosen = automatic_precision("aligned")
    milliseconds = {name: round(1000 * statistics.median(values), 2) for name, values in times.items()}
    ratios = [theirs_s / ours_s for theirs_s, ours_s in zip(times["musicgen"], times[chosen], strict=True)]
    return {
        "milliseconds_a_step": milliseconds,
        "auto_precision": chosen,
        "faster_than_musicgen": round(statistics.median(ratios), 2),
        "wanted": 3.0,
    }


def automatic_precision(conditioning: Literal["prefix", "aligned"]) -> WeightPrecision:
    """What ``auto`` takes for a coarse stage of the paper's size on this processor."""
    network = network_of(CoarseStage(pattern="flattened", conditioning=conditioning), "coarse")
    return pick_precision("auto", torch.device("cpu"), [network])[0]


def coarse_network(conditioning: Literal["prefix", "aligned"], precision: WeightPrecision) -> StageNetwork:
    """A coarse stage of the paper's size, on the CPU."""
    network = network_of(CoarseStage(pattern="flattened", conditioning=conditioning), "coarse")
    return replace(network, model=for_inference(network.model, torch.device("cpu"), precision))


def stage_decoder(model: TokenModel, context: int, clips: int = 1) -> Decoder:
    """A decoder of clips of 10 s with about ``context`` steps in its cache."""
    layout = model.layout
    frames = layout.target.frames(CLIP_DURATION_S)
    conditions = {
        stream.name: torch.randint(
            stream.vocabulary, (clips, stream.codebooks, stream.frames(CLIP_DURATION_S)), device=model.device
        )
        for stream in layout.conditions
    }
    probe = Decoder(model, frames, SamplingOptions(), [0])
    known = max(1, (context - probe.plan.condition_steps) // layout.target.codebooks)
    prefix = torch.randint(layout.target.vocabulary, (clips, layout.target.codebooks, known))
    decoder = decoder_for(model)(model, frames, SamplingOptions(), list(range(clips)), prefix=prefix)
    decoder.condition(conditions)
    decoder.advance(known + 1)
    return decoder


def stage_step(decoder: Decoder) -> Callable[[], None]:
    """A function that decodes the next step; after :data:`STEPS_TIMED` of them it begins again where it began."""
    first = decoder.step

    @torch.inference_mode()
    def step() -> None:
        if decoder.step == first + STEPS_TIMED:
            decoder.step = first
        decoder._advance_one()

    return step


def musicgen_step(context: int) -> Callable[[], None]:
    """The same of transformers' MusicGen decoder with its cache: 12 layers of width 512, two rows, four codebooks.

    Its feed-forward width makes its layers as large as ours; without text its cross-attention is skipped, which
    favours it.
    """
    from transformers import MusicgenForCausalLM
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    config = MusicgenDecoderConfig(
        vocab_size=1024,
        num_hidden_layers=12,
        hidden_size=512,
        num_attention_heads=8,
        ffn_dim=2048,
        num_codebooks=4,
        pad_token_id=1024,
        bos_token_id=1024,
    )
    model = MusicgenForCausalLM(config).eval()
    with torch.inference_mode():
        cache = model(torch.randint(1024, (2 * 4, context)), use_cache=True).past_key_values
    ids = torch.randint(1024, (2 * 4, 1))

    def step() -> None:
        with torch.inference_mode():
            model(ids, past_key_values=cache, use_cache=True)

    return step


# --- bandwidth --------------------------------------------------------------------------------------------------


def compare_bandwidth(rounds: int) -> dict[str, Any]:
    """Steps of the paper's flattened coarse stage against reading its weights and cache once, in the same run."""
    found: dict[str, Any] = {precision: compare_reading(precision, rounds) for precision in PRECISIONS}
    return found | {"auto_precision": automatic_precision("prefix"), "wanted_ratio": 1.5}


def compare_reading(precision: WeightPrecision, rounds: int) -> dict[str, Any]:
    """The same with weights of one precision."""
    model = coarse_network("prefix", precision).model
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in Transformer(model.config.backbone).parameters())
    weights += model.head_weight[0].numel()  # a step reads one codebook's head
    block = torch.ones(1 << 26)  # 256 MB: far more than the caches hold
    steps = {"early": 1100, "middle": 2500, "late": 3900}
    found: dict[str, Any] = {}
    speeds, times = [], {name: [] for name in steps}
    decoders = {name: stage_decoder(model, context) for name, context in steps.items()}
    functions = {name: stage_step(decoder) for name, decoder in decoders.items()}
    for _ in range(rounds):
        for name, function in functions.items():
            speeds.append(4 * block.numel() / timed(block.sum, 4))
            times[name].append(timed(function, STEPS_TIMED))
    bandwidth = statistics.median(speeds)
    found["gigabytes_a_second"] = round(bandwidth / 1e9, 2)
    for name, decoder in decoders.items():
        cache, visible = decoder.cache, decoder.plan.condition_steps + decoder.step + 1
        assert cache is not None
        shares = (cache.keys, cache.values)
        held = sum(tensor[:, :, :, :visible].numel() * tensor.element_size() for tensor in shares)
        reading_s = (WEIGHT_BYTES[precision] * weights + held) / bandwidth
        step_s = statistics.median(times[name])
        found[name] = {
            "steps_in_cache": visible,
            "megabytes_of_weights": round(WEIGHT_BYTES[precision] * weights / 1e6, 1),
            "megabytes_of_cache": round(held / 1e6, 1),
            "milliseconds_a_step": round(1000 * step_s, 2),
            "milliseconds_reading": round(1000 * reading_s, 2),
            "ratio": round(step_s / reading_s, 2),
        }
    return found


# --- takes ------------------------------------------------------------------------------------------------------


def time_live(rounds: int) -> dict[str, Any]:
    """Real-time factor of preset ``live`` with stages of the paper's size, whole and streamed."""
    vocal = toy_vocal(CLIP_DURATION_S)
    bands = {name: random_band("live", "cpu", name) for name in PRECISIONS}
    whole: dict[str, list[float]] = {name: [] for name in bands}
    streamed: dict[str, list[float]] = {name: [] for name in bands}
    for band in bands.values():  # what is made once is made now
        for _piece in band.stream([Audio(vocal.samples[:, : vocal.rate_hz], vocal.rate_hz)]):
            pass
    for _ in range(max(1, rounds // 2)):
        for name, band in bands.items():
            whole[name].append(band.accompany(vocal).real_time_factor)
            began = time.perf_counter()
            for _piece in band.stream([vocal]):
                pass
            streamed[name].append((time.perf_counter() - began) / vocal.duration_s)
    return {
        "real_time_factor": {name: round(statistics.median(values), 3) for name, values in whole.items()},
        "real_time_factor_streamed": {name: round(statistics.median(values), 3) for name, values in streamed.items()},
        "auto_precision": random_band("live", "cpu").precision,
        "look_ahead_s": round(bands["int8"].live_session().look_ahead_s, 3),
        "wanted": 1.0,
    }


def time_song(duration_s: float, model: str | None) -> dict[str, Any]:
    """A long vocal: speed, memory and the joints of its windows. The singer is synthesised by another process."""
    band = Accompanist.from_pretrained(model, device="cpu") if model else random_band("live", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocal.wav"
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
            other.submit(write_toy_vocal, path, duration_s).result()
        before = peak_memory_bytes()
        take = band.accompany(path)
    peak = peak_memory_bytes()
    seams = seam_test(take.decoded, take.record["borders_s"])
    return {
        "model": model or "random stages of preset live",
        "precision": band.precision,
        "seconds": duration_s,
        "real_time_factor": round(take.real_time_factor, 3),
        "peak_memory_gib": round(peak / 2**30, 2),
        "peak_memory_gib_before_the_vocal": round(before / 2**30, 2),
        "joints": seams.joints,
        "level_jump_db_at_joints_and_elsewhere": [round(value, 2) for value in seams.level_db],
        "flux_at_joints_and_elsewhere": [round(value, 3) for value in seams.flux],
        "p_values": {"level": round(seams.level_p, 3), "flux": round(seams.flux_p, 3)},
    }


def write_toy_vocal(path: Path, duration_s: float) -> None:
    """A toy singer as a file."""
    write_audio(path, toy_vocal(duration_s))


def time_gpu(device: str) -> Any:
    """Steps beside their reading bound, and takes of both presets, on a GPU."""
    if device != "cuda" or not torch.cuda.is_available():
        return "not run"
    from _gpu_generation import measure_steps, time_takes

    return {"steps": measure_steps(device, tiny=False)} | {preset: time_takes(preset) for preset in PRESETS}


def random_band(preset: str, device: str, precision: Precision = "auto") -> Accompanist:
    """A band of the paper's size with random weights, and offline tokenizers trained on a toy song."""
    song = synthesise_song(0, 20.0)
    sounds = [song.stems[name].mono() for name in ("vocals", "other")]
    pair = Tokenizers(
        OfflineSemanticTokenizer.train([resample(sound.samples[0], sound.rate_hz, 16000) for sound in sounds]),
        OfflineAcousticTokenizer.train([resample(sound.samples[0], sound.rate_hz, 24000) for sound in sounds]),
    )
    semantic, coarse, fine = PRESETS[preset]
    networks = [
        network_of(SemanticStage(**semantic), "semantic", pair),
        network_of(CoarseStage(**coarse), "coarse", pair),
        network_of(FineStage(**fine), "fine", pair),
    ]
    return Accompanist(networks, pair, device=device, precision=precision)


def network_of(
    stage: SemanticStage | CoarseStage | FineStage,
    role: Literal["semantic", "coarse", "fine"],
    pair: Tokenizers | None = None,
) -> StageNetwork:
    """A stage as generation needs it."""
    if pair is not None:
        stage.tokenizers = pair.identities()
    stage.duration_s = CLIP_DURATION_S
    return build_network(role, f"random {role} stage", stage.metadata(), stage.model.state_dict())


def toy_vocal(duration_s: float) -> Audio:
    """A toy singer, mono."""
    return synthesise_song(1, duration_s).stems["vocals"].mono()


def timed(function: Callable[[], Any], times: int) -> float:
    """Seconds for one call, on average over ``times``."""
    began = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - began) / times


if __name__ == "__main__":
    main()
