"""
Writes what vLLM reads: the layout of speculators for EAGLE-3 and P-EAGLE heads, and flat ones for heads with latent
attention and for EAGLE-1 heads, which it runs by its method `eagle`.
"""

from typing import Any

import torch

from ..configuration_eagle import EagleConfig
from . import deepseek, speculators
from .export_target import ExportTarget
from .flat_config import flat_config
from .traits import refuse


def write(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: ExportTarget
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Returns a head as vLLM reads it.

    Raises:
        `ValueError`: if vLLM would compute something else.
    """
    if config.eagle_version == 1:
        return _write_eagle1(config, weights, target)
    windowed = config.sliding_window_layers
    if config.sliding_window is not None and windowed is not None and len(windowed) < config.num_hidden_layers:
        raise ValueError(
            f"The head has a window (`sliding_window`) in layers {windowed} of {config.num_hidden_layers} only. vLLM "
            "keeps one kind of cache for all layers of a head, and does not load such heads."
        )
    layout = speculators if config.kv_lora_rank is None else deepseek
    return layout.write(config, weights, target)


def _write_eagle1(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: ExportTarget
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    why = (
        "vLLM's EAGLE-1 head is the authors' one, without a bias on `fc` or behind attention, which it drops in silence"
    )
    refuse(config, "vLLM", {"eagle1", "layers", "qkv_bias_eagle1", "mlp_bias"}, why)
    flat = flat_config(config, weights, "LlamaForCausalLM", target.name)
    # `bias` is what the authors' code and ours ask for; `attention_bias` would mean one behind attention as well.
    return flat | {"bias": False, "attention_bias": False, "qkv_bias": config.qkv_bias}, weights
