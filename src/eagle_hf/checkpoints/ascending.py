"""Heads in the order in which most engines hand out hidden states: that of the target's layers."""

import torch

from ..configuration_eagle import EagleConfig


def ascending(config: EagleConfig, weights: dict[str, torch.Tensor]) -> tuple[EagleConfig, dict[str, torch.Tensor]]:
    """
    Returns a head that reads the same hidden states in the order of layers, and computes the same. Engines collect them
    while the target's layers run, so that whatever order a list has, features arrive in this one.

    ```text
    feature_layer_ids   [19,      3,       12]            [3,       12,      19]
    fc.weight           [for 19 | for 3 | for 12]    →    [for 3 | for 12 | for 19]     columns
    ```

    Args:
        config ([`EagleConfig`]): Configuration of the head, whose `feature_layer_ids` are not negative.
        weights (`dict[str, torch.Tensor]`): Its tensors. They are left as they are.

    Returns:
        Configuration and tensors; those given where the order is right already.
    """
    ids = config.feature_layer_ids
    if ids is None or ids == sorted(ids):
        return config, weights
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    published = config.published_feature_layer_ids
    moved = config.to_dict() | {"feature_layer_ids": [ids[i] for i in order]}
    moved["published_feature_layer_ids"] = None if published is None else [published[i] for i in order]
    weights = dict(weights)
    for name in ("fc.weight", "input_norm.weight", "mask_hidden"):  # the last dimension of each holds all features
        if name in weights:
            blocks = weights[name].chunk(len(ids), dim=-1)
            weights[name] = torch.cat([blocks[i] for i in order], dim=-1)
    norms = [weights.get(f"fc_norm.{i}.weight") for i in order]
    weights |= {f"fc_norm.{i}.weight": norm for i, norm in enumerate(norms) if norm is not None}
    return EagleConfig.from_dict(moved), weights
