"""Every family of audio chat models: a tiny model of the real class, read from a folder in the Hub's format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_audio_chat import CRITERIA, answer_text, make_qwen2_audio
from tiny_audio_families import make_flamingo, make_gemma4, make_qwen2_5_omni, make_qwen3_omni_moe

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.judge.answers import TRUNCATED
from hafm_lightning.listening.judge.audio_chat import AudioChatJudge, AudioChatSource
from hafm_lightning.listening.judge.base import Answer, Failed, Presented
from hafm_lightning.listening.judge.families import FAMILIES, turn

CPU, RATE_HZ = torch.device("cpu"), 16_000
TABLE: dict[str, Callable[..., Path]] = {
    "qwen2_audio": make_qwen2_audio,
    "qwen2_5_omni": make_qwen2_5_omni,
    "qwen3_omni_moe": make_qwen3_omni_moe,
    "audioflamingo3": make_flamingo,
    "musicflamingo": partial(make_flamingo, music=True),
}
NOISE = 0.1 * np.random.default_rng(0).standard_normal((4, RATE_HZ // 2)).astype(np.float32)


def load(folder: Path, **settings: Any) -> AudioChatJudge:
    return AudioChatSource(str(folder), CRITERIA, **{"dtype": "fp32", "most_tokens": 8, **settings}).load(CPU)


@pytest.fixture(scope="module", params=[*TABLE, "gemma4"])
def untrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AudioChatJudge:
    """A loaded model of random weights; gemma4 stands for the families that are not in the table."""
    make = TABLE.get(request.param, make_gemma4)
    return load(make(tmp_path_factory.mktemp(request.param)))


def prompt(judge: AudioChatJudge, *sounds: Any) -> Any:
    content, given = turn(judge.family, sounds, RATE_HZ, "Which accompaniment?")
    return judge.inputs([{"role": "user", "content": content}], given)


def test_the_table_of_these_tests_is_that_of_the_families() -> None:
    assert TABLE.keys() == FAMILIES.keys()


def test_the_prompt_holds_the_sounds_where_it_names_them(untrained: AudioChatJudge) -> None:
    inputs = prompt(untrained, *NOISE[:3])
    text = untrained.processor.tokenizer.decode(inputs["input_ids"][0])
    mark = untrained.audio_token
    parts = [part for part in text.split(mark) if part]  # a sound has many tokens
    if untrained.family.sounds == "joined":
        assert len(parts) == 2
        assert "vocal.wav from 0.0 s to 0.5 s, A.wav from 1.5 s to 2.0 s, B.wav from 3.0 s to 3.5 s" in parts[1]
        return
    before = [[name for name in ("vocal.wav", "A.wav", "B.wav", "Which") if name in part] for part in parts]
    assert before == [["vocal.wav"], ["A.wav"], ["B.wav"], ["Which"]]
    (name,) = [name for name in inputs if name.startswith("input_features") and "mask" not in name]
    for index, sound in enumerate(NOISE[:3]):
        alone = untrained.processor(text=[mark], audio=[sound], sampling_rate=RATE_HZ, return_tensors="pt")
        torch.testing.assert_close(inputs[name][index], alone[name][0])


def test_every_sound_reaches_the_model(untrained: AudioChatJudge) -> None:
    def logits(*sounds: Any) -> torch.Tensor:
        with torch.inference_mode():
            return untrained.model(**prompt(untrained, *sounds)).logits[0, -1]

    vocal, first, second, other = NOISE
    base = logits(vocal, first, second)
    assert torch.equal(base, logits(vocal, first, second))
    for changed in ((other, first, second), (vocal, other, second), (vocal, first, other), (vocal, second, first)):
        assert not torch.equal(base, logits(*changed))  # tiny weights make tiny differences; equal sounds make none


def test_what_is_no_answer_is_a_failure(untrained: AudioChatJudge) -> None:
    (answer,) = untrained.judge([Presented(*NOISE[:3], rate_hz=RATE_HZ)])
    assert isinstance(answer, Failed)
    assert answer.reason == TRUNCATED


@pytest.mark.parametrize("kind", TABLE)
def test_a_correct_answer_is_read(kind: str, tmp_path: Path) -> None:
    judge = load(TABLE[kind](tmp_path / kind, answer_text("B", 2)), dtype="bf16")
    (answer,) = judge.judge([Presented(*NOISE[:3], rate_hz=RATE_HZ)])
    assert isinstance(answer, Answer)
    assert {opinion.choice for opinion in answer.opinions.values()} == {"second"}


def test_a_missing_weight_of_an_omni_models_text_part_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_qwen2_5_omni(tmp_path)
    weights = load_file(folder / "model.safetensors")
    assert any(name.startswith("talker.") for name in weights)  # saved with what speaks, as on the Hub
    gone = next(name for name in sorted(weights) if name.startswith("thinker.") and "audio_tower" in name)
    weights.pop(gone)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match="1 weights are missing"):
        load(folder)


@pytest.fixture(scope="module")
def qwen2_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen2_audio(tmp_path_factory.mktemp("qwen2_audio"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content[1:] | length }}{% endfor %}", "placed 0 sounds of 3"),
        ("{{ raise_exception('one sound only') }}", "one sound only"),
    ],
)
def test_a_template_that_does_not_place_the_sounds_is_refused(
    qwen2_audio: Path, tmp_path: Path, template: str, reason: str
) -> None:
    folder = shutil.copytree(qwen2_audio, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    for name in ("processor_config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content.pop("chat_template", None)
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(RequestError, match=rf"does not take 3 sounds in one prompt \(.*{reason}"):
        list(load(folder).judge([Presented(*NOISE[:3], rate_hz=RATE_HZ)]))


def test_a_model_that_writes_its_placeholder_is_asked_again(qwen2_audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own text stands in the second prompt, where a placeholder would ask for a fourth sound."""
    judge = load(qwen2_audio)
    monkeypatch.setattr(judge.processor.tokenizer, "decode", lambda *given, **how: f"I heard {judge.audio_token}")
    (answer,) = judge.judge([Presented(*NOISE[:3], rate_hz=RATE_HZ)])
    assert isinstance(answer, Failed)
