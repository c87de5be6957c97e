"""
The layout of NVIDIA's Model Optimizer, which TensorRT-LLM serves, and which NVIDIA's heads on the Hub have: a flat
Llama-like `config.json` of architecture `LlamaForCausalLMEagle3` with `eagle_config`, and tensors `layers.N.*`, never
with `t2d` or an embedding. Its exporter replaces the rotary embedding of training by one for longer contexts, on
purpose, so that engines are to use what the file says. Heads without auxiliary features (`use_aux_hidden_state`) have
no `fc`.

TorchSpec writes the same. Heads in plain `layers.N.*` that nobody else claims are read here as well.
"""

from typing import Any

import torch

from ..configuration_eagle import EagleConfig
from .ascending import ascending
from .embedding import drop_embedding
from .export_target import ExportTarget
from .feature_layers import to_layer_outputs
from .flat_config import flat_config
from .head import Head, read_eagle3
from .names import canonical_names, is_eagle3
from .traits import refuse


def matches(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    """Checks whether the tensors are those of an EAGLE-3 head in the names of most serving engines."""
    return is_eagle3(canonical_names(weights))


def read(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Head:
    """
    Reads heads of Model Optimizer, and those of NVIDIA's for gpt-oss.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`dict[str, torch.Tensor]`): The tensors of the file.
    """
    return read_eagle3(
        config,
        canonical_names(weights),
        norm_before_residual=bool(config.get("norm_before_residual")),
        norm_output=bool(config.get("norm_output")),
    )


def write(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: ExportTarget
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Returns a head as Model Optimizer exports it and TensorRT-LLM reads it.

    Raises:
        `ValueError`: if the layout has no words for this head.
    """
    known = {"layers", "features", "no_fc", "norm_output"}
    why = (
        "Model Optimizer's layout has neither tensors nor flags for this, or engines that read it, vLLM among them, do "
        "not look at them"
    )
    refuse(config, "Model Optimizer and TensorRT-LLM", known, why)
    config, weights = ascending(config, weights)
    weights = drop_embedding(config, weights, target, "TensorRT-LLM")
    flat = flat_config(config, weights, "LlamaForCausalLMEagle3", target.name)
    eagle_config: dict[str, Any] = {
        "use_aux_hidden_state": config.use_fc,
        "use_input_layernorm_in_first_layer": bool(config.input_layernorm),
        "use_last_layernorm": True,
        "use_mtp_layernorm": False,
        "next_layer_regular": True,
        "parallel_draft_step": 1,
        "parallel_draft_heads_num_layers": 1,
    }
    if config.use_fc and config.feature_layer_ids is not None:
        outputs = to_layer_outputs(config.feature_layer_ids)
        eagle_config["eagle_aux_hidden_state_layer_ids"] = outputs
        flat["eagle_aux_hidden_state_layer_ids"] = config.feature_layer_ids  # tells us which convention is meant
        if len(outputs) != 3:
            flat["num_aux_hidden_states"] = len(outputs)
    if config.norm_output:
        flat["norm_output"] = True
    return flat | {"eagle_config": eagle_config}, weights
