"""
The layout of the `speculators` library (RedHatAI), which vLLM serves: a nested `config.json`, in which
`transformer_layer_config` describes a decoder layer of Llama or Qwen3, and tensors `layers.N.*`. EAGLE-3 and P-EAGLE.
"""

from typing import Any

import torch
from transformers import AutoConfig

from ..configuration_eagle import EagleConfig
from .ascending import ascending
from .export_target import ExportTarget
from .feature_layers import refuse_after_norm
from .flat_config import dtype_of, flat_config
from .head import Head, read_eagle3
from .names import canonical_names, is_eagle3
from .traits import refuse
from .vocabulary import draft_vocabulary


def matches(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    """Checks whether the configuration is nested, and the tensors are those of an EAGLE-3 head."""
    return isinstance(config.get("transformer_layer_config"), dict) and is_eagle3(canonical_names(weights))


def read(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Head:
    """
    Reads heads of speculators 0.1 to 0.9.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`dict[str, torch.Tensor]`): The tensors of the file.

    Raises:
        `ValueError`: if the layer is of a kind that speculators does not build heads of.
    """
    weights = canonical_names(weights)
    layer = _layer_config(config["transformer_layer_config"])
    names = ("draft_vocab_size", "target_hidden_size", "eagle_aux_hidden_state_layer_ids", "quantization_config")
    flat = layer | {name: config[name] for name in names if config.get(name) is not None}
    decisions = []
    is_parallel = "mask_hidden" in weights
    norm_before_residual = config.get("norm_before_residual")
    if norm_before_residual is None:
        norm_before_residual = not is_parallel
        decisions.append(f"`norm_before_residual` is not given, taken as {norm_before_residual} like in vLLM")
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    return read_eagle3(
        flat,
        weights,
        decisions=decisions,
        norm_before_residual=norm_before_residual,
        norm_output=bool(config.get("norm_output")),
        base_model_name_or_path=verifier.get("name_or_path") or None,
        parallel_drafting=is_parallel,
        mask_token_id=config.get("mask_token_id"),
        **_window(layer),
    )


def _layer_config(config: dict[str, Any]) -> dict[str, Any]:
    model_type = config.get("model_type", "llama")
    if model_type not in ("llama", "qwen3"):
        raise ValueError(
            f"`transformer_layer_config` is of type {model_type!r}, but heads of speculators are made of `llama` or "
            "`qwen3` layers. The repository was written by something else."
        )
    # Only what differs from the defaults of its class is written, so that the class has to fill in the rest. Rotary
    # embeddings and types of layers are read from the file itself: the class would rewrite the one and check the other.
    fields = {name: config[name] for name in _FIELDS if name in config}
    filled = AutoConfig.for_model(model_type, **fields).to_dict()
    return config | {name: filled.get(name) for name in _FIELDS}


_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "rms_norm_eps", "max_position_embeddings", "initializer_range", "bos_token_id", "eos_token_id",
    "pad_token_id",
)  # fmt: skip


def _window(layer: dict[str, Any]) -> dict[str, Any]:
    sliding = [i for i, kind in enumerate(layer.get("layer_types") or []) if kind == "sliding_attention"]
    if not sliding or layer.get("sliding_window") is None:
        return {}
    is_all = len(sliding) == len(layer["layer_types"])
    return {"sliding_window": layer["sliding_window"], "sliding_window_layers": None if is_all else sliding}


def write(
    config: EagleConfig, weights: dict[str, torch.Tensor], target: ExportTarget
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Returns a head as speculators and vLLM read it, with the hidden states listed at the top level.

    Raises:
        `ValueError`: if neither knows this kind of head.
    """
    known = {
        "layers", "qk_norm", "qkv_bias", "o_bias", "mlp_bias", "norm_before_residual", "norm_before_fc", "fc_norm",
        "norm_output", "features", "no_lm_head", "parallel", "sliding_window", "narrow",
    }  # fmt: skip
    refuse(config, "speculators and vLLM", known, "their layout describes EAGLE-3 heads of Llama or Qwen3 layers only")
    if config.qkv_bias != config.o_bias:
        raise ValueError(
            f"The head has `qkv_bias={config.qkv_bias}` and `o_bias={config.o_bias}`; layers of Llama and Qwen3 have "
            "both biases or none."
        )
    if config.qk_norm and (config.o_bias or config.mlp_bias):
        raise ValueError(
            f"The head has `qk_norm`, `o_bias={config.o_bias}` and `mlp_bias={config.mlp_bias}`. vLLM computes layers "
            "with `qk_norm` as Qwen3's, without biases behind attention and in the MLP, and would drop them in silence."
        )
    refuse_after_norm(config.feature_layer_ids, "vLLM")
    config, weights = ascending(config, weights)
    if config.parallel_drafting and (config.mask_token_id is None or config.fc_norm or config.norm_output):
        raise ValueError(
            "vLLM runs P-EAGLE heads with a `mask_token_id`, and without `fc_norm` and `norm_output`, got "
            f"`mask_token_id={config.mask_token_id}`, `fc_norm={config.fc_norm}`, `norm_output={config.norm_output}`."
        )
    algorithm = "peagle" if config.parallel_drafting else "eagle3"
    architecture = "PEagleDraftModel" if config.parallel_drafting else "Eagle3DraftModel"
    layer = flat_config(config, weights, "LlamaForCausalLM", None, model_type="qwen3" if config.qk_norm else "llama")
    for name in ("architectures", "draft_vocab_size", "target_hidden_size", "dtype", "rope_theta", "rope_scaling"):
        layer.pop(name, None)
    if config.num_features != 3:  # vLLM passes this on to its Llama head, which does not count the list
        layer["num_aux_hidden_states"] = config.num_features
    if config.sliding_window is not None:
        layers = range(config.num_hidden_layers)
        sliding = layers if config.sliding_window_layers is None else config.sliding_window_layers
        layer["layer_types"] = ["sliding_attention" if i in sliding else "full_attention" for i in layers]
        layer |= {"sliding_window": config.sliding_window, "use_sliding_window": True}
    nested = {
        "architectures": [architecture],
        "speculators_model_type": algorithm,
        "speculators_version": "0.9.0",
        "dtype": dtype_of(weights),
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": None if config.target_hidden_size == config.hidden_size else config.target_hidden_size,
        "eagle_aux_hidden_state_layer_ids": config.feature_layer_ids,
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norm_before_fc,
        "fc_norm": config.fc_norm,
        "norm_output": config.norm_output,
        "embed_requires_grad": config.parallel_drafting,
        "tie_word_embeddings": False,
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": algorithm,
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {"proposal_type": "greedy", "speculative_tokens": 3, "verifier_accept_k": 1, "accept_tolerance": 0.0}
            ],
            "verifier": {"name_or_path": target.name, "architectures": []},
        },
    }
    if config.parallel_drafting:
        nested["mask_token_id"] = config.mask_token_id
    return nested, draft_vocabulary(config, weights)
