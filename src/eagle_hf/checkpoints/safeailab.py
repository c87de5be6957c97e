"""
The layout of the EAGLE authors (SafeAILab): a Llama-like `config.json` and fp16 weights, mostly as `pytorch_model.bin`.

EAGLE-1 and EAGLE-2 heads: `embed_tokens`, `fc`, `layers.0.*`, no norm and no `lm_head`. EAGLE-3 heads: `fc`,
`midlayer.*`, `norm`, `lm_head`, and `d2t` / `t2d` where the draft vocabulary is reduced. Their configurations say
little: what is not in them follows from defaults of the authors' code, and the number of layers from the weights, since
the published number is the target's in some repositories.
"""

import re
from typing import Any

import torch

from ..configuration_eagle import EagleConfig


# Buffers and tied copies of the target that the authors' trainer saves along with the head.
_JUNK = re.compile(r"(^target_model\.)|(rotary_emb\.inv_freq$)")


def matches(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> bool:
    """Whether the tensors are those of an authors' head."""
    is_eagle3 = "midlayer.hidden_norm.weight" in weights
    is_eagle1 = "fc.weight" in weights and "layers.0.mlp.up_proj.weight" in weights and "lm_head.weight" not in weights
    return is_eagle3 or (is_eagle1 and "layers.0.hidden_norm.weight" not in weights)


def read(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> tuple[EagleConfig, dict[str, torch.Tensor]]:
    """
    Turn an authors' head into our configuration and tensors.

    Args:
        config (`dict`): Content of `config.json`.
        weights (`dict[str, torch.Tensor]`): The tensors of the file.

    Raises:
        `ValueError`: if the configuration lacks what the authors' code needs as well.
    """
    weights = {name: tensor for name, tensor in weights.items() if not _JUNK.search(name)}
    is_eagle3 = any(name.startswith("midlayer.") for name in weights)
    weights = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in weights.items()}
    missing = [n for n in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size") if n not in config]
    if missing:
        raise ValueError(f"config.json of the head lacks {', '.join(missing)}.")

    fields = {
        name: config[name]
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
            "hidden_act", "max_position_embeddings", "initializer_range",
            "bos_token_id", "eos_token_id", "pad_token_id",
        )
        if config.get(name) is not None
    }  # fmt: skip
    layers = {int(match.group(1)) for name in weights if (match := re.match(r"layers\.(\d+)\.", name))}
    return EagleConfig(
        eagle_version=3 if is_eagle3 else 1,
        draft_vocab_size=_draft_vocab_size(config, weights) if is_eagle3 else None,
        target_hidden_size=config.get("target_hidden_size"),
        own_embed_tokens="embed_tokens.weight" in weights,
        num_hidden_layers=len(layers),
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_parameters=_rope_parameters(config),
        fc_bias=False if is_eagle3 else config.get("bias", True),
        qkv_bias=False if is_eagle3 else config.get("qkv_bias", False),
        **fields,
    ), weights


def _draft_vocab_size(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> int:
    if config.get("draft_vocab_size") is not None:
        return config["draft_vocab_size"]
    if "lm_head.weight" not in weights:
        raise ValueError("The head has neither `draft_vocab_size` in config.json nor `lm_head.weight` to tell it from.")
    return weights["lm_head.weight"].shape[0]


def _rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    # The head's own theta: 10000 unless its configuration says otherwise, whatever the target uses.
    scaling = dict(config.get("rope_scaling") or {})
    if "type" in scaling:
        scaling["rope_type"] = scaling.pop("type")
    return {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0), **scaling}
