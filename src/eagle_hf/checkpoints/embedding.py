"""Embeddings that an engine would not look at."""

import torch
from transformers.utils import logging

from ..configuration_eagle import EagleConfig


logger = logging.get_logger(__name__)


def drop_embedding(config: EagleConfig, weights: dict[str, torch.Tensor], engine: str) -> dict[str, torch.Tensor]:
    """
    Returns the tensors without the head's own embedding, for engines that take the target's in any case, and warns of
    it: in most heads it is a copy of the target's, and where it is not, nothing but acceptance shows it.

    Args:
        config ([`EagleConfig`]): Configuration of the head. One that is narrower than its target keeps its embedding.
        weights (`dict[str, torch.Tensor]`): Its tensors. They are left as they are.
        engine (`str`): Who does not look at it.
    """
    if "embed_tokens.weight" not in weights or config.target_hidden_size != config.hidden_size:
        return weights
    logger.warning(
        f"The head's own embedding is left out, since {engine} takes the target's. If it is no copy of that one, the "
        "head drafts worse there; `--to vllm` keeps it."
    )
    return {name: tensor for name, tensor in weights.items() if name != "embed_tokens.weight"}
