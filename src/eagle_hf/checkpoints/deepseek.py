"""
Heads with multi-head latent attention for DeepSeek and Kimi targets, as Model Optimizer, TorchSpec and others write
them: architecture `Eagle3DeepseekV2ForCausalLM` (or V3), tensors `layers.0.self_attn.kv_b_proj` and its kin.
"""

from typing import Any

import torch

from ..configuration_eagle import EagleConfig
from .ascending import ascending
from .embedding import drop_embedding
from .export_target import ExportTarget
from .feature_layers import refuse_after_norm, to_layer_outputs
from .flat_config import flat_config
from .head import Head, read_eagle3
from .names import canonical_names, is_eagle3
from .traits import refuse
from .vocabulary import draft_vocabulary


def matches(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    """Checks whether the tensors are those of an EAGLE-3 head with latent attention."""
    weights = canonical_names(weights)
    return "layers.0.self_attn.kv_b_proj.weight" in weights and is_eagle3(weights)


def read(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Head:
    """
    Reads heads with latent attention. The ranks and widths are those of the tensors.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`dict[str, torch.Tensor]`): The tensors of the file.
    """
    return read_eagle3(config, canonical_names(weights), norm_output=bool(config.get("norm_output")))


def write(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: ExportTarget, for_sglang: bool = False
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Returns a head with latent attention as vLLM and SGLang read it: the former takes the list at the top level; the
    latter that of `eagle_config`, adding 1 if it starts with 1. SGLang takes the target's embedding, vLLM the head's
    own if there is one.

    Args:
        config ([`EagleConfig`]): Configuration of the head.
        weights (`dict[str, torch.Tensor]`): Its tensors.
        target ([`ExportTarget`]): The target.
        for_sglang (`bool`, defaults to `False`): Whether SGLang is to read it.

    Raises:
        `ValueError`: if the engines would compute something else.
    """
    known = {"latent", "fc_norm", "norm_output", "features", "narrow"} | ({"norm_before_fc"} if for_sglang else set())
    why = "engines build heads with latent attention of one layer with no options but norms of features"
    refuse(config, "engines that run latent attention", known, why)
    engine = "SGLang" if for_sglang else "vLLM"
    refuse_after_norm(config.feature_layer_ids, engine)
    config, weights = ascending(config, weights)
    if for_sglang:
        weights = drop_embedding(config, weights, target, engine)
    # To vLLM, a draft of type `deepseek_v3` is a layer of multi-token prediction, whatever its architecture. Kimi's
    # type, which it reads as the same class, stays what it is.
    model_type = "deepseek_v3" if for_sglang else "kimi_k2"
    flat = flat_config(config, weights, "Eagle3DeepseekV2ForCausalLM", target.name, model_type=model_type)
    del flat["head_dim"]
    for name in (
        "kv_lora_rank",
        "q_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "rope_interleave",
    ):
        flat[name] = getattr(config, name)
    flat |= {"fc_norm": config.fc_norm, "norm_before_fc": config.norm_before_fc, "norm_output": config.norm_output}
    flat["eagle_config"] = {"use_aux_hidden_state": True}
    if config.feature_layer_ids is not None:
        ids = config.feature_layer_ids
        listed = to_layer_outputs(ids) if ids[0] == 2 else ids
        if for_sglang and listed[0] == 1 and listed is ids:
            raise ValueError(
                f"The head reads `hidden_states` {ids}, a list that SGLang would take for outputs of layers since it "
                "starts with 1, and there is no other way to say it."
            )
        flat["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = listed
        flat["eagle_aux_hidden_state_layer_ids"] = ids
        flat["num_aux_hidden_states"] = len(ids)
    return flat, draft_vocabulary(config, weights)
