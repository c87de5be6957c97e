"""
The layout of DeepSpec, DeepSeek's trainer, in which its EAGLE-3 heads for Qwen3 targets are (`deepseek-ai/eagle3_*`): a
flat configuration derived from the target's, of architecture `Qwen3Eagle3Model`, with `target_layer_ids`, outputs of
layers counted from 0, and tensors `layers.N.*` of Qwen3 layers, with an embedding and an `lm_head` for all of the
target's tokens. They read five hidden states.
"""

from typing import Any

import torch

from .feature_layers import from_layer_outputs, read_feature_layers
from .head import Head, read_eagle3
from .names import canonical_names, is_eagle3


def matches(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    """Checks whether the list of layers or the architecture has DeepSpec's name, and the head is an EAGLE-3 head."""
    is_theirs = config.get("architectures") in (["Qwen3Eagle3Model"], ["Gemma4Eagle3Model"])
    return (is_theirs or "target_layer_ids" in config) and is_eagle3(canonical_names(weights))


def read(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Head:
    """
    Reads heads of DeepSpec for Qwen3.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`dict[str, torch.Tensor]`): The tensors of the file.

    Raises:
        `ValueError`: if the head is made of layers of Gemma 4, which scale embeddings and have further norms.
    """
    weights = canonical_names(weights)
    if "layers.0.pre_feedforward_layernorm.weight" in weights:
        raise ValueError(
            "The head is made of layers of Gemma 4 (`Gemma4Eagle3Model`), with scaled embeddings, more norms, and "
            "shared keys and values. Such heads are not supported here; DeepSpec, DeepSeek's own code, runs them."
        )
    layers = read_feature_layers(config)
    # The list of a user, or of an engine, is put at the top level under the usual name, and goes first.
    if layers.ids is None and config.get("target_layer_ids"):
        layers = from_layer_outputs([int(i) for i in config["target_layer_ids"]])
        layers = layers._replace(published=None)  # DeepSpec checks that they number layers
    return read_eagle3(config, weights, layers, base_model_name_or_path=config.get("target_model_name_or_path"))
