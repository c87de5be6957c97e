"""Tensor names: every layout says the same things in slightly different words."""

import re

import torch


# Copies of the target, and buffers that follow from the configuration, that trainers save along with the head.
_DROPPED = re.compile(r"^(target_model|verifier_lm_head|verifier_norm)\.|rotary_emb\.inv_freq$")
_RENAMED = (
    (re.compile(r"^model\."), ""),
    (re.compile(r"^midlayer\."), "layers.0."),
    (re.compile(r"^aux_norm_low\."), "fc_norm.0."),
    (re.compile(r"^aux_norm_mid\."), "fc_norm.1."),
    (re.compile(r"^aux_norm_high\."), "fc_norm.2."),
)


def canonical_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Returns the tensors of any dense or latent-attention head under the names of [`EagleDraftModel`].

    Raises:
        `ValueError`: if two tensors mean the same.
    """
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if _DROPPED.search(name):
            continue
        new_name = name
        for pattern, replacement in _RENAMED:
            new_name = pattern.sub(replacement, new_name)
        later_norm = re.fullmatch(r"(layers\.[1-9]\d*)\.hidden_norm\.weight", new_name)
        if later_norm and f"{later_norm[1]}.input_layernorm.weight" not in weights:
            new_name = f"{later_norm[1]}.input_layernorm.weight"  # SGLang's name for the norm of later layers
        if new_name in renamed:
            raise ValueError(f"The tensor `{name}` and another one both mean `{new_name}`: which one is the head's?")
        renamed[new_name] = tensor
    return renamed


def count_layers(weights: dict[str, torch.Tensor]) -> int:
    """
    Returns decoder layers, counted in canonical names: what configurations say is the target's number in some heads.
    """
    return len({match[1] for name in weights if (match := re.match(r"layers\.(\d+)\.", name))})


def is_eagle3(weights: dict[str, torch.Tensor]) -> bool:
    """
    Checks whether tensors under canonical names are those of an EAGLE-3 head: the first layer normalises or reads two
    vectors. One of them may be missing; that is for a later check, which says so.
    """
    if "layers.0.hidden_norm.weight" in weights:
        return True
    norms = [weights[name] for name in _FIRST_NORMS if name in weights]
    inputs = [weights[name] for name in _FIRST_PROJECTIONS if name in weights]
    return any(inputs[0].shape[-1:] == (2 * norm.numel(),) for norm in norms) if inputs else False


_FIRST_NORMS = ("norm.weight", "layers.0.input_layernorm.weight", "layers.0.post_attention_layernorm.weight")
_FIRST_PROJECTIONS = tuple(
    f"layers.0.self_attn.{name}.weight" for name in ("q_proj", "q_a_proj", "kv_a_proj_with_mqa", "k_proj")
)
