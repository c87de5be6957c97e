"""Tiny random targets that read images, and prompts with an image for them."""

from dataclasses import dataclass
from typing import Any

import torch
from architectures import VOCAB_SIZE
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel


IMAGE, VISION_START, VISION_END, VIDEO = 90, 91, 92, 93  # token ids; text has those from 3 to 89

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,  # wide enough for random weights to have opinions
}
_MIXED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
# As many layers as the text part has: whoever looks for those of the decoder must not find these.
_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 8,
    "patch_size": 4, "num_channels": 3, "initializer_range": 0.2,
}  # fmt: skip
_QWEN_VISION: dict[str, Any] = {
    "depth": 3, "num_heads": 4, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3,
    "initializer_range": 0.2,
}  # fmt: skip
_QWEN_TOKENS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """
    Args:
        config: Configuration beyond the text part's.
        text: What is particular about the text part.
        image_tokens: Placeholders that an image takes in the prompt.
        is_patched: Whether images are given as patches with a grid (Qwen), not as squares of 8 x 8 pixels.
    """  # noqa: D205

    config: dict[str, Any]
    text: dict[str, Any]
    image_tokens: int = 4
    is_patched: bool = False


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        _QWEN_TOKENS | {"vision_config": _QWEN_VISION | {"embed_dim": 32, "hidden_size": 32}}, _MROPE, is_patched=True
    ),
    "qwen2_5_vl": Family(
        _QWEN_TOKENS
        | {"vision_config": _QWEN_VISION | {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48,
                                            "fullatt_block_indexes": [1], "window_size": 16}},
        _MROPE,
        is_patched=True,
    ),
    "qwen3_vl": Family(
        _QWEN_TOKENS
        | {"vision_config": _QWEN_VISION | {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48,
                                            "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}},
        _MROPE,
        is_patched=True,
    ),
    "gemma3": Family(
        {"vision_config": _VISION | {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4,
         "image_token_index": IMAGE, "boi_token_index": VISION_START, "eoi_token_index": VISION_END},
        _MIXED | {"model_type": "gemma3_text"},
    ),
    "llava": Family(
        {"vision_config": _VISION | {"model_type": "clip_vision_model", "projection_dim": 32},
         "image_token_index": IMAGE},
        {"model_type": "llama"},
    ),
    "mistral3": Family(
        {"vision_config": _VISION | {"model_type": "pixtral", "head_dim": 8}, "image_token_index": IMAGE,
         "spatial_merge_size": 1},
        {"model_type": "mistral", "sliding_window": 8},
    ),
    "internvl": Family(
        {"vision_config": _VISION | {"model_type": "internvl_vision", "image_size": [16, 16], "patch_size": [4, 4]},
         "image_token_id": IMAGE, "downsample_ratio": 0.5},
        {"model_type": "qwen2"},
    ),
}  # fmt: skip


def multimodal_target(name: str, seed: int = 0, **extra: Any) -> PreTrainedModel:
    """
    A random target of one of `FAMILIES`, with `extra` in its configuration, in evaluation mode; the global generator
    is left as it was.
    """
    family = FAMILIES[name]
    settings = family.config | {"tie_word_embeddings": False} | extra
    config = AutoConfig.for_model(name, text_config=_TEXT | family.text, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        if name == "gemma3":  # starts at zero, which would make all images equal
            torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    model.generation_config.pad_token_id = 0
    return model.eval()


def image_prompts(name: str, lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """
    Left-padded prompts: some text, an image, and text again, so many text tokens behind it per row. Every row has an
    image of its own.
    """
    family, generator = FAMILIES[name], torch.Generator().manual_seed(len(lengths))
    rows = []
    for length in lengths:
        text = torch.randint(3, IMAGE, (3 + length,), generator=generator).tolist()
        rows.append([*text[:3], VISION_START, *[IMAGE] * family.image_tokens, VISION_END, *text[3:]])
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    is_image = (ids == IMAGE).long()
    if family.is_patched:
        inputs["pixel_values"] = torch.randn(16 * len(rows), 3 * 2 * 4 * 4, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * len(rows))
        inputs["mm_token_type_ids"] = is_image
    else:
        size = 16 if name == "internvl" else 8
        inputs["pixel_values"] = torch.randn(len(rows), 3, size, size, generator=generator)
        if name == "gemma3":
            inputs["token_type_ids"] = is_image
        if name == "mistral3":
            inputs["image_sizes"] = torch.tensor([[8, 8]] * len(rows))
    return inputs
