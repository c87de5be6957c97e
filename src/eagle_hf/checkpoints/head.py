"""Defines what every layout is turned into, and does the part that is the same for all EAGLE-3 heads."""

from dataclasses import dataclass, field
from typing import Any

import torch

from ..configuration_eagle import EagleConfig
from .feature_layers import FeatureLayers, read_feature_layers
from .names import count_layers
from .rope import read_rope


@dataclass(frozen=True)
class Head:
    """
    A head as a layout's `read` returns it.

    Args:
        config ([`EagleConfig`]): Its configuration.
        weights (`dict[str, torch.Tensor]`): Its tensors, under the names of [`EagleDraftModel`].
        decisions (`list[str]`): What was decided where the repository leaves room.
    """

    config: EagleConfig
    weights: dict[str, torch.Tensor]
    decisions: list[str] = field(default_factory=list)


# Fields that mean the same in every configuration.
_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "hidden_act", "max_position_embeddings",
    "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "base_model_name_or_path",
)  # fmt: skip


def shared_fields(config: dict[str, Any]) -> dict[str, Any]:
    """
    Returns the fields of [`EagleConfig`] that a Llama-like configuration spells the same way.

    Raises:
        `ValueError`: if a size is missing that nothing else tells.
    """
    missing = [n for n in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size") if n not in config]
    if missing:
        raise ValueError(f"config.json of the head lacks {', '.join(missing)}.")
    fields = {name: config[name] for name in _SHARED if config.get(name) is not None}
    if config.get("model_type") == "llama4_text":  # there the other one is that of experts
        fields["intermediate_size"] = config.get("intermediate_size_mlp", config["intermediate_size"])
    return fields | {"rms_norm_eps": config.get("rms_norm_eps", 1e-6), "rope_parameters": read_rope(config)}


def read_eagle3(
    config: dict[str, Any],
    weights: dict[str, torch.Tensor],
    feature_layers: FeatureLayers | None = None,
    decisions: list[str] | None = None,
    **fields: Any,
) -> Head:
    """
    Rebuilds an EAGLE-3 head from what its tensors are, and from its configuration where they do not tell.

    Args:
        config (`dict`): A Llama-like configuration.
        weights (`dict[str, torch.Tensor]`): Tensors under canonical names.
        feature_layers ([`FeatureLayers`], *optional*): Which hidden states are read. By default what `config` lists.
        decisions (`list[str]`, *optional*): What the layout has decided already.
        fields: Further fields of [`EagleConfig`], such as `norm_before_residual`: those that no tensor shows.

    Raises:
        `ValueError`: if the configuration lacks something, or is of a kind of head that is not supported.
    """
    if config.get("quantization_config"):
        raise ValueError(
            "The head is quantised (`quantization_config` in config.json), and quantised heads cannot be read. Use the "
            "repository of the head in float16, bfloat16 or float32."
        )
    if "fc.weight" not in weights:
        if (config.get("eagle_config") or {}).get("use_aux_hidden_state", True):
            raise ValueError(
                "The head has no `fc.weight`, which projects the hidden states that it reads, and its config.json does "
                "not say that it needs none (by `use_aux_hidden_state: false` in `eagle_config`): the file is "
                "incomplete. If the head does read the last hidden state as it is: "
                "`EagleDraftModel.from_pretrained(..., use_fc=False)`."
            )
        # Without auxiliary features there is one, and it needs no projection.
        feature_layers = FeatureLayers([-1], None, "the last hidden state after the final norm: there is no `fc`")
    feature_layers = feature_layers or read_feature_layers(config)
    attention = "layers.0.self_attn."
    is_latent = attention + "kv_b_proj.weight" in weights
    shared = shared_fields(config)
    hidden_size = shared["hidden_size"]
    norms = [weights[name] for name in ("fc_norm.0.weight",) if name in weights]
    target_hidden_size = config.get("target_hidden_size") or (norms[0].numel() if norms else hidden_size)
    feature_layers = _check_number_of_features(feature_layers, weights, target_hidden_size)
    all_fields = {
        **shared,
        "eagle_version": 3,
        "draft_vocab_size": _draft_vocab_size(config, weights),
        "target_hidden_size": target_hidden_size,
        "feature_layer_ids": feature_layers.ids,
        "published_feature_layer_ids": feature_layers.published,
        "own_embed_tokens": "embed_tokens.weight" in weights,
        "num_hidden_layers": count_layers(weights),
        "use_fc": "fc.weight" in weights,
        "fc_bias": "fc.bias" in weights,
        "mlp_bias": "layers.0.mlp.up_proj.bias" in weights,
        "o_bias": attention + "o_proj.bias" in weights,
        "input_layernorm": "layers.0.input_layernorm.weight" in weights,
        "hidden_norm": "layers.0.hidden_norm.weight" in weights,
        "norm_before_fc": "input_norm.weight" in weights,
        "fc_norm": bool(norms),
        **(_latent_attention(config, weights) if is_latent else _grouped_attention(config, weights, shared)),
        **fields,
    }
    head = EagleConfig(**all_fields)
    unusual = [
        name
        for name in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "qk_norm", "parallel_drafting")
        if getattr(head, name)
    ]
    layers = f"{head.num_hidden_layers} layer" + ("s" if head.num_hidden_layers > 1 else "")
    kind = f"EAGLE-3, {layers} of {'latent' if is_latent else 'grouped-query'} attention"
    return Head(head, weights, [", ".join([kind, *unusual]), feature_layers.reason, *(decisions or [])])


def _draft_vocab_size(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> int | None:
    said = config.get("draft_vocab_size")
    if "lm_head.weight" not in weights and said in (None, config.get("vocab_size")):
        return None  # the target's `lm_head` serves
    return said if said is not None else weights["lm_head.weight"].shape[0]


def _check_number_of_features(
    layers: FeatureLayers, weights: dict[str, torch.Tensor], target_hidden_size: int
) -> FeatureLayers:
    if "fc.weight" not in weights or weights["fc.weight"].dim() != 2:
        return layers
    width = weights["fc.weight"].shape[1]
    listed = 3 if layers.ids is None else len(layers.ids)
    if width % target_hidden_size == 0 and width != listed * target_hidden_size:
        raise ValueError(
            f"`fc.weight` reads {width // target_hidden_size} hidden states of width {target_hidden_size}, but the "
            f"head's configuration speaks of {listed} ({layers.reason}). Say which ones: "
            "`EagleDraftModel.from_pretrained(..., feature_layer_ids=[...])`, indices of the target's `hidden_states`."
        )
    return layers


def _grouped_attention(
    config: dict[str, Any], weights: dict[str, torch.Tensor], shared: dict[str, Any]
) -> dict[str, Any]:
    attention, heads = "layers.0.self_attn.", shared["num_attention_heads"]
    head_dim, query = config.get("head_dim"), weights.get(attention + "q_proj.weight")
    if head_dim is None and query is not None and query.shape[0] % heads == 0:
        head_dim = query.shape[0] // heads
    return {
        "head_dim": head_dim,
        "num_key_value_heads": config.get("num_key_value_heads"),
        "qkv_bias": attention + "q_proj.bias" in weights,
        "qk_norm": all(attention + name in weights for name in ("q_norm.weight", "k_norm.weight")),
    }


def _latent_attention(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    attention, heads = "layers.0.self_attn.", config["num_attention_heads"]
    needed = [attention + name for name in ("kv_a_layernorm.weight", "kv_a_proj_with_mqa.weight", "o_proj.weight")]
    if missing := [name for name in needed if name not in weights]:
        raise ValueError(f"The head has latent attention (`kv_b_proj`), but `{'`, `'.join(missing)}` is missing.")
    kv_rank = weights[attention + "kv_a_layernorm.weight"].numel()
    v_head_dim = weights[attention + "o_proj.weight"].shape[-1] // heads
    query_norm = weights.get(attention + "q_a_layernorm.weight")
    return {
        "num_key_value_heads": heads,
        "kv_lora_rank": kv_rank,
        "q_lora_rank": None if query_norm is None else query_norm.numel(),
        "qk_rope_head_dim": weights[attention + "kv_a_proj_with_mqa.weight"].shape[0] - kv_rank,
        "qk_nope_head_dim": weights[attention + "kv_b_proj.weight"].shape[0] // heads - v_head_dim,
        "v_head_dim": v_head_dim,
        "rope_interleave": config.get("rope_interleave", True),
        "qkv_bias": attention + "q_a_proj.bias" in weights,
    }
