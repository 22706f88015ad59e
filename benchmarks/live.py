"""Play a vocal through the live accompaniment in real time, and count underruns.

    python benchmarks/live.py --model model/ --vocal vocal.wav --out accompaniment.wav
    python benchmarks/live.py --hubert --listen-s 2        # a real-size encoder that hears 2 s at each step
    python benchmarks/live.py --seconds 30        # random stages of preset live at the paper's size, a toy singer

The vocal arrives in blocks at the pace of a microphone; the accompaniment must be ready when its turn comes: a stated
look-ahead after the vocal, plus ``--cushion-s`` for computing. A piece that comes later is an underrun, and playing
goes on from there as a sound card would. Exit code: 0 without underruns, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from generation import random_band, toy_vocal

from hafm_lightning.accompanist import Accompanist, LiveOptions
from hafm_lightning.accompanist.stage_network import pick_device
from hafm_lightning.audio import Audio, read_audio, write_audio
from hafm_lightning.tokenizers.hubert import HubertFeatures, HubertTokenizer
from hafm_lightning.tokens import SEMANTIC_VOCABULARY


@dataclass
class Player:
    """A sound card that begins ``delay_s`` after the vocal and never waits.

    Attributes:
        delay_s: Latency that the listener is told.
        rate_hz: Sample rate of the accompaniment.
        underruns: Seconds by which each late piece was late.
        pieces: What has been played.
    """

    delay_s: float
    rate_hz: int
    underruns: list[float] = field(default_factory=list)
    pieces: list[Audio] = field(default_factory=list)
    _due_s: float = 0.0  # music that has been handed over, plus the silence of underruns

    def receive(self, piece: Audio, now_s: float) -> None:
        """A piece has become ready ``now_s`` after the vocal began."""
        late_s = now_s - self.delay_s - self._due_s
        if late_s > 0:
            self.underruns.append(late_s)
            self._due_s += late_s
        self._due_s += piece.duration_s
        self.pieces.append(piece)


def main() -> int:
    """Play, report as JSON, write the sound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder or Hub id with aligned stages; default: random, paper size")
    parser.add_argument("--vocal", type=Path, help="what is sung; default: a toy singer")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the toy singer")
    parser.add_argument("--out", type=Path, help="where to write the accompaniment")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "int8"), default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--hop-s", type=float, default=LiveOptions.hop_s, help="vocal gathered before each step")
    parser.add_argument("--listen-s", type=float, default=LiveOptions.listen_s, help="vocal that is tokenized at once")
    parser.add_argument("--hubert", action="store_true", help="tokenize with a HuBERT Base of random weights")
    parser.add_argument("--block-s", type=float, default=0.02, help="length of the blocks that arrive")
    parser.add_argument("--cushion-s", type=float, default=0.5, help="time for computing, added to the look-ahead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.model:
        band = Accompanist.from_pretrained(arguments.model, device=arguments.device, precision=arguments.precision)
    else:
        band = random_band("live", arguments.device, arguments.precision)
    if arguments.hubert:
        band.tokenizers = replace(band.tokenizers, semantic=random_hubert(arguments.device))
    vocal = read_audio(arguments.vocal) if arguments.vocal else toy_vocal(arguments.seconds)
    live = LiveOptions(hop_s=arguments.hop_s, listen_s=arguments.listen_s)
    for _ in band.stream([Audio(vocal.samples[:, : vocal.rate_hz], vocal.rate_hz)], live=live):
        pass  # warm-up
    session = band.live_session(live=live)
    player = Player(session.look_ahead_s + arguments.cushion_s, session.sample_rate_hz)
    began = time.perf_counter()
    computing_s = 0.0
    for block, arrival_s in arriving(vocal, arguments.block_s):
        time.sleep(max(0.0, began + arrival_s - time.perf_counter()))
        before = time.perf_counter()
        for piece in session.push(block):
            player.receive(piece, time.perf_counter() - began)
        computing_s += time.perf_counter() - before
    before = time.perf_counter()
    for piece in session.finish():
        player.receive(piece, time.perf_counter() - began)
    computing_s += time.perf_counter() - before
    report = {
        "seconds": round(vocal.duration_s, 2),
        "precision": band.precision,
        "semantic_tokenizer": "HuBERT, random weights" if arguments.hubert else band.tokenizers.semantic.identity.kind,
        "listen_s": arguments.listen_s,
        "threads": arguments.threads,
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "look_ahead_s": round(session.look_ahead_s, 3),
        "latency_s": round(player.delay_s, 3),
        "real_time_factor": round(computing_s / vocal.duration_s, 3),
        "underruns": len(player.underruns),
        "seconds_of_silence": round(sum(player.underruns), 3),
    }
    print(json.dumps(report, indent=1))
    if arguments.out:
        sound = np.concatenate([piece.samples for piece in player.pieces], axis=1)
        write_audio(arguments.out, Audio(sound, player.rate_hz))
    return 1 if player.underruns else 0


def random_hubert(device: str) -> HubertTokenizer:
    """HuBERT Base up to layer 9, from its configuration alone: its time does not depend on its weights."""
    from transformers import HubertConfig, HubertModel

    model = HubertModel(HubertConfig(num_hidden_layers=9, attn_implementation="sdpa"))
    features = HubertFeatures(model.to(pick_device(device)), do_normalize=True, origin={"source": "random"})
    return HubertTokenizer(features, torch.randn(SEMANTIC_VOCABULARY, model.config.hidden_size))


def arriving(vocal: Audio, block_s: float) -> Iterator[tuple[Audio, float]]:
    """Blocks of the vocal, and when each is complete, in seconds."""
    length = max(1, round(block_s * vocal.rate_hz))
    for start in range(0, vocal.samples.shape[1], length):
        block = vocal.samples[:, start : start + length]
        yield Audio(np.ascontiguousarray(block), vocal.rate_hz), (start + block.shape[1]) / vocal.rate_hz


if __name__ == "__main__":
    sys.exit(main())
