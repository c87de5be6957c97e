"""The draft vocabulary as files hold it: `d2t`, offsets, and `t2d`, which follows from it."""

import torch

from ..configuration_eagle import EagleConfig


def draft_vocabulary(
    config: EagleConfig, weights: dict[str, torch.Tensor], even_if_full: bool = False
) -> dict[str, torch.Tensor]:
    """
    Returns the tensors with `t2d` added where there is a `d2t`.

    Args:
        config ([`EagleConfig`]): Configuration of the head.
        weights (`dict[str, torch.Tensor]`): Its tensors.
        even_if_full (`bool`, defaults to `False`):
            Whether the layout wants both also where every target token can be drafted.

    Returns:
        `dict[str, torch.Tensor]`: With `t2d`, of shape `(vocab_size,)`, `True` for target tokens that can be drafted.
    """
    weights = dict(weights)
    if "d2t" not in weights:
        if not even_if_full or config.draft_vocab_size is None:
            return weights
        weights["d2t"] = torch.zeros(config.vocab_size, dtype=torch.long)
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool)
    t2d[weights["d2t"] + torch.arange(len(weights["d2t"]))] = True
    return weights | {"t2d": t2d}
