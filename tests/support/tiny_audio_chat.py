"""Tiny audio chat models of the real classes, saved as the Hub saves them, with processors made without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

CHUNK_S = 4
MELS = 16
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
CRITERIA = ("rhythm", "harmony", "overall")


def answer_text(choice: str = "A", confidence: float = 4, criteria: tuple[str, ...] = CRITERIA) -> str:
    """A correct answer with one choice by all criteria."""
    entry = {"choice": choice, "confidence": confidence, "reason": "the bass follows the voice"}
    return json.dumps(dict.fromkeys(criteria, entry))


def tiny_tokenizer(*words: str, special: tuple[str, ...] = SPECIAL, named: Mapping[str, str] | None = None) -> Any:
    """A token a byte, ``special`` tokens, ``words`` as a token each, and special tokens with a name of their own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    named = {} if named is None else {"extra_special_tokens": dict(named)}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", **named
    )


def make_qwen2_audio(folder: Path, answers: str | None = None, seed: int = 0) -> Path:
    """A Qwen2-Audio of random weights in ``folder``; with ``answers`` one that writes this text and ends.

    For that the layers pass their input on, the answer is one token, and the head maps the last token of the prompt (a
    line break) to the answer, and the answer to the end.
    """
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = tiny_tokenizer(*([answers] if answers else []))
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": MELS,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 16,
            "max_source_positions": CHUNK_S * 50,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    torch.manual_seed(seed)
    model = Qwen2AudioForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    if answers:
        make_certain(model, tokenizer, answers)
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=CHUNK_S)
    Qwen2AudioProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


@torch.no_grad()
def make_certain(model: Any, tokenizer: Any, answer: str) -> None:
    """Give a model weights with which it writes ``answer`` after every prompt, and ends."""
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            parameter.zero_()
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    (line_break,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    (written,) = tokenizer(answer, add_special_tokens=False)["input_ids"]
    head.zero_()
    head[written] = embeddings[line_break]
    head[tokenizer.eos_token_id] = embeddings[written]
