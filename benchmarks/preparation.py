"""How long does it take to prepare FMA? Each step alone, and what the whole corpus would cost.

    python benchmarks/preparation.py                  # a table, and the reasoning behind the hours
    python benchmarks/preparation.py --json out.json --seconds 20

Models have random weights: tiny ones, and ones of the real size (they cost the same as trained ones). Speeds are
seconds of audio a second of processor time of one core, so that other programs on the machine disturb them little.
Hours on a GPU are not measured but computed from each model's multiply-adds and a stated sustained speed
(``--gpu-tflops``); what stays on the processor (decoding, resampling, filter, k-means) is computed from the measured
speeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _facts import machine
from mdx_network import TINY, MdxSize, write_identity, write_mdx_network

from hafm_lightning.audio import write_audio
from hafm_lightning.preparation.quality.filters import FilterSettings, measure
from hafm_lightning.preparation.quality.fingerprint import fingerprint
from hafm_lightning.preparation.shard_work import single_threaded
from hafm_lightning.shards import STORED_STREAMS, map_shard, row_shape, write_shard
from hafm_lightning.songs.clips import clip_sound, with_noise
from hafm_lightning.songs.separation import MdxParameters, SeparationSettings, load_separator
from hafm_lightning.songs.song import Song
from hafm_lightning.songs.stems import Window, probe_song, read_stretch
from hafm_lightning.tokens import SEMANTIC_VOCABULARY
from hafm_lightning.toyband.corpus import synthesise_song

FMA_TRACKS, FMA_HOURS = 106_574, 8_232
"""FMA-full: 106,574 untrimmed tracks, 343 days of audio."""
KEPT_SHARE = 0.5
"""Share of clips that pass the filter, assumed for the hours: dropped clips are separated, but not tokenized."""
CLIP_S = 10.0


@dataclass(frozen=True)
class Step:
    """One measured step.

    Attributes:
        name: What was done.
        size: ``tiny``, ``real`` or empty where there is no model.
        speed: Seconds of audio a second of processor time, one core.
        gflops: Billions of floating-point operations a second of audio, or 0 where they do not matter.
        note: What the number stands for.
    """

    name: str
    size: str
    speed: float
    gflops: float
    note: str


def processor_seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """Processor time of one call, after one to warm up."""
    with single_threaded():
        work()
        began = time.process_time()
        for _ in range(repeats):
            work()
        return (time.process_time() - began) / repeats


def measured_flops(work: Callable[[], Any]) -> float:
    """Floating-point operations of a torch computation, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        work()
    return float(counter.get_total_flops())


def reading_steps(folder: Path, seconds: float) -> list[Step]:
    """Decoding, fingerprints, cutting, filtering."""
    song = synthesise_song(0, seconds)
    mixture = song.mixture
    steps = []
    for suffix in (".mp3", ".flac"):
        path = folder / f"song{suffix}"
        if suffix == ".mp3":
            import soundfile

            soundfile.write(path, mixture.samples.T, mixture.rate_hz)
        else:
            write_audio(path, mixture)
        entry = Song("song", "train", mixture=str(path))
        frames = probe_song(entry).frames

        def read(path: Path = path, frames: int = frames) -> Any:
            return read_stretch(path, mixture.rate_hz, 0, frames)

        steps.append(Step(f"decode {suffix}", "", seconds / processor_seconds(read, 3), 0, "44.1 kHz stereo"))
    mono = mixture.mono().samples[0]
    spent = processor_seconds(lambda: fingerprint([mono], mixture.rate_hz), 3)
    steps.append(Step("fingerprint", "", seconds / spent, 0, "duplicates"))
    length = round(CLIP_S * mixture.rate_hz)
    stems = song.stems["vocals"].samples[:, :length], song.accompaniment.samples[:, :length]
    window = Window(0.0, 0, length, mixture.rate_hz, *stems)

    def cut() -> Any:
        sound = clip_sound(window, 16_000, 24_000, vocal_acoustic=False)
        with_noise(sound.vocal, "clip@0.00", 0.01, 0)
        return measure(window, sound, FilterSettings())

    steps.append(Step("cut, resample, filter", "", CLIP_S / processor_seconds(cut, 3), 0, "every clip"))
    return steps


def separation_steps(folder: Path) -> list[Step]:
    """MDX-Net, by onnxruntime on one thread."""
    steps = []
    for name, size, n_fft in (("tiny", TINY, 1024), ("real", MdxSize(), 6144)):
        path = folder / f"{name}.onnx"
        multiplications = write_mdx_network(path, size)
        hop = 256 if name == "tiny" else 1024
        parameters = MdxParameters(n_fft=n_fft, hop=hop, dim_t=size.dim_t, compensation=1.0, target="vocals")
        separator = load_separator(SeparationSettings(str(path), parameters=parameters, device="cpu"))
        shape = separator.shape  # type: ignore[attr-defined]
        advance_s = shape.kept * 0.75 / separator.rate_hz  # overlap 0.25
        samples = round(shape.kept * 0.5)  # one chunk's worth: what a chunk costs, divided by how far it brings us
        mixture = np.random.default_rng(0).normal(0, 0.1, (2, samples)).astype(np.float32)
        spent = processor_seconds(lambda separator=separator, mixture=mixture: separator.separate(mixture))
        chunks = -(-samples // round(shape.kept * 0.75)) + 1
        steps.append(
            Step(
                "separate (MDX-Net)",
                name,
                advance_s / (spent / chunks),
                2e-9 * multiplications / advance_s,
                f"{path.stat().st_size / 2**20:.0f} MiB, overlap 0.25",
            )
        )
    path = folder / "identity.onnx"
    write_identity(path, MdxSize())
    parameters = MdxParameters(n_fft=6144, compensation=1.0, target="vocals")
    bare = load_separator(SeparationSettings(str(path), parameters=parameters, device="cpu"))
    mixture = np.random.default_rng(0).normal(0, 0.1, (2, 30 * bare.rate_hz)).astype(np.float32)
    spent = processor_seconds(lambda: bare.separate(mixture))
    steps.append(Step("STFT and cross-fade", "real", 30 / spent, 0, "around the network, on the processor"))
    return steps


def hubert_steps(folder: Path) -> list[Step]:
    """HuBERT up to layer 9, and k-means on its features."""
    from transformers import HubertConfig, HubertModel

    from hafm_lightning.tokenizers.hubert import HubertFeatures, HubertTokenizer
    from hafm_lightning.tokenizers.kmeans import assign, train_kmeans

    sizes = {
        "tiny": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": (16,) * 7},
        "real": {},
    }
    steps = []
    clip = torch.randn(1, round(CLIP_S * 16_000), generator=torch.Generator().manual_seed(0))
    for name, changes in sizes.items():
        model = HubertModel(HubertConfig(num_hidden_layers=9, **changes))
        features = HubertFeatures(model, do_normalize=True, origin={})
        width = model.config.hidden_size
        tokenizer = HubertTokenizer(features, torch.randn(SEMANTIC_VOCABULARY, width))
        spent = processor_seconds(lambda tokenizer=tokenizer: tokenizer.encode(clip))
        flops = measured_flops(lambda features=features: features(clip))
        steps.append(Step("HuBERT, 9 layers", name, CLIP_S / spent, flops / CLIP_S / 1e9, f"width {width}"))
    points = np.random.default_rng(0).normal(size=(20_000, 768)).astype(np.float32)
    found, _ = train_kmeans(points, SEMANTIC_VOCABULARY, iterations=2)
    began = time.process_time()
    train_kmeans(points, SEMANTIC_VOCABULARY, iterations=2)
    training = time.process_time() - began
    centroids, frames = torch.from_numpy(found), torch.from_numpy(points[:500])
    spent = processor_seconds(lambda: assign(frames, centroids), 5)
    steps.append(Step("k-means, assign", "real", CLIP_S / spent, 0, "500 centroids of width 768, float64"))
    iteration_s = training / 2 / len(points) * 128_000
    steps.append(
        Step("k-means, train", "real", 128_000 / 50 / (iteration_s * 20), 0, "once: 128,000 frames, 20 iterations")
    )
    return steps


def encodec_steps() -> list[Step]:
    """EnCodec at 6 kb/s."""
    from transformers import EncodecConfig, EncodecModel

    from hafm_lightning.tokenizers.encodec import EncodecTokenizer

    steps = []
    clip = 0.1 * torch.randn(1, round(CLIP_S * 24_000), generator=torch.Generator().manual_seed(0))
    sizes = {"tiny": {"hidden_size": 8, "num_filters": 2, "num_lstm_layers": 1, "codebook_dim": 8}, "real": {}}
    for name, changes in sizes.items():
        torch.manual_seed(0)
        model = EncodecModel(EncodecConfig(**changes)).eval()
        with torch.no_grad():
            for layer in model.quantizer.layers:
                layer.codebook.embed.normal_()
        tokenizer = EncodecTokenizer(model, origin={})
        spent = processor_seconds(lambda tokenizer=tokenizer: tokenizer.encode(clip))
        flops = measured_flops(lambda model=model: model.encoder(clip[:, None]))
        flops += lstm_flops(model, frames=round(CLIP_S * 75))
        steps.append(Step("EnCodec, encode", name, CLIP_S / spent, flops / CLIP_S / 1e9, "8 codebooks"))
    return steps


def lstm_flops(model: Any, frames: int) -> float:
    """Floating-point operations of the encoder's recurrent layers, which torch does not count."""
    layers = [module for module in model.encoder.modules() if isinstance(module, torch.nn.LSTM)]
    return float(
        sum(2 * frames * sum(p.numel() for n, p in lstm.named_parameters() if "weight" in n) for lstm in layers)
    )


def offline_steps() -> list[Step]:
    """The tokenizers that need no download."""
    from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer, OfflineSemanticTokenizer

    song = synthesise_song(0, 20.0)
    fine = song.accompaniment.mono().samples[0]
    semantic = OfflineSemanticTokenizer.train([fine[: 16_000 * 20]], max_frames=1000)
    acoustic = OfflineAcousticTokenizer.train([fine[: 24_000 * 20]], max_frames=1500)
    clip16, clip24 = torch.from_numpy(fine[None, :160_000]), torch.from_numpy(fine[None, :240_000])
    return [
        Step("offline semantic", "", CLIP_S / processor_seconds(lambda: semantic.encode(clip16)), 0, "quickstart"),
        Step("offline acoustic", "", CLIP_S / processor_seconds(lambda: acoustic.encode(clip24)), 0, "quickstart"),
    ]


def shard_steps(folder: Path) -> list[Step]:
    """Writing and reading shards."""
    clips = 512
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.integers(
            0, STORED_STREAMS[name].vocabulary, (clips, *row_shape(STORED_STREAMS[name], CLIP_S)), np.uint16
        )
        for name in ("vocal_semantic", "instrumental_semantic", "instrumental_codes")
    }
    ids = [f"song@{i * 10}.00" for i in range(clips)]
    path = folder / "shard-00000.safetensors"
    written = processor_seconds(lambda: write_shard(path, arrays, ids, CLIP_S), 3)
    read = processor_seconds(lambda: [array.sum() for array in map_shard(path).values()], 3)
    return [
        Step("write shards", "", clips * CLIP_S / written, 0, "with fsync and sha256"),
        Step("read shards", "", clips * CLIP_S / read, 0, "every id"),
    ]


def hours_for_fma(steps: list[Step], gpu_tflops: float, cores: int) -> dict[str, Any]:
    """What FMA-full costs, and why."""
    speed = {(step.name, step.size): step.speed for step in steps}
    gflops = {(step.name, step.size): step.gflops for step in steps}
    seconds = FMA_HOURS * 3600
    # Vocal and instrumental go through HuBERT, the instrumental through EnCodec; dropped clips do not.
    model_gflops = {
        "separation": gflops["separate (MDX-Net)", "real"],
        "HuBERT (2 stems)": 2 * KEPT_SHARE * gflops["HuBERT, 9 layers", "real"],
        "EnCodec": KEPT_SHARE * gflops["EnCodec, encode", "real"],
    }
    gpu_hours = {name: value * seconds / (gpu_tflops * 1e3) / 3600 for name, value in model_gflops.items()}
    per_second = {
        "decode twice (survey, shards)": 2 / speed["decode .mp3", ""],
        "fingerprint": 1 / speed["fingerprint", ""],
        "STFT": 1 / speed["STFT and cross-fade", "real"],
        "cut, resample, filter": 1 / speed["cut, resample, filter", ""],
        "k-means (2 stems)": 2 * KEPT_SHARE / speed["k-means, assign", "real"],
        "write shards": KEPT_SHARE / speed["write shards", ""],
    }
    core_hours = {name: value * FMA_HOURS for name, value in per_second.items()}
    cpu_only = {
        "separation": FMA_HOURS / speed["separate (MDX-Net)", "real"],
        "HuBERT (2 stems)": 2 * KEPT_SHARE * FMA_HOURS / speed["HuBERT, 9 layers", "real"],
        "EnCodec": KEPT_SHARE * FMA_HOURS / speed["EnCodec, encode", "real"],
    }
    on_gpu, on_cores = sum(gpu_hours.values()), sum(core_hours.values())
    workers = {n: max(on_gpu / n, on_cores / (n * cores)) for n in (1, 2, 4, 8, 16, 32)}
    return {
        "tracks": FMA_TRACKS,
        "hours_of_audio": FMA_HOURS,
        "assumed_kept_share": KEPT_SHARE,
        "assumed_gpu_tflops": gpu_tflops,
        "assumed_cores_per_worker": cores,
        "gpu_hours": gpu_hours,
        "core_hours": core_hours,
        "core_hours_without_gpu": cpu_only,
        "hours_one_gpu": workers[1],
        "hours_by_ray_workers": workers,
    }


def print_report(steps: list[Step], fma: dict[str, Any]) -> None:
    """The table and the reasoning."""
    print(f"{'step':<24}{'model':<8}{'x real time':>12}{'GFLOP/s of audio':>18}  note")
    for step in steps:
        flops = f"{step.gflops:.2f}" if step.gflops else ""
        print(f"{step.name:<24}{step.size:<8}{step.speed:>12.1f}{flops:>18}  {step.note}")
    print(
        f"\nFMA-full: {FMA_TRACKS:,} tracks, {FMA_HOURS:,} h. Assumed, not measured: a GPU that sustains "
        f"{fma['assumed_gpu_tflops']:g} TFLOP/s in float32, {KEPT_SHARE:.0%} of the clips pass the filter, and "
        f"{fma['assumed_cores_per_worker']} cores beside each GPU."
    )
    for title, key in (("GPU hours", "gpu_hours"), ("core hours", "core_hours")):
        parts = ", ".join(f"{name} {hours:.1f}" for name, hours in fma[key].items())
        print(f"{title}: {sum(fma[key].values()):.1f} ({parts})")
    print(f"one GPU: {fma['hours_one_gpu']:.1f} h: the larger of GPU hours and core hours / cores, since they overlap")
    many = ", ".join(f"{n}: {hours:.1f} h" for n, hours in fma["hours_by_ray_workers"].items())
    print(f"Ray workers with a GPU each, {many}. Units are independent; 14 kB a clip comes back.")
    without = sum(fma["core_hours_without_gpu"].values()) + sum(fma["core_hours"].values())
    print(f"without a GPU: {without:,.0f} core hours, {without / 64 / 24:,.1f} days on 64 cores")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the song that is decoded")
    parser.add_argument("--gpu-tflops", type=float, default=15.0, help="sustained float32 speed of the GPU")
    parser.add_argument("--cores", type=int, default=8, help="cores beside each GPU")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = reading_steps(folder, args.seconds)
        steps += separation_steps(folder)
        steps += hubert_steps(folder)
        steps += encodec_steps()
        steps += offline_steps()
        steps += shard_steps(folder)
    fma = hours_for_fma(steps, args.gpu_tflops, args.cores)
    print_report(steps, fma)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": machine(1),
            "steps": [asdict(step) for step in steps],
            "fma": fma,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
