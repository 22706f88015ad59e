"""Processors of audio chat models: feature extractor, tokenizer and chat template, without the parts for pictures.

Omni models have one processor for sound, images and video. Its video part needs torchvision, which this project does
without; so only the parts that a judge needs are loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hafm_lightning.errors import RequestError

TEST_TEXT = "Which accompaniment matches the vocal better?"
"""What a tokenizer must be able to read and write."""
SOUND_PARTS = ("feature_extractor", "audio_processor")
"""Names that processors give to their feature extractor."""
_ADVICE = "the folder needs the files of its processor (preprocessor_config.json, tokenizer, chat template)"


def load_processor(folder: Path, config: Any) -> Any:
    """The processor of a model.

    Args:
        folder: Of the model.
        config: The model's configuration, as transformers reads it.

    Raises:
        RequestError: A part is missing or cannot be read.
    """
    try:
        processor = _processor_class(config).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise RequestError(f"{folder}: has no processor ({first_line(error)})\n{_ADVICE}") from error
    # without the files of one part, transformers returns the other part alone
    parts = {"feature extractor": feature_extractor(processor)}
    parts |= {name.replace("_", " "): getattr(processor, name, None) for name in ("tokenizer", "chat_template")}
    for name, part in parts.items():
        if part is None:
            raise RequestError(f"{folder}: its processor has no {name}\n{_ADVICE}")
    # without its vocabulary, it returns a tokenizer that knows no word
    ids = processor.tokenizer(TEST_TEXT, add_special_tokens=False)["input_ids"]
    if processor.tokenizer.decode(ids).strip() != TEST_TEXT:
        raise RequestError(f"{folder}: the tokenizer of its processor has no vocabulary\n{_ADVICE}")
    return processor


def feature_extractor(processor: Any) -> Any:
    """The part of a processor that takes sound; None if there is none."""
    return next((part for name in SOUND_PARTS if (part := getattr(processor, name, None)) is not None), None)


def first_line(error: Exception) -> str:
    """The start of an error's message, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _processor_class(config: Any) -> Any:
    from transformers import PROCESSOR_MAPPING, AutoFeatureExtractor, AutoProcessor, AutoTokenizer

    if type(config) not in PROCESSOR_MAPPING:
        return AutoProcessor
    whole: Any = PROCESSOR_MAPPING[type(config)]
    loaders: dict[str, Any] = {"tokenizer": AutoTokenizer, **dict.fromkeys(SOUND_PARTS, AutoFeatureExtractor)}
    if set(whole.get_attributes()) <= set(loaders):
        return AutoProcessor

    class SoundAndText(whole):  # type: ignore[misc]
        """The processor with nothing in the places of its other parts."""

        @classmethod
        def _get_arguments_from_pretrained(cls, folder: Any, processor_dict: Any = None, **settings: Any) -> list[Any]:
            return [
                loaders[name].from_pretrained(folder, local_files_only=True) if name in loaders else None
                for name in whole.get_attributes()
            ]

        @classmethod
        def get_attributes(cls) -> list[str]:
            return list(whole.get_attributes())

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    return SoundAndText
