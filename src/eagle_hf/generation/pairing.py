"""Checks, before anything runs, that target, draft and options of a `generate` call fit together."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Cache, EncoderDecoderCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionAndStaticFullAttentionLayer,
    LinearAttentionLayer,
    QuantizedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.utils import logging

from ..cache.growing import GrowingLayer
from ..cache.layers import goes_back_alone
from ..draft_options import DraftOptions
from ..head.modeling_eagle import EagleDraftModel
from ..target.config import TargetConfig
from ..target.modules import embedding_width, has_lm_head, input_device
from ..versions import CACHE, FP8_LAYERS, STATELESS_LAYERS, STATIC_WINDOWS_GO_BACK
from .call import CallConfig


logger = logging.get_logger(__name__)

SUPPORTED_LAYERS = (
    DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, GrowingLayer, StaticLayer, *FP8_LAYERS,
    *STATELESS_LAYERS, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer, LinearAttentionAndStaticFullAttentionLayer,
)  # fmt: skip

_QUANTIZED_REASON = (
    "but this backend rounds many tokens together, as soon as it has gathered enough of them: rejected drafts would be "
    "among them, and the text would no longer be that of plain `generate`."
)
_QUANTIZED_ADVICE = (
    "Use a DynamicCache, a quantised one with `cache_config={'backend': 'fp8'}` (from transformers 5.23 on), or "
    "generate without the draft."
)


class CannotDraft(ValueError):
    """
    The draft and the target fit together, but this call cannot be drafted.

    Args:
        reason (`str`): Why.
        advice (`str`): What whoever passed the draft can do about it.
    """

    def __init__(self, reason: str, advice: str):
        super().__init__(f"{reason} {advice}")
        self.reason = reason


def check_call(
    model: PreTrainedModel,
    draft: EagleDraftModel,
    generation_config: GenerationConfig | CallConfig,
    written: Mapping[str, Any] | None = None,
) -> None:
    """
    Checks what is known before anything has run.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        draft ([`EagleDraftModel`]): The head.
        generation_config ([`~transformers.GenerationConfig`] or [`CallConfig`]): What the call asks for.
        written (`Mapping[str, Any]`, *optional*): What it says about drafting.

    Raises:
        `ValueError`: if the draft does not fit the target, or an option of the draft is wrong.
        [`CannotDraft`]: if they do, but calls like this one are not drafted.
    """
    sample = model._sample.__func__  # asked of the object: one with adapters (PEFT) passes the question on
    if sample is not GenerationMixin._sample:
        raise CannotDraft(
            f"{type(model).__name__} writes its output in a loop of its own (`{sample.__qualname__}`), "
            "which knows nothing of drafts and may write more than a token per step.",
            "Generate without the draft.",
        )
    check_pair(model, draft)
    if input_device(model) == torch.device("meta"):
        raise ValueError(
            f"The weights of {type(model).__name__} are on the meta device, which holds shapes but no numbers. Load "
            "them with `from_pretrained`; what `device_map` offloads to the CPU or the disk may stay there."
        )
    if draft.device == torch.device("meta"):
        raise ValueError(
            "The weights of the draft are on the meta device, which holds shapes but no numbers. Load it with "
            "`EagleDraftModel.from_pretrained`."
        )
    DraftOptions.from_generation_config(draft.generation_config, written=written)
    for name in ("assistant_ensemble_weight", "speculation_type"):  # since transformers 5.24
        if getattr(generation_config, name, None) is not None:
            raise CannotDraft(
                f"Got `{name}`, which asks for another way to draft or to verify.",
                "Leave it out, or generate without the draft.",
            )
    if generation_config.use_cache is False:
        raise CannotDraft(
            "Got `use_cache=False`, but verifying drafts needs the keys and values of earlier tokens.",
            "Leave `use_cache` at its default, or generate without the draft.",
        )
    implementation = generation_config.cache_implementation
    if implementation == "quantized" and (generation_config.cache_config or {}).get("backend") != "fp8":
        raise CannotDraft(f"Got `cache_implementation='quantized'`, {_QUANTIZED_REASON}", _QUANTIZED_ADVICE)
    if implementation not in (None, "dynamic", "static", "offloaded", "offloaded_static", "quantized", "hybrid"):
        raise CannotDraft(
            f"Got `cache_implementation={implementation!r}`, but drafts are verified with a dynamic or a static cache: "
            "rejected nodes must be removed from it again.",
            "Leave `cache_implementation` unset, or generate without the draft.",
        )


def check_pair(model: PreTrainedModel, draft: EagleDraftModel) -> None:
    """
    Checks that the draft was made for a target of this shape.

    Raises:
        `ValueError`: naming both numbers that do not fit.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"EAGLE drafts need a decoder-only target, but {name} is an encoder-decoder model.")
    config, target = draft.config, TargetConfig(model.config)
    trained_for = f" It was trained for {config.base_model_name_or_path}." if config.base_model_name_or_path else ""
    if target.vocab_size != config.vocab_size:
        raise ValueError(
            f"The target {name} has a vocabulary of {target.vocab_size} tokens, but the draft was made for one of "
            f"{config.vocab_size} (`draft.config.vocab_size`). Use the draft that belongs to this target.{trained_for}"
        )
    if target.hidden_size != config.target_hidden_size:
        raise ValueError(
            f"The target {name} has hidden states of size {target.hidden_size}, but the draft reads features of size "
            f"{config.target_hidden_size} (`draft.config.target_hidden_size`). Use the draft that belongs to this "
            f"target.{trained_for}"
        )
    config.resolve_feature_layer_ids(target.num_layers)
    if config.parallel_drafting and config.mask_token_id is None:
        raise ValueError(
            "The draft proposes tokens in parallel (P-EAGLE), but its repository does not say which token stands for "
            "those that are not known yet. Pass the one it was trained with: "
            "`EagleDraftModel.from_pretrained(..., mask_token_id=...)`."
        )
    trained, used = (_last_part(name) for name in (config.base_model_name_or_path, model.config.name_or_path))
    if trained and used and trained != used:
        logger.warning_once(
            f"The draft was trained for {config.base_model_name_or_path}, and the target is "
            f"{model.config.name_or_path}. The text stays right, but if they are not closely related few tokens are "
            "accepted: `eagle-hf inspect DRAFT --target TARGET` measures it."
        )
    if draft.lm_head is None and not has_lm_head(model):
        raise ValueError(f"The draft has no `lm_head` of its own and needs the target's, but {name} has none.")
    if draft.embed_tokens is None:
        width = embedding_width(model)
        if width not in (None, config.hidden_size):
            raise ValueError(
                f"The draft has no embedding of its own and is {config.hidden_size} wide, but the embedding of {name} "
                f"is {width} wide. The head needs its own (`own_embed_tokens`)."
            )


def _last_part(name: str | None) -> str:
    # Without organisation or folder: a copy on disk is the same model.
    return (name or "").rstrip("/").rpartition("/")[2].lower()


def check_cache(cache: Cache | None, num_columns: int | None = None) -> None:
    """
    Checks that every layer of the cache can drop rejected nodes.

    Args:
        cache ([`~transformers.Cache`], *optional*): As prepared by `generate`.
        num_columns (`int`, *optional*): Columns that the text will fill at most; `None` if only its end is known.

    Raises:
        `ValueError`: naming the layer type that cannot.
    """
    if cache is None:
        raise CannotDraft(
            "The target prepares its own cache instead of a `transformers` DynamicCache, so that rejected drafts could "
            "not be removed from it.",
            "Generate without the draft.",
        )
    if isinstance(cache, EncoderDecoderCache):
        raise CannotDraft(
            "Got an EncoderDecoderCache, but EAGLE drafts need a decoder-only target.",
            "Pass a DynamicCache, or generate without the draft.",
        )
    for layer in cache.layers:
        if isinstance(layer, StaticSlidingWindowLayer) and STATIC_WINDOWS_GO_BACK:
            _check_static_window(layer, num_columns)
        elif type(layer) not in SUPPORTED_LAYERS and isinstance(layer, QuantizedLayer):
            raise CannotDraft(
                f"Got cache layers of type {type(layer).__name__}, {_QUANTIZED_REASON}", _QUANTIZED_ADVICE
            )
        elif type(layer) not in SUPPORTED_LAYERS and not goes_back_alone(layer):
            kind = f"cache layers of type {type(layer).__name__}"
            if isinstance(layer, StaticSlidingWindowLayer):
                kind = "a static cache with sliding-window layers"
            advice = f"Use a DynamicCache (leave `cache_implementation` and `{CACHE}` unset), or generate"
            if isinstance(layer, DynamicLayer) and getattr(layer, "_layer_type", None):
                advice = "The target brings them, whatever cache is asked for. Generate"
            raise CannotDraft(
                f"Got {kind}, which cannot drop the rejected nodes of a draft tree exactly.",
                f"{advice} without the draft.",
            )


def _check_static_window(layer: StaticSlidingWindowLayer, num_columns: int | None) -> None:
    """Checks that nothing leaves a window: until then, a static layer with one is like any other static layer."""
    if num_columns is None or num_columns > layer.max_cache_len:
        columns = "a text of unknown length" if num_columns is None else f"a text of up to {num_columns + 1} tokens"
        raise CannotDraft(
            f"Got a static cache with sliding-window layers, which have room for {layer.max_cache_len} columns, and "
            f"{columns}. A static layer forgets what leaves its window at once, so that the rejected nodes of a draft "
            "tree would push out columns that are still needed.",
            f"Use a DynamicCache (leave `cache_implementation` and `{CACHE}` unset), ask for a text that fits the "
            "window, or generate without the draft.",
        )
