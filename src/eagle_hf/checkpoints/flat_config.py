"""The flat, Llama-like `config.json` that most engines read, with whatever spelling each of them wants."""

from typing import Any

import torch

from ..configuration_eagle import EagleConfig
from .rope import write_rope
from .traits import SILU


def flat_config(
    config: EagleConfig,
    weights: dict[str, torch.Tensor],
    architecture: str,
    target: str | None,
    dtype_name: str = "dtype",
    model_type: str = "llama",
) -> dict[str, Any]:
    """
    Returns everything that Llama-like configurations say about a head.

    Args:
        config ([`EagleConfig`]): Configuration of the head.
        weights (`dict[str, torch.Tensor]`): Its tensors; only a dtype is read.
        architecture (`str`): By what name the engine knows the head.
        target (`str`, *optional*): Repository of the target.
        dtype_name (`str`, defaults to `"dtype"`): `"torch_dtype"` for what was written before `transformers` 5.
        model_type (`str`, defaults to `"llama"`): Type of the configuration.
    """
    flat = {
        "architectures": [architecture],
        "model_type": model_type,
        dtype_name: dtype_of(weights),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu" if config.hidden_act in SILU else config.hidden_act,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": config.initializer_range,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": False,
        "use_cache": True,
        **write_rope(config.rope_parameters),
    }
    for name in ("draft_vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name) is not None:
            flat[name] = getattr(config, name)
    if config.target_hidden_size != config.hidden_size:
        flat["target_hidden_size"] = config.target_hidden_size
    if target is not None:
        flat["base_model_name_or_path"] = target
    return flat


def dtype_of(weights: dict[str, torch.Tensor]) -> str:
    """Returns the name of the dtype of the weights, as configurations spell it."""
    dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    return str(max(dtypes, key=lambda dtype: dtype.itemsize)).removeprefix("torch.")
