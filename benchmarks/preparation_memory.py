"""Peak memory of `prepare` with models of the paper's size (random weights) on one long song.

    python benchmarks/preparation_memory.py --song-s 100 --json benchmarks/results/preparation_memory.json

MDX-Net, HuBERT Base (9 layers) and EnCodec work in one process, as a worker does. The song is noise; no filter is on,
so that every clip is tokenized. Songs are read in blocks, so memory should not depend on ``--song-s``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from _facts import machine, peak_memory_bytes
from mdx_network import MdxSize, write_mdx_network

from hafm_lightning.tokens import SEMANTIC_VOCABULARY

RATE_HZ = 44_100
MDX = {"n_fft": 6144, "hop": 1024, "dim_f": 2048, "dim_t": 256, "target": "vocals"}
RULES_OFF = (
    "vocal_activity_min",
    "instrumental_activity_min",
    "clipping_max",
    "silence_max",
    "dc_offset_max",
    "leakage_max",
    "loudness_min_lufs",
    "loudness_max_lufs",
    "loudness_range_max_lu",
)


def write_models(folder: Path) -> None:
    """The three models with random weights, in the formats that they are published in, and random centroids."""
    from transformers import EncodecConfig, EncodecModel, HubertConfig, HubertModel

    torch.manual_seed(0)
    HubertModel(HubertConfig()).save_pretrained(folder / "hubert")
    encodec = EncodecModel(EncodecConfig())
    with torch.no_grad():
        for layer in encodec.quantizer.layers:
            layer.codebook.embed.normal_()
    encodec.save_pretrained(folder / "encodec")
    write_mdx_network(folder / "mdx.onnx", MdxSize())
    (folder / "mdx.json").write_text(json.dumps(MDX), encoding="utf-8")
    np.save(folder / "centroids.npy", np.random.default_rng(0).normal(size=(SEMANTIC_VOCABULARY, 768)).astype("f4"))


def write_song(path: Path, seconds: float) -> None:
    """Noise, a second at a time."""
    generator = np.random.default_rng(0)
    path.parent.mkdir()
    with soundfile.SoundFile(path, "w", RATE_HZ, 2) as file:
        for _ in range(round(seconds)):
            file.write(generator.normal(0, 0.1, (RATE_HZ, 2)))


def configuration(folder: Path) -> dict[str, Any]:
    """What `prepare` is asked for."""
    return {
        "root": str(folder / "shards"),
        "corpora": [{"kind": "SongFolder", "path": str(folder / "songs")}],
        "filters": dict.fromkeys(RULES_OFF),
        "split": {"validation_share": 0.0},
        "separation": {"model": str(folder / "mdx.onnx"), "device": "cpu"},
        "tokenizers": {
            "semantic": {
                "kind": "Hubert",
                "source": str(folder / "hubert"),
                "centroids": str(folder / "centroids.npy"),
            },
            "acoustic": {"kind": "Encodec", "source": str(folder / "encodec")},
        },
        "device": "cpu",
        "engine": {"workers": 1},
        "report": {"examples": 0},
    }


def prepare(file: Path) -> tuple[float, int]:
    """Run it; seconds, and the most memory that this process has held, in bytes."""
    from hafm_lightning.cli import main as command

    began = time.perf_counter()
    if command(["prepare", "--config", str(file)]):
        raise SystemExit("prepare failed; its message is above")
    return time.perf_counter() - began, peak_memory_bytes()


def main() -> None:
    """Run `prepare` in a process of its own; print its peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--song-s", type=float, default=100.0, help="length of the song in seconds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            pool.submit(write_models, folder).result()
        write_song(folder / "songs" / "song.flac", options.song_s)
        file = folder / "prepare.yaml"
        file.write_text(yaml.safe_dump(configuration(folder)), encoding="utf-8")
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            wall_s, peak = pool.submit(prepare, file).result()
    found = {"song_s": options.song_s, "wall_s": round(wall_s, 1), "peak_gib": round(peak / 2**30, 2)}
    print(json.dumps(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": machine(1)} | found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
