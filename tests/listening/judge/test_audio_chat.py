"""Tiny models of the real classes, in the Hub's folder format: prompts, sounds, answers, failures, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_audio_chat import CRITERIA, answer_text, make_qwen2_audio, tiny_tokenizer

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.judge import answers, audio_chat
from hafm_lightning.listening.judge.audio_chat import AudioChatJudge, AudioChatSource
from hafm_lightning.listening.judge.base import Answer, Failed, Presented
from hafm_lightning.listening.judge.families import FAMILIES, turn

CPU = torch.device("cpu")


def presented(seconds: float = 0.5, rate_hz: int = 24_000, seed: int = 0) -> Presented:
    noise = np.random.default_rng(seed).standard_normal((3, round(seconds * rate_hz))).astype(np.float32)
    return Presented(*0.1 * noise, rate_hz=rate_hz)


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights."""
    return make_qwen2_audio(tmp_path_factory.mktemp("prose"))


@pytest.fixture(scope="module")
def certain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that always writes a correct answer: A."""
    return make_qwen2_audio(tmp_path_factory.mktemp("certain"), answer_text("A", 4))


def load(folder: Path, **settings: Any) -> AudioChatJudge:
    return AudioChatSource(str(folder), CRITERIA, **{"dtype": "fp32", "most_tokens": 12, **settings}).load(CPU)


def test_a_model_of_the_real_class_answers_from_its_folder(certain: Path) -> None:
    (answer,) = load(certain).judge([presented()])
    assert isinstance(answer, Answer)
    assert {name: (o.choice, o.confidence) for name, o in answer.opinions.items()} == dict.fromkeys(
        CRITERIA, ("first", 4.0)
    )


def test_the_prompt_holds_three_sounds_in_order_and_the_question(prose: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, calls = load(prose), []
    processor = type(judge.processor)
    original = processor.__call__

    def recorded(self: Any, **arguments: Any) -> Any:
        calls.append(arguments)
        return original(self, **arguments)

    monkeypatch.setattr(processor, "__call__", recorded)
    trial = presented(rate_hz=16_000)
    list(judge.judge([trial]))
    first, second = calls
    (text,) = first["text"]
    places = [text.index(mark) for mark in ("vocal.wav: ", "A.wav: ", "B.wav: ", "Which accompaniment")]
    assert places == sorted(places)
    assert text.count("<|AUDIO|>") == 3
    assert text.endswith("<|im_start|>assistant\n")
    for sound, own in zip(first["audio"], (trial.vocal, trial.first, trial.second), strict=True):
        np.testing.assert_array_equal(sound, own)
    # the second try: the same sounds, the answer, and what was wrong with it
    assert second["text"][0].startswith(text)
    assert "Your answer cannot be used" in second["text"][0]
    assert second["text"][0].count("<|AUDIO|>") == 3
    assert len(second["audio"]) == 3


def test_both_sides_reach_the_model(prose: Path) -> None:
    """The embedded prompt differs at A where A differs, and at B where B differs."""
    judge, trial = load(prose), presented(rate_hz=16_000)

    def logits(first: Any, second: Any) -> torch.Tensor:
        content, given = turn(judge.family, (trial.vocal, first, second), 16_000, "Which?")
        prompt = judge.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        inputs = judge.processor(text=[prompt], audio=given, sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            return judge.model(**inputs).logits[0, -1]

    base = logits(trial.first, trial.second)
    assert torch.equal(base, logits(trial.first, trial.second))
    for other in (logits(trial.vocal, trial.second), logits(trial.first, trial.vocal)):
        assert not torch.allclose(base, other, atol=1e-6)


def test_equal_questions_get_equal_answers_and_prose_is_a_failure(prose: Path) -> None:
    trials = [presented(), presented(), presented(seed=1)]
    answered = list(load(prose).judge(trials))
    assert answered == list(load(prose).judge(trials))
    assert answered[0] == answered[1]
    assert all(isinstance(one, Failed) for one in answered)


class Scripted(AudioChatJudge):
    """Writes given texts."""

    def __init__(self, judge: AudioChatJudge, *texts: str) -> None:
        self.__dict__.update(judge.__dict__)
        self.texts, self.chats = list(texts), []

    def _write(self, chat: Any, sounds: Any) -> tuple[str, bool]:
        self.chats.append([dict(message) for message in chat])
        return self.texts.pop(0), True


def test_one_second_try_is_given_for_the_form(prose: Path) -> None:
    judge = Scripted(load(prose), "I prefer A.", answer_text("B"))
    (answer,) = judge.judge([presented()])
    assert isinstance(answer, Answer)
    assert answer.opinions["overall"].choice == "second"
    assert [message["role"] for message in judge.chats[1]] == ["user", "assistant", "user"]
    judge = Scripted(load(prose), "I prefer A.", "A!", answer_text("B"))
    assert list(judge.judge([presented()])) == [Failed(answers.PROSE, "A!")]
    assert len(judge.chats) == 2


def test_an_answer_at_the_limit_of_tokens_is_truncated(certain: Path) -> None:
    (answer,) = load(certain, most_tokens=1).judge([presented()])
    assert isinstance(answer, Answer)  # complete in itself
    cut = make_qwen2_audio(certain.parent / "cut", answer_text()[:40])
    assert list(load(cut, most_tokens=1).judge([presented()])) == [Failed(answers.TRUNCATED, answer_text()[:40])]
    assert list(load(cut).judge([presented()])) == [Failed(answers.NOT_JSON, answer_text()[:40])]


def test_bf16_answers_too(certain: Path) -> None:
    judge = load(certain, dtype="bf16")
    assert judge.model.dtype == torch.bfloat16
    assert isinstance(next(judge.judge([presented()])), Answer)


def test_sounds_that_the_model_would_cut_off_are_refused(certain: Path) -> None:
    with pytest.raises(RequestError, match=r"at most 4 s, a trial has 4.5 s"):
        list(load(certain).judge([presented(4.5)]))


def test_the_identity_follows_what_changes_answers(certain: Path, prose: Path) -> None:
    sources = [
        AudioChatSource(str(certain), CRITERIA),
        AudioChatSource(str(prose), CRITERIA),
        AudioChatSource(str(certain), ("overall",)),
        AudioChatSource(str(certain), CRITERIA, dtype="fp32"),
        AudioChatSource(str(certain), CRITERIA, quantization="4bit"),
        AudioChatSource(str(certain), CRITERIA, most_tokens=9),
    ]
    assert len({source.identity for source in sources}) == len(sources)
    assert AudioChatSource(str(certain), CRITERIA).identity == sources[0].identity
    assert all(len(source.identity) == 64 for source in sources)


def test_only_special_tokens_stay_of_the_models_own_sampling(certain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(certain, tmp_path / "hot")
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 9.0, "top_k": 3, "top_p": 0.5, "repetition_penalty": 1.9}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    generation = load(folder)._generation
    assert not generation.do_sample
    assert generation.repetition_penalty in (None, 1.0)
    assert generation.eos_token_id == settings["eos_token_id"]


@pytest.mark.parametrize("missing", [("processor_config.json",), ("tokenizer.json", "tokenizer_config.json")])
def test_a_folder_without_its_processor_is_refused(certain: Path, tmp_path: Path, missing: tuple[str, ...]) -> None:
    folder = shutil.copytree(certain, tmp_path / "model")
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(RequestError, match="processor"):
        load(folder)


def test_models_that_take_no_sound_or_lack_weights_are_refused(certain: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = tiny_tokenizer()
    text_model = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    Qwen2ForCausalLM(text_model).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    with pytest.raises(RequestError, match="'qwen2' is not an audio chat model"):
        load(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no model"):
        load(tmp_path / "empty")
    with pytest.raises(RequestError, match="the folder does not exist"):
        load(tmp_path / "nowhere")
    folder = shutil.copytree(certain, tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match="1 weights are missing"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RequestError, match="the weights cannot be loaded"):
        load(folder)


def test_4_bits_need_the_library_and_a_gpu(certain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_chat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="needs bitsandbytes and accelerate: pip install bitsandbytes accelerate"):
        load(certain, quantization="4bit")
    monkeypatch.setattr(audio_chat.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RequestError, match="is for GPUs"):
        load(certain, quantization="4bit")


def test_every_family_of_the_table_exists() -> None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    for kind, family in FAMILIES.items():
        assert kind in CONFIG_MAPPING_NAMES
        assert hasattr(transformers, family.model_class)


def test_joined_sounds_are_told_apart_by_their_times() -> None:
    sounds = [np.full(round(seconds * 100), value, np.float32) for seconds, value in ((2, 1), (3, 2), (3, 3))]
    content, (sound,) = turn(FAMILIES["audioflamingo3"], sounds, 100, "Which?")
    assert [entry["type"] for entry in content] == ["audio", "text"]
    assert "vocal.wav from 0.0 s to 2.0 s, A.wav from 3.0 s to 6.0 s, B.wav from 7.0 s to 10.0 s" in content[1]["text"]
    assert len(sound) == 1000
    for value, begin, end in ((1, 0, 200), (2, 300, 600), (3, 700, 1000)):
        assert (sound[begin:end] == value).all()
    assert not sound[200:300].any()
    assert not sound[600:700].any()
