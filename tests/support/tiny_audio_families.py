"""Tiny models of the real classes beside Qwen2-Audio, saved as the Hub saves them, with processors made offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_audio_chat import CHUNK_S, MELS, SPECIAL, make_certain, tiny_tokenizer

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'audio' %}AUDIO{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
OMNI_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]}


def make_qwen2_5_omni(folder: Path, answers: str | None = None) -> Path:
    """Qwen2.5-Omni with its talker and vocoder, as the Hub has it; with ``answers`` one that writes this text."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

    tokenizer = tiny_tokenizer(*([answers] if answers else []), named=OMNI_TOKENS)
    ids = _audio_ids(tokenizer, "audio_token_index", "image_token_index", "video_token_index")
    ids["audio_end_token_id"] = tokenizer.convert_tokens_to_ids("<|audio_eos|>")
    text = TEXT | {"vocab_size": len(tokenizer), "rope_parameters": MROPE}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 64}
    torch.manual_seed(0)
    config = Qwen2_5OmniConfig(
        thinker_config={
            "audio_config": _encoder(output_dim=64, n_window=100),
            "text_config": text,
            "vision_config": vision,
            **ids,
        },
        talker_config=TEXT | {"vocab_size": 32, "embedding_size": 64, "head_dim": 32, "rope_parameters": MROPE},
        token2wav_config={
            "dit_config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "head_dim": 32,
                "emb_dim": 8,
                "num_embeds": 32,
                "enc_channels": [8, 8, 8, 8, 24],
                "enc_attention_channels": 8,
                "enc_se_channels": 8,
                "enc_dim": 8,
                "enc_emb_dim": 8,
            },
            "bigvgan_config": {"upsample_initial_channel": 64},
        },
    )
    model = Qwen2_5OmniForConditionalGeneration(config).eval()
    if answers:
        make_certain(model.thinker, tokenizer, answers)
    model.save_pretrained(folder)
    _save_omni_processor(folder, tokenizer, "Qwen2_5OmniProcessor", "Qwen2VLImageProcessor")
    return folder


def make_qwen3_omni_moe(folder: Path, answers: str | None = None) -> Path:
    """Qwen3-Omni-MoE with its talker and vocoder, as the Hub has it; with ``answers`` one that writes this text."""
    from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration

    tokenizer = tiny_tokenizer(*([answers] if answers else []), named=OMNI_TOKENS)
    ids = _audio_ids(tokenizer, "audio_token_id", "image_token_id", "video_token_id")
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "head_dim": 32}
    text = TEXT | {"vocab_size": len(tokenizer), "rope_parameters": MROPE} | experts
    text.pop("tie_word_embeddings")
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    torch.manual_seed(0)
    config = Qwen3OmniMoeConfig(
        thinker_config={
            "audio_config": _encoder(output_dim=64, n_window=50, downsample_hidden_size=8),
            "text_config": text,
            "vision_config": vision,
            **ids,
        },
        talker_config={
            "text_config": TEXT | experts | {"vocab_size": 32, "shared_expert_intermediate_size": 16},
            "code_predictor_config": TEXT | {"vocab_size": 32, "head_dim": 32, "num_code_groups": 2},
            "thinker_hidden_size": 64,
            "spatial_merge_size": 2,
            "num_code_groups": 2,
        },
        code2wav_config={
            "codebook_size": 32,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "num_hidden_layers": 1,
            "num_quantizers": 2,
            "decoder_dim": 32,
        },
    )
    model = Qwen3OmniMoeForConditionalGeneration(config).eval()
    if answers:
        make_certain(model.thinker, tokenizer, answers)
    model.save_pretrained(folder)
    _save_omni_processor(folder, tokenizer, "Qwen3OmniMoeProcessor", "Qwen2VLImageProcessor")
    return folder


def make_flamingo(folder: Path, answers: str | None = None, music: bool = False) -> Path:
    """Audio Flamingo 3 or Music Flamingo; with ``answers`` one that writes this text."""
    import transformers

    kind = "MusicFlamingo" if music else "AudioFlamingo3"
    special = ("<sound>", "<|sound_bos|>", "<|sound_eos|>")
    tokenizer = tiny_tokenizer(*([answers] if answers else []), special=SPECIAL + special)
    names = ("audio_token_id", "audio_bos_token_id", "audio_eos_token_id")
    ids = {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in zip(names, special, strict=True)}
    config = getattr(transformers, f"{kind}Config")(
        audio_config={"model_type": "audioflamingo3_encoder"} | _encoder(),
        text_config=TEXT | {"model_type": "qwen2", "vocab_size": len(tokenizer)},
        **(ids if music else {"audio_token_id": ids["audio_token_id"]}),
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    if answers:
        make_certain(model, tokenizer, answers)
    model.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=MELS, chunk_length=CHUNK_S)
    template = CHAT_TEMPLATE.replace("AUDIO", "<sound>")
    processor = getattr(transformers, f"{kind}Processor")(extractor, tokenizer, chat_template=template)
    processor.save_pretrained(folder)
    return folder


def _encoder(**more: Any) -> dict[str, Any]:
    return {
        "num_mel_bins": MELS,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "d_model": 16,
        "max_source_positions": CHUNK_S * 50,
        **more,
    }


def _audio_ids(tokenizer: Any, audio: str, image: str, video: str) -> dict[str, int]:
    names = {audio: "<|AUDIO|>", image: "<|IMAGE|>", video: "<|VIDEO|>", "audio_start_token_id": "<|audio_bos|>"}
    names |= {"vision_start_token_id": "<|vision_bos|>", "vision_end_token_id": "<|vision_eos|>"}
    return {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in names.items()}


def _save_omni_processor(folder: Path, tokenizer: Any, name: str, image_processor: str) -> None:
    """In the Hub's form: one preprocessor_config.json for sounds and pictures, the template beside the tokenizer."""
    from transformers import WhisperFeatureExtractor

    tokenizer.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=CHUNK_S).to_dict()
    settings = extractor | {"processor_class": name, "image_processor_type": image_processor, "patch_size": 14}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    template = CHAT_TEMPLATE.replace("AUDIO", "<|audio_bos|><|AUDIO|><|audio_eos|>")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))


GEMMA_TOKENS = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}


def make_gemma4(folder: Path) -> Path:
    """Gemma 4 of random weights without its tower for pictures, as a family that is not in the table."""
    from transformers import Gemma4AudioFeatureExtractor, Gemma4Config, Gemma4ForConditionalGeneration

    tokenizer = tiny_tokenizer(special=(*SPECIAL, "<|video|>"), named=GEMMA_TOKENS)
    names = ("image_token", "boi_token", "audio_token", "boa_token")
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(GEMMA_TOKENS[name]) for name in names}
    ids["eoi_token_id"] = tokenizer.convert_tokens_to_ids("<image|>")
    ids["eoa_token_index"] = tokenizer.convert_tokens_to_ids("<audio|>")
    ids["video_token_id"] = tokenizer.convert_tokens_to_ids("<|video|>")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = Gemma4Config(
        text_config=size
        | {
            "intermediate_size": 32,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "global_head_dim": 16,
            "vocab_size": len(tokenizer),
            "vocab_size_per_layer_input": len(tokenizer),
            "hidden_size_per_layer_input": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        audio_config=size | {"num_hidden_layers": 1, "subsampling_conv_channels": [128, 4], "output_proj_dims": 32},
        vision_config=None,
        **ids,
    )
    model = Gemma4ForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads(Gemma4AudioFeatureExtractor().to_json_string()) | {"processor_class": "Gemma4Processor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("AUDIO", "<|audio|>"))
    return folder
