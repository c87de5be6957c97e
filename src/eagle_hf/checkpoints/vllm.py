"""What vLLM reads: the layout of speculators, and a flat one for heads with latent attention."""

from typing import Any

import torch

from ..configuration_eagle import EagleConfig
from . import deepseek, speculators


def write(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: str | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    A head as vLLM reads it.

    Raises:
        `ValueError`: if vLLM would compute something else.
    """
    layout = speculators if config.kv_lora_rank is None else deepseek
    return layout.write(config, weights, target)
