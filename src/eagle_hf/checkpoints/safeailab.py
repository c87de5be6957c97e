"""
The layout of the EAGLE authors (SafeAILab): a Llama-like `config.json` and fp16 weights, mostly as `pytorch_model.bin`.

EAGLE-1 and EAGLE-2 heads: `embed_tokens`, `fc`, `layers.0.*`, no norm and no `lm_head`; HASS heads are the same.
EAGLE-3 heads: `fc`, `midlayer.*`, `norm`, `lm_head`, and `d2t` / `t2d` where the draft vocabulary is reduced. Their
configurations say little: what is not in them follows from defaults of the authors' code, and the number of layers from
the weights, since the published number is the target's in some repositories.
"""

from typing import Any

import torch
from transformers.utils import logging

from ..configuration_eagle import EagleConfig
from .ascending import ascending
from .embedding import drop_embedding
from .export_target import ExportTarget
from .flat_config import flat_config
from .head import Head, read_eagle3, shared_fields
from .names import canonical_names, count_layers, is_eagle3
from .traits import refuse, usual_number_of_layers
from .vocabulary import draft_vocabulary


logger = logging.get_logger(__name__)


def matches(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    """Checks whether the tensors are those of an authors' head."""
    if any(name.startswith("midlayer.") for name in weights):
        return is_eagle3(canonical_names(weights))
    if isinstance(config.get("model"), dict):
        return "fc.weight" in weights
    return "fc.weight" in weights and "layers.0.mlp.up_proj.weight" in weights and not weights.keys() & _EAGLE3_ONLY


_EAGLE3_ONLY = {"lm_head.weight", "norm.weight", "layers.0.hidden_norm.weight", "hidden_norm.weight"}


def read(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Head:
    """
    Turns an authors' head into our configuration and tensors.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`dict[str, torch.Tensor]`): The tensors of the file.

    Raises:
        `ValueError`: if the configuration lacks what the authors' code needs as well.
    """
    weights = canonical_names(weights)
    if is_eagle3(weights):
        return read_eagle3(config, weights)
    if isinstance(config.get("model"), dict):  # as early vLLM wanted these heads: nested, with a copy of `lm_head`
        config = config["model"] | {"bias": config["model"].get("eagle_fc_bias", False)}
        weights.pop("lm_head.weight", None)
    has_qkv_bias = "layers.0.self_attn.q_proj.bias" in weights
    head = EagleConfig(
        **shared_fields(config),
        eagle_version=1,
        target_hidden_size=config.get("target_hidden_size"),
        own_embed_tokens="embed_tokens.weight" in weights,
        num_hidden_layers=count_layers(weights),
        num_key_value_heads=config.get("num_key_value_heads"),
        head_dim=config.get("head_dim"),
        fc_bias=config.get("bias", True),  # the authors' default
        qkv_bias=config.get("qkv_bias", has_qkv_bias),
        mlp_bias="layers.0.mlp.up_proj.bias" in weights,
        input_layernorm="layers.0.input_layernorm.weight" in weights,
    )
    return Head(head, weights, ["EAGLE-1", "the last hidden state after the final norm"])


def write(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: ExportTarget
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Returns a head as the authors' code reads it: EAGLE-1, or an EAGLE-3 head of one plain layer that reads the usual
    layers.

    Raises:
        `ValueError`: if the authors' code would compute something else.
    """
    why = "the authors' code has one fixed architecture"
    known = {"eagle1", "qkv_bias_eagle1", "fc_bias_eagle1", "layers"} if config.eagle_version == 1 else {"narrow"}
    refuse(config, "the EAGLE authors' code", known | {"rope"}, why)
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rope_type not in ("default", "linear", "dynamic"):
        raise ValueError(
            f"The head has rotary embeddings of type {rope_type!r}, and the authors' code knows linear and dynamic "
            "scaling only. Export it to another layout."
        )
    if config.eagle_version == 1:
        if config.fc_bias:
            logger.warning(
                "The head has a bias on `fc`, as the EAGLE authors' code computes it. vLLM reads this layout, too, but "
                "drops the bias in silence and drafts wrongly: use the exported head with the authors' code only."
            )
        # Biases of theirs are said by names of their own; with `attention_bias`, vLLM would expect one more.
        names = {"bias": config.fc_bias, "attention_bias": False} | ({"qkv_bias": True} if config.qkv_bias else {})
        return flat_config(config, weights, "LlamaForCausalLM", target.name, "torch_dtype") | names, weights
    config, weights = ascending(config, weights)
    _check_layers(config.feature_layer_ids, target.num_layers)
    weights = drop_embedding(config, weights, target, "the authors' code")
    weights = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in weights.items()}
    return flat_config(config, weights, "LlamaForCausalLM", target.name, "torch_dtype"), draft_vocabulary(
        config, weights
    )


def _check_layers(ids: list[int] | None, num_target_layers: int | None) -> None:
    usual = None if ids is None else usual_number_of_layers(ids)
    if ids is not None and (usual is None or num_target_layers not in (None, usual)):
        raise ValueError(
            f"The head reads `hidden_states` {ids}, and the authors' code always reads [2, n // 2, n - 3] of a target "
            f"of n{'' if num_target_layers is None else f' = {num_target_layers}'} layers. Export it to a layout that "
            "lists what is read, such as vLLM's."
        )
