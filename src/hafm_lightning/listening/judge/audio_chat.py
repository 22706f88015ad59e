"""An audio chat model as a judge: vocal, A and B in one prompt, greedy decoding, a strict answer, one second try.

The paper asks Qwen2-Audio-7B-Instruct (section 4.1). Any audio chat model of transformers can take its place. Models
are read as data (safetensors; no code from a model's folder).
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from hafm_lightning.audio import resample
from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of, sha256_of_json
from hafm_lightning.listening.judge.answers import again, parse_answer, question
from hafm_lightning.listening.judge.base import Answer, Failed, Presented, Samples
from hafm_lightning.listening.judge.families import FALLBACK_CLASSES, FAMILIES, Family, turn
from hafm_lightning.listening.judge.processors import feature_extractor, first_line, load_processor
from hafm_lightning.tokenizers.hub import fetch_folder

PAPER_MODEL = "Qwen/Qwen2-Audio-7B-Instruct"
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""Files that are fetched from the Hub, and that decide the answers."""
MOST_TOKENS = 512
"""Tokens of an answer; three opinions take about 150."""

Dtype = Literal["bf16", "fp32"]
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class AudioChatSource:
    """Where an audio chat model is, and how it is run.

    Attributes:
        model: A folder, or ``owner/name`` on the Hub.
        criteria: Of the study.
        revision: Of a Hub id.
        dtype: Of the weights and the arithmetic.
        quantization: ``4bit`` stores weights in 4 bits (NF4, by bitsandbytes).
        most_tokens: Of an answer.
    """

    model: str
    criteria: tuple[str, ...]
    revision: str | None = None
    dtype: Dtype = "bf16"
    quantization: Literal["none", "4bit"] = "none"
    most_tokens: int = MOST_TOKENS

    @cached_property
    def folder(self) -> Path:
        """The local folder; fetched from the Hub at the first use."""
        return fetch_folder(self.model, PATTERNS, revision=self.revision, what="audio chat model")

    @cached_property
    def identity(self) -> str:
        """Over the files of the model, the question and the settings."""
        files = sorted({path for pattern in PATTERNS for path in self.folder.glob(pattern)})
        settings = [question(self.criteria), self.dtype, self.quantization, self.most_tokens]
        return sha256_of_json([{path.name: _sha256(path) for path in files}, settings])

    def load(self, device: torch.device) -> AudioChatJudge:
        """The model on a device.

        Raises:
            RequestError: It is no audio chat model, lacks its processor or a weight, or a library is missing.
        """
        import transformers
        from safetensors import SafetensorError

        if self.quantization == "4bit":
            _check_quantization(device)
        config = _config(self.folder)
        family = _family(config, self.folder)
        processor = load_processor(self.folder, config)
        if family.part:
            config = getattr(config, family.part)
        dtype = _DTYPES[self.dtype]
        how: dict[str, Any] = {"config": config, "dtype": dtype, "local_files_only": True, "use_safetensors": True}
        if self.quantization == "4bit":
            how["quantization_config"] = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
            how["device_map"] = {"": device}
        try:
            model, loading = getattr(transformers, family.model_class).from_pretrained(
                self.folder, output_loading_info=True, **how
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise RequestError(f"{self.model}: the weights cannot be loaded ({first_line(error)})") from error
        missing = sorted(loading.get("missing_keys") or ())
        if missing:  # they would be random numbers
            raise RequestError(f"{self.model}: {len(missing)} weights are missing, the first is {missing[0]}")
        if self.quantization == "none":
            model = model.to(device)
        return AudioChatJudge(model.eval(), processor, family, self.identity, self.criteria, self.most_tokens)


class AudioChatJudge:
    """A loaded model; made by :class:`AudioChatSource`."""

    def __init__(
        self, model: Any, processor: Any, family: Family, identity: str, criteria: Sequence[str], most_tokens: int
    ) -> None:
        self.model, self.processor, self.family = model, processor, family
        self.identity, self.criteria, self.most_tokens = identity, tuple(criteria), most_tokens
        self.extractor = feature_extractor(processor)
        self.rate_hz = int(self.extractor.sampling_rate)
        self.audio_token = str(getattr(processor, "audio_token", None) or "")
        self._generation = _greedy(model, processor, most_tokens)

    def judge(self, trials: Sequence[Presented]) -> Iterator[Answer | Failed]:
        """One prompt a trial, and a second one where the answer has not the form that was asked for."""
        for trial in trials:
            yield self._answer(trial)

    def _answer(self, trial: Presented) -> Answer | Failed:
        sounds = [resample(sound, trial.rate_hz, self.rate_hz) for sound in (trial.vocal, trial.first, trial.second)]
        content, given = turn(self.family, sounds, self.rate_hz, question(self.criteria))
        self._check_length(given)
        chat = [{"role": "user", "content": content}]
        text, complete = self._write(chat, given)
        answer = parse_answer(text, self.criteria, complete=complete)
        if isinstance(answer, Answer):
            return answer
        # a placeholder of a sound in the model's own text would ask for a fourth sound
        own = text.replace(self.audio_token, "") if self.audio_token else text
        chat.append({"role": "assistant", "content": [{"type": "text", "text": own}]})
        chat.append({"role": "user", "content": [{"type": "text", "text": again(answer, self.criteria)}]})
        text, complete = self._write(chat, given)
        return parse_answer(text, self.criteria, complete=complete)

    @torch.inference_mode()
    def _write(self, chat: Sequence[Any], sounds: Sequence[Samples]) -> tuple[str, bool]:
        """The model's text, and whether it ended by itself."""
        inputs = self.inputs(chat, sounds).to(self.model.device, self.model.dtype)
        written = self.model.generate(**inputs, generation_config=self._generation)
        new = written[0, inputs["input_ids"].shape[1] :]
        text = self.processor.tokenizer.decode(new, skip_special_tokens=True)
        ends = self._generation.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return text, len(new) < self.most_tokens or int(new[-1]) in ends

    def inputs(self, chat: Sequence[Any], sounds: Sequence[Samples]) -> Any:
        """What the model is given: tokens of the prompt, and features of the sounds.

        Raises:
            RequestError: The chat template or the processor does not take these sounds.
        """
        from jinja2 import TemplateError

        try:
            prompt = self.processor.apply_chat_template(list(chat), add_generation_prompt=True, tokenize=False)
            placed = prompt.count(self.audio_token) if self.audio_token else len(sounds)
            if placed != len(sounds):  # some processors would leave sounds out without an error
                raise ValueError(f"its chat template placed {placed} sounds of {len(sounds)}")
            # no `padding`: families differ in how they pad sounds, and one prompt needs none
            return self.processor(text=[prompt], audio=list(sounds), sampling_rate=self.rate_hz, return_tensors="pt")
        except (TemplateError, ValueError, TypeError, KeyError, IndexError) as error:
            raise RequestError(
                f"this model does not take {len(sounds)} sounds in one prompt ({first_line(error)})\n"
                f"choose one of the types {', '.join(FAMILIES)}, such as {PAPER_MODEL}"
            ) from error

    def _check_length(self, sounds: Sequence[Samples]) -> None:
        # the extractor cuts longer sounds off without a word; where sounds are joined it takes several chunks
        longest_s = float(getattr(self.extractor, "chunk_length", 0) or 0)
        longest_s = float(getattr(self.processor, "max_audio_len", 0) or longest_s)
        seconds = max(len(sound) for sound in sounds) / self.rate_hz
        if longest_s and seconds > longest_s:
            raise RequestError(
                f"this model takes sounds of at most {longest_s:g} s, a trial has {seconds:.1f} s\n"
                "build a study of shorter clips, or choose another model"
            )


def _greedy(model: Any, processor: Any, most_tokens: int) -> Any:
    """Greedy decoding: of the model's own settings only the ids of special tokens stay."""
    from transformers import GenerationConfig

    own = copy.deepcopy(model.generation_config)
    end = own.eos_token_id if own.eos_token_id is not None else processor.tokenizer.eos_token_id
    pad = own.pad_token_id if own.pad_token_id is not None else processor.tokenizer.pad_token_id
    pad = (end[0] if isinstance(end, list) else end) if pad is None else pad
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        max_new_tokens=most_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=end,
        pad_token_id=pad,
    )


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"{folder}: holds no model that transformers knows ({first_line(error)})\n"
            f"name a folder or Hub id of an audio chat model, such as {PAPER_MODEL}"
        ) from error


def _family(config: Any, folder: Path) -> Family:
    """The family of a model; RequestError if it takes no sound or writes no text."""
    import transformers

    kind = str(config.model_type)
    known = FAMILIES.get(kind)
    if known is not None:
        if not hasattr(transformers, known.model_class):
            raise RequestError(f"{kind} models need a newer transformers than {transformers.__version__}; upgrade it")
        return known
    takes_sound = getattr(config, "audio_config", None) is not None
    for name in FALLBACK_CLASSES if takes_sound else ():
        automatic = getattr(transformers, name, None)
        if automatic is not None and type(config) in automatic._model_mapping:
            return Family(name)
    raise RequestError(
        f"{folder}: a model of type {kind!r} is not an audio chat model\n"
        f"choose one of the types {', '.join(FAMILIES)}, such as {PAPER_MODEL}"
    )


def _check_quantization(device: torch.device) -> None:
    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(
            f"--quantization 4bit needs {' and '.join(missing)}: pip install {' '.join(missing)}\n"
            "or run without --quantization"
        )
    if device.type == "cpu":
        raise RequestError("--quantization 4bit is for GPUs; run without it on a CPU")


def _sha256(path: Path) -> str:
    # the Hub's cache names the files of weights by their sha256
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else sha256_of(path)
