"""
The layout of AngelSlim (Tencent): SpecForge's tensors under the architecture `Eagle3LlamaForCausalLM`, for text,
vision-language and audio targets (`modal_type`). Heads for the latter have rotary embeddings in three dimensions, which
are ordinary ones where all three positions are the same, as in text.
"""

from typing import Any

import torch

from .head import Head, read_eagle3
from .names import canonical_names, is_eagle3


def matches(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    """Checks whether AngelSlim wrote an EAGLE-3 head."""
    return config.get("architectures") == ["Eagle3LlamaForCausalLM"] and is_eagle3(canonical_names(weights))


def read(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Head:
    """
    Reads heads of AngelSlim.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`dict[str, torch.Tensor]`): The tensors of the file.
    """
    weights = canonical_names(weights)
    decisions = []
    if "mrope_section" in ((config.get("rope_scaling") or config.get("rope_parameters")) or {}):
        decisions.append("rotary embeddings in three dimensions, used with the same position in all of them")
    return read_eagle3(config, weights, decisions=decisions, norm_output=bool(config.get("norm_output")))
