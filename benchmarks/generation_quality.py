"""What do the shortcuts of fast generation cost a trained model?

    python benchmarks/generation_quality.py --model demo/model --json benchmarks/results/generation_quality.json

Songs that the model has not seen are synthesised and tokenized, and their true tokens scored by teacher forcing:

* **precisions**: weights as each precision of generation keeps them, against float32: change of the cross-entropy of
  the true tokens, and divergence of the distribution that tokens are drawn from (the paper's guidance and temperature);
* **filling**: a live session's non-autoregressive stage beside the keys that it keeps of earlier frames, against
  computing those frames again with each hop, and against a whole window of the length that it was trained on.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hafm_lightning.accompanist import LiveOptions
from hafm_lightning.accompanist.model_folder import ModelFolder, read_model_folder
from hafm_lightning.accompanist.stage_network import StageNetwork
from hafm_lightning.audio import resample
from hafm_lightning.kernels.cpu.compiled_step import rounded
from hafm_lightning.modeling import filling
from hafm_lightning.modeling.conditioning import null_conditions
from hafm_lightning.modeling.filling import Filler
from hafm_lightning.modeling.sampling import SamplingOptions, choose, guide
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.token_scores import token_cross_entropy
from hafm_lightning.toyband.corpus import synthesise_song

PAPER = SamplingOptions()
FIRST_SONG = 5000
"""Seeds of the songs, far from those of any corpus that `demo` makes."""


def main() -> None:
    """Score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a model folder trained on the toy band")
    parser.add_argument("--songs", type=int, default=24)
    parser.add_argument("--hops", type=int, default=24, help="hops of a live session to score")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    folder = read_model_folder(arguments.model, revision=None, stages=3, device=torch.device("cpu"))
    fine = folder.networks[-1]
    hop_s = LiveOptions().hop_s
    sung_s = (arguments.hops + 2) * hop_s + 2 * fine.duration_s
    songs = torch.utils.data.default_collate(
        [tokens(folder, FIRST_SONG + number, sung_s) for number in range(arguments.songs)]
    )
    results: dict[str, Any] = {"songs": arguments.songs, "precisions": {}, "filling": score_filling(fine, songs)}
    for network in folder.networks:
        results["precisions"][network.role] = score_precisions(network, songs)
    print(json.dumps(results, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def tokens(folder: ModelFolder, seed: int, duration_s: float) -> dict[str, Tensor]:
    """A song's tokens, stream -> ids ``[K, T]``."""
    song = synthesise_song(seed, math.ceil(duration_s))
    rate_hz = song.stems["vocals"].rate_hz
    vocal = song.stems["vocals"].mono().samples[0]
    band = sum(stem.mono().samples[0] for name, stem in song.stems.items() if name != "vocals")

    def cut(sound: Any, tokenizer: Any) -> Tensor:
        wanted_hz = tokenizer.identity.sample_rate_hz
        clip = torch.from_numpy(resample(sound, rate_hz, wanted_hz)[: round(duration_s * wanted_hz)])
        return tokenizer.encode(clip[None])[0]  # type: ignore[no-any-return]

    codes = cut(band, folder.tokenizers.acoustic)
    return {
        "vocal_semantic": cut(vocal, folder.tokenizers.semantic),
        "instrumental_semantic": cut(band, folder.tokenizers.semantic),
        "instrumental_coarse": codes[:4],
        "instrumental_fine": codes[4:],
    }


def score_precisions(network: StageNetwork, songs: dict[str, Tensor]) -> dict[str, Any]:
    """One stage with its weights rounded, on a window of the length that it was trained on."""
    layout = network.model.layout
    streams = {
        stream.name: songs[stream.name][:, :, : round(network.duration_s * stream.rate_hz)]
        for stream in (*layout.conditions, layout.target)
    }
    true = streams[layout.target.name]
    plain = network.model.eval()
    exact, drawn = scored(plain, streams)
    found: dict[str, Any] = {"cross_entropy": round(float(token_cross_entropy(exact, true).mean()), 4)}
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "bf16": lambda weight: weight.bfloat16().float(),
        "int8": lambda weight: rounded(weight)[0] * rounded(weight)[1][..., None],
        "int4": lambda weight: (weight / (scale := weight.abs().amax(-1, keepdim=True) / 7)).round() * scale,
    }
    for name, way in ways.items():
        model = copy.deepcopy(plain)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name == "head_weight" or (parameter_name.startswith("backbone") and parameter.dim() == 2):
                parameter.data.copy_(way(parameter.data))
        logits, mixed = scored(model, streams)
        change = (token_cross_entropy(logits, true) - token_cross_entropy(exact, true)).mean((1, 2))
        found[name] = {
            "cross_entropy_change": mean_and_error(change, 5),
            "divergence_of_the_draw": round(float((drawn.exp() * (drawn - mixed)).sum(-1).mean()), 6),
        }
    return found


@torch.no_grad()
def scored(model: TokenModel, streams: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits of the conditioned pass, and logarithms of the probabilities that tokens are drawn with."""
    null = streams | null_conditions(
        {stream.name: streams[stream.name] for stream in model.layout.conditions}, model.layout.conditions
    )
    logits = model(streams)
    return logits, (guide(logits, model(null), PAPER.guidance) / PAPER.temperature).log_softmax(-1)


def score_filling(network: StageNetwork, songs: dict[str, Tensor]) -> dict[str, Any]:
    """Cross-entropy of the true tokens of a live session's new frames."""
    model, target = network.model.eval(), network.model.layout.target
    if model.aligned is None or model.layout.pattern != "nonautoregressive":
        raise SystemExit("the last stage is not one that a live session fills")
    live = LiveOptions()
    new, ahead = round(live.hop_s * target.rate_hz), model.aligned.ahead
    context, window = round(live.context_s * target.rate_hz), round(network.duration_s * target.rate_hz)
    true = songs[target.name]
    conditions = {stream.name: songs[stream.name] for stream in model.layout.conditions}
    starts = range(0, true.shape[-1] - window, new)
    kept = filled_true(model, conditions, true, starts, new, ahead, context)
    found = {"kept": kept, "again": [], "whole": []}
    first = next(number for number, start in enumerate(starts) if start >= window)
    for start in starts[first:]:
        for name, begin, end in (
            ("again", start - context, start + new + ahead),
            ("whole", start - (window - new) // 2 // 3 * 3, start - (window - new) // 2 // 3 * 3 + window),
        ):
            streams = {key: ids[:, :, begin:end] for key, ids in (conditions | {target.name: true}).items()}
            with torch.no_grad():
                found[name].append(model(streams)[:, :, start - begin : start - begin + new])
    scores = {}
    for name, parts in found.items():
        logits = torch.cat(parts[first:] if name == "kept" else parts, dim=2)
        here = slice(starts[first], starts[-1] + new)
        scores[name] = token_cross_entropy(logits, true[:, :, here]).mean((1, 2))
    return {
        "frames_new_ahead_context": [new, ahead, context],
        "cross_entropy": {name: round(float(values.mean()), 4) for name, values in scores.items()},
        "kept_minus_again": mean_and_error(scores["kept"] - scores["again"], 5),
        "kept_minus_whole": mean_and_error(scores["kept"] - scores["whole"], 5),
    }


def filled_true(
    model: TokenModel, conditions: dict[str, Tensor], true: Tensor, starts: range, new: int, ahead: int, context: int
) -> list[Tensor]:
    """Logits ``[B, K, new, V]`` of each hop when every draw gives the true token."""
    options, parts, draws = SamplingOptions(guidance=1.0), [], []
    at, clips = {"start": 0}, len(true)

    def force(logits: Tensor, uniform: Tensor, options: SamplingOptions) -> Tensor:
        draws.append(logits[:, :new])
        book = (len(draws) - 1) % true.shape[1]
        return true[:, book, at["start"] : at["start"] + new + ahead]

    filling.choose = force
    try:
        filler = Filler(model, options, context)
        for start in starts:
            at["start"] = start
            heard = {name: ids[:, :, max(0, start - 30) : start + new + ahead] for name, ids in conditions.items()}
            filler.fill(heard, [0] * clips, new + ahead, new)
            parts.append(torch.stack(draws[-true.shape[1] :], dim=1))
    finally:
        filling.choose = choose
    return parts


def mean_and_error(values: Tensor, digits: int) -> list[float]:
    """Mean over songs and its standard error."""
    return [round(float(values.mean()), digits), round(float(values.std() / len(values) ** 0.5), digits)]


if __name__ == "__main__":
    main()
