"""
The layout of SpecForge, which SGLang serves: a flat Llama-like `config.json` of architecture `LlamaForCausalLMEagle3`,
and tensors `midlayer.*`, with `embed_tokens` (its `hf` export) or without (its `sglang` export). Older exports call the
norms of features `aux_norm_low`, `aux_norm_mid` and `aux_norm_high`.
"""

from typing import Any

import torch
from transformers.utils import logging

from ..configuration_eagle import EagleConfig
from . import deepseek
from .ascending import ascending
from .embedding import drop_embedding
from .export_target import ExportTarget
from .feature_layers import to_layer_outputs
from .flat_config import flat_config
from .head import Head, read_eagle3
from .names import canonical_names, is_eagle3
from .traits import refuse
from .vocabulary import draft_vocabulary


logger = logging.get_logger(__name__)


def matches(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    """Checks whether the one layer is called `midlayer`, and the architecture is not the EAGLE authors'."""
    is_authors = config.get("architectures") in (None, [], ["LlamaForCausalLM"]) and "eagle_config" not in config
    has_midlayer = any(name.startswith("midlayer.") for name in weights)
    return has_midlayer and not is_authors and is_eagle3(canonical_names(weights))


def read(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Head:
    """
    Reads heads that SpecForge or AngelSlim trained. `norm_output` in their configurations means that there is a norm
    before `lm_head`, as there always is; what training feeds back is the state before the norm, and so do we.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`dict[str, torch.Tensor]`): The tensors of the file.
    """
    decisions = []
    if config.get("norm_output"):
        decisions.append("`norm_output` is set, but SpecForge trains with the state before the norm fed back: False")
    return read_eagle3(config, canonical_names(weights), decisions=decisions, norm_output=False)


def write(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: ExportTarget
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Returns a head as SGLang reads it: `eagle_config` lists outputs of layers, to which it adds 1.

    Raises:
        `ValueError`: if SGLang would compute something else, which it would not notice: it skips tensors that it does
            not know, and leaves others at their initial values.
    """
    known = {"norm_before_fc", "fc_norm", "norm_output", "features", "narrow", "no_lm_head", "no_fc", "latent"}
    eagle1 = {"eagle1", "fc_bias_eagle1", "qkv_bias_eagle1"}
    why = (
        "this layout has no words for it: there are the raw feature as residual, one layer of Llama, and no biases or "
        "norms within it. Of the engines that read it, SGLang and vLLM, at least one computes something else"
    )
    refuse(config, "SGLang", known | eagle1, why)
    if config.kv_lora_rank is not None:
        return deepseek.write(config, weights, target, for_sglang=True)
    if config.eagle_version == 1:
        return _write_eagle1(config, weights, target)
    config, weights = ascending(config, weights)
    weights = drop_embedding(config, weights, target, "SGLang")
    if not config.norm_output:
        # `midlayer` marks heads of SpecForge, whose `norm_output` means something else; see `read`.
        weights = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in weights.items()}
    flat = flat_config(config, weights, "LlamaForCausalLMEagle3", target.name)
    flat |= {"fc_norm": config.fc_norm, "norm_before_fc": config.norm_before_fc, "norm_output": config.norm_output}
    flat |= {"bias": False, "eagle_config": {"use_aux_hidden_state": config.use_fc}}
    if config.norm_before_fc:
        flat["eagle_config"]["norm_before_fc"] = True
    if config.use_fc and config.feature_layer_ids is not None:
        flat["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = to_layer_outputs(config.feature_layer_ids)
        # Read by vLLM, and by us: which of the two conventions the list above follows cannot be seen in it.
        flat["eagle_aux_hidden_state_layer_ids"] = config.feature_layer_ids
        flat["num_aux_hidden_states"] = len(config.feature_layer_ids)
        _warn_of_last_layer(config.feature_layer_ids, target.num_layers)
    return flat, draft_vocabulary(config, weights, even_if_full=True)


def _warn_of_last_layer(ids: list[int], num_target_layers: int | None) -> None:
    if num_target_layers is not None and max(ids) == num_target_layers:
        logger.warning(
            f"The head reads `hidden_states` {ids}, and its target has {num_target_layers} layers. SGLang collects "
            "what layers read, so that it has no output of the last one for most targets (it has for gpt-oss). "
            "Measure acceptance there, or use vLLM: `eagle-hf convert --to vllm`."
        )


def _write_eagle1(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: ExportTarget
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    architecture = "Qwen2ForCausalLMEagle" if config.qkv_bias else "LlamaForCausalLMEagle"
    if not config.fc_bias:  # SGLang's `fc` has one in any case, and what the file lacks would stay uninitialised
        weights = weights | {"fc.bias": torch.zeros_like(weights["fc.weight"][:, 0])}
    model_type = "qwen2" if config.qkv_bias else "llama"
    flat = flat_config(config, weights, architecture, target.name, model_type=model_type)
    return flat | {"bias": True} | ({"qkv_bias": True} if config.qkv_bias else {}), weights
