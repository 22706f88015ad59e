"""Audio chat models of transformers: which class loads each, and how it takes three sounds in one prompt.

Most families take several sounds in a turn, each where the chat template places it. Audio Flamingo 3 and Music Flamingo
take one sound: there the three are joined, with a pause between them, and the prompt gives the times of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hafm_lightning.listening.judge.base import Samples

PAUSE_S = 1.0
"""Silence between joined sounds."""
SOUND_NAMES = ("vocal.wav", "A.wav", "B.wav")


@dataclass(frozen=True)
class Family:
    """A kind of audio chat model.

    Attributes:
        model_class: Its class in transformers.
        sounds: ``separate``: three sounds in one turn; ``joined``: one sound that holds all three.
        part: Attribute of the configuration that describes the part which writes text, where ``model_class`` is the
            class of this part alone; empty where it is that of the whole model.
    """

    model_class: str
    sounds: Literal["separate", "joined"] = "separate"
    part: str = ""


# The Omni models are loaded without the parts that speak: a judge writes. The class of the whole Qwen2.5-Omni also
# needs a pickle (spk_dict.pt), and cannot list the weights that are missing.
FAMILIES: Mapping[str, Family] = {
    "qwen2_audio": Family("Qwen2AudioForConditionalGeneration"),
    "qwen2_5_omni": Family("Qwen2_5OmniThinkerForConditionalGeneration", part="thinker_config"),
    "qwen3_omni_moe": Family("Qwen3OmniMoeThinkerForConditionalGeneration", part="thinker_config"),
    "audioflamingo3": Family("AudioFlamingo3ForConditionalGeneration", sounds="joined"),
    "musicflamingo": Family("MusicFlamingoForConditionalGeneration", sounds="joined"),
}
"""``model_type`` in config.json -> family."""
FALLBACK_CLASSES = ("AutoModelForMultimodalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM")
"""For families that are not in the table: the first of transformers' automatic classes that knows the model."""


def turn(family: Family, sounds: Sequence[Samples], rate_hz: int, text: str) -> tuple[list[Any], list[Samples]]:
    """Content of the user's turn, for a chat template, and the sounds in it.

    Args:
        family: Of the model.
        sounds: Vocal, first and second mix, each ``[L]`` at ``rate_hz``.
        rate_hz: Sample rate.
        text: The question.
    """
    if family.sounds == "separate":
        content: list[Any] = []
        for name in SOUND_NAMES:
            content += [{"type": "text", "text": f"{name}: "}, {"type": "audio"}, {"type": "text", "text": "\n"}]
        return [*content, {"type": "text", "text": text}], list(sounds)
    pause = np.zeros(round(PAUSE_S * rate_hz), dtype=np.float32)
    parts, times, start_s = [], [], 0.0
    for name, sound in zip(SOUND_NAMES, sounds, strict=True):
        end_s = start_s + len(sound) / rate_hz
        times.append(f"{name} from {start_s:.1f} s to {end_s:.1f} s")
        parts += [sound, pause]
        start_s = end_s + PAUSE_S
    told = f"The sound holds three recordings: {', '.join(times)}.\n{text}"
    return [{"type": "audio"}, {"type": "text", "text": told}], [np.concatenate(parts[:-1])]
