"""
The layout of NVIDIA NeMo Automodel: a flat configuration of architecture `LlamaEagle3DraftModel`, derived from the
target's, and tensors with the prefix `model.`, but for `lm_head`, `d2t` and `t2d`.
"""

from typing import Any

import torch

from .feature_layers import from_layer_outputs, read_feature_layers
from .head import Head, read_eagle3
from .names import canonical_names, is_eagle3


def matches(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    """Checks whether the tensors have the prefix, or the architecture is theirs, and the head is an EAGLE-3 head."""
    has_prefix = "model.norm.weight" in weights
    is_theirs = config.get("architectures") == ["LlamaEagle3DraftModel"]
    return (has_prefix or is_theirs) and is_eagle3(canonical_names(weights))


def read(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Head:
    """
    Reads heads of NeMo Automodel.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`dict[str, torch.Tensor]`): The tensors of the file.
    """
    weights = canonical_names(weights)
    outputs = config.get("eagle_aux_hidden_state_layer_ids") or config.get("aux_layer_ids")
    is_theirs = config.get("architectures") == ["LlamaEagle3DraftModel"]
    # NeMo counts outputs of layers wherever it lists them.
    layers = from_layer_outputs(list(outputs)) if outputs and is_theirs else read_feature_layers(config)
    is_parallel = "mask_hidden" in weights
    return read_eagle3(
        config,
        weights,
        layers,
        norm_output=bool(config.get("norm_output")),
        parallel_drafting=is_parallel,
        mask_token_id=config.get("mask_token_id") if is_parallel else None,
    )
