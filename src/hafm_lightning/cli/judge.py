"""``judge``: answers to a listening study by an audio chat model, by coherence metrics or by a model's own stages."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hafm_lightning.cli.parser import Parser, whole
from hafm_lightning.errors import RequestError

if TYPE_CHECKING:
    from hafm_lightning.listening.judge.base import JudgeSource
    from hafm_lightning.listening.judge.running import Outcome
    from hafm_lightning.listening.study import Study

JUDGES = ("audio_chat", "coherence", "stages")
VOTES_FILE = "votes.sqlite"
EXAMPLE_LENGTH = 300


def main(argv: Sequence[str]) -> int:
    """Store the judge's votes on both orders of every trial, and print the gate where the key is there.

    Raises:
        RequestError: Study, votes or key cannot be used, or the judge cannot be loaded.
    """
    arguments = _parser().parse_args(argv)
    if arguments.judge == "stages" and arguments.model is None:
        raise RequestError("--judge stages needs --model: a model folder of `export`, or a Hub id")
    if arguments.judge == "coherence" and arguments.model is not None:
        raise RequestError("--judge coherence has no model; leave --model out, or choose another judge")
    if arguments.judge != "audio_chat" and arguments.quantization != "none":
        raise RequestError(f"--quantization is for --judge audio_chat; leave it out with {arguments.judge}")
    from hafm_lightning.listening.judge.running import judge_study
    from hafm_lightning.listening.study import KEY_FILE, Key, Study

    study = Study.load(arguments.study)
    key_file = arguments.key or arguments.study / KEY_FILE
    if arguments.key is not None:
        Key.load(key_file, study)  # refused before hours of judging
    source, name = _judge_of(arguments, study)
    outcome = judge_study(
        study,
        source,
        arguments.name or name,
        arguments.votes or arguments.study / VOTES_FILE,
        devices=arguments.devices,
        accelerator=arguments.accelerator,
        retry_failures=arguments.retry_failures,
    )
    if outcome is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        print("\n".join(_summary(outcome)))
        if key_file.is_file():
            print(_gate(outcome, study, key_file))
        else:
            print(f"no key at {key_file}: the gate is not tested; `listen report` tests it")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "judge",
        "Answer a listening study automatically: each pair in both orders. The gate at the end says whether the judge "
        "can tell ground truth from random pairing; without it, what it says of a model is uninformative.",
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of the study")
    parser.add_argument(
        "--judge", choices=JUDGES, required=True, help="an audio chat model, coherence metrics, or a model's stages"
    )
    parser.add_argument("--model", help="folder or Hub id (audio_chat: the paper's model by default)")
    parser.add_argument("--revision", help="of a Hub id")
    parser.add_argument("--votes", type=Path, metavar="FILE", help=f"database of votes (default: STUDY/{VOTES_FILE})")
    parser.add_argument("--name", help="votes are stored as judge:NAME (default: the judge, and its model's name)")
    parser.add_argument("--key", type=Path, metavar="FILE", help="key for the gate (default: STUDY/key.json if there)")
    parser.add_argument(
        "--devices", type=whole(1, 1024), default=1, metavar="N", help="processes, a device each (%(default)s)"
    )
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, cuda or mps (%(default)s)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="audio_chat: weights (%(default)s)")
    parser.add_argument(
        "--quantization",
        choices=("none", "4bit"),
        default="none",
        help="audio_chat: weights in 4 bits, by bitsandbytes",
    )
    parser.add_argument("--retry-failures", action="store_true", help="ask again where this judge failed before")
    return parser


def _judge_of(arguments: Namespace, study: Study) -> tuple[JudgeSource, str]:
    """The judge, and its name among the voters."""
    if arguments.judge == "coherence":
        from hafm_lightning.listening.judge.coherence import CoherenceJudge

        return CoherenceJudge(study.criteria), "coherence"
    if arguments.judge == "stages":
        from hafm_lightning.listening.judge.stages import StagesSource

        return StagesSource(arguments.model, study.criteria, arguments.revision), _named("stages", arguments.model)
    from hafm_lightning.listening.judge.audio_chat import PAPER_MODEL, AudioChatSource

    model = arguments.model or PAPER_MODEL
    source = AudioChatSource(model, study.criteria, arguments.revision, arguments.dtype, arguments.quantization)
    return source, _named("audio_chat", model)


def _named(judge: str, model: str) -> str:
    return f"{judge}-{Path(model).name or 'model'}"


def _summary(outcome: Outcome) -> list[str]:
    both: dict[str, set[str]] = {}
    orders: dict[str, int] = {}
    for vote in outcome.votes:
        both.setdefault(vote.trial, set()).add(vote.choices.get("overall") or list(vote.choices.values())[-1])
        orders[vote.trial] = orders.get(vote.trial, 0) + 1
    whole = [trial for trial, count in orders.items() if count == 2]
    agreed = sum(len(both[trial]) == 1 for trial in whole)
    lines = [f"{outcome.voter}: {len(outcome.votes)} answers, {len(outcome.failures)} failures"]
    if whole:
        lines.append(f"both orders agree in {agreed} of {len(whole)} trials ({agreed / len(whole):.0%})")
    lines += [f"failed {count} times: {reason}" for reason, count in sorted(outcome.reasons.items())]
    if outcome.failures:
        lines.append("--retry-failures asks again")
    if outcome.example:
        lines.append(f"what it wrote, for example: {' '.join(outcome.example.split())[:EXAMPLE_LENGTH]!r}")
    return lines


def _gate(outcome: Outcome, study: Study, key_file: Path) -> str:
    from hafm_lightning.listening.report.report import build_report
    from hafm_lightning.listening.study import Key

    return build_report(study, Key.load(key_file, study), outcome.votes, outcome.failures).gate.sentence
