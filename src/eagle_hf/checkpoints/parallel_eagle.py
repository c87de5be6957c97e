"""
P-EAGLE heads outside of the nested layout of speculators: SpecForge's (`PEagleDraftModel`) and Amazon's. What makes a
head one of them is the tensor `mask_hidden`, which stands for features that are not known yet.
"""

from typing import Any

import torch

from .head import Head, read_eagle3
from .names import canonical_names, is_eagle3


def matches(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    """Checks whether there is a placeholder for features."""
    return any(name.endswith("mask_hidden") for name in weights) and is_eagle3(canonical_names(weights))


def read(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Head:
    """
    Reads P-EAGLE heads. Which token stands for unknown ones has several names; SpecForge's files do not say it, and
    what its embedding keeps as padding is taken.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`dict[str, torch.Tensor]`): The tensors of the file.
    """
    names = ("mask_token_id", "pard_token", "ptd_token_id", "pad_token_id")
    name = next((name for name in names if config.get(name) is not None), None)
    decisions = [
        f"the token for unknown ones is `{name}` of config.json" if name else "no token for unknown ones is given"
    ]
    return read_eagle3(
        config,
        canonical_names(weights),
        decisions=decisions,
        norm_before_residual=bool(config.get("norm_before_residual")),
        norm_output=bool(config.get("norm_output")),
        parallel_drafting=True,
        mask_token_id=config.get(name) if name else None,
    )
