"""Embeddings that an engine would not look at."""

import torch
from transformers.utils import logging

from ..configuration_eagle import EagleConfig
from .export_target import ExportTarget


logger = logging.get_logger(__name__)


def drop_embedding(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: ExportTarget, engine: str
) -> dict[str, torch.Tensor]:
    """
    Returns the tensors without the head's own embedding, for engines that take the target's in any case. In most heads
    it is a copy of that one; where it is not, nothing but acceptance would show it. So the two are compared where the
    target is on this machine, and a warning says it where that is not so.

    Args:
        config ([`EagleConfig`]): Configuration of the head. One that is narrower than its target keeps its embedding.
        weights (`dict[str, torch.Tensor]`): Its tensors. They are left as they are.
        target ([`ExportTarget`]): The target.
        engine (`str`): Who does not look at it.

    Raises:
        `ValueError`: if the head's embedding is known to be another one than the target's.
    """
    if "embed_tokens.weight" not in weights or config.target_hidden_size != config.hidden_size:
        return weights
    own, targets = weights["embed_tokens.weight"], target.embedding()
    if targets is None:
        logger.warning(
            f"The head's own embedding is left out, since {engine} takes the target's. If it is no copy of that one, "
            "the head drafts worse there; `--to vllm` keeps it. Pass the folder of the target as `target` to have the "
            "two compared."
        )
    elif own.shape != targets[: len(own)].shape or not torch.equal(own, targets[: len(own)].to(own.dtype)):
        raise ValueError(
            f"The head cannot be exported for {engine}: it has an embedding of its own that is not the target's, and "
            f"{engine} takes the target's. It would load and draft other tokens. `--to vllm` keeps it."
        )
    return {name: tensor for name, tensor in weights.items() if name != "embed_tokens.weight"}
