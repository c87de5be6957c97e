"""
Says what sets a head apart from a plain EAGLE-3 head of one layer, and refuses to export what an engine cannot compute.
"""

from collections.abc import Collection

from ..configuration_eagle import EagleConfig


SILU = ("silu", "swish")  # two names of one function


def traits(config: EagleConfig) -> dict[str, str]:
    """
    Returns everything about a head that an engine may not know, by a short name, in words.

    Args:
        config ([`EagleConfig`]): Configuration of the head.
    """
    is_eagle1, rope = config.eagle_version == 1, config.rope_parameters or {}
    found = {
        "eagle1": (is_eagle1, "is an EAGLE-1 head"),
        "layers": (config.num_hidden_layers > 1, f"has {config.num_hidden_layers} layers"),
        "latent": (config.kv_lora_rank is not None, "has latent attention (`kv_lora_rank`)"),
        "qk_norm": (config.qk_norm, "normalises queries and keys (`qk_norm`)"),
        "qkv_bias_eagle1": (is_eagle1 and config.qkv_bias, "has biases on q, k and v (`qkv_bias`)"),
        "qkv_bias": (not is_eagle1 and config.qkv_bias, "has biases on q, k and v (`qkv_bias`)"),
        "o_bias": (config.o_bias, "has a bias on the output of attention (`o_bias`)"),
        "mlp_bias": (config.mlp_bias, "has biases in its MLP (`mlp_bias`)"),
        "fc_bias_eagle1": (is_eagle1 and config.fc_bias, "has a bias on `fc` (`fc_bias`)"),
        "fc_bias": (not is_eagle1 and config.fc_bias, "has a bias on `fc` (`fc_bias`)"),
        "no_fc": (not config.use_fc, "has no `fc` (`use_fc=False`)"),
        # Files of such heads have no list of hidden states: engines take the state after the final norm.
        "other_feature": (
            (is_eagle1 or not config.use_fc) and config.feature_layer_ids != [-1],
            f"reads `hidden_states` {config.feature_layer_ids} instead of the last one after the final norm",
        ),
        "activation": (
            config.hidden_act not in SILU,
            f"has the activation {config.hidden_act!r} in its MLP (`hidden_act`) instead of 'silu'",
        ),
        "norm_before_residual": (config.norm_before_residual, "keeps the normalised feature (`norm_before_residual`)"),
        "norm_before_fc": (config.norm_before_fc, "normalises all features together (`norm_before_fc`)"),
        "fc_norm": (config.fc_norm, "normalises every feature (`fc_norm`)"),
        "norm_output": (config.norm_output, "feeds back normalised states (`norm_output`)"),
        "no_hidden_norm": (not is_eagle1 and not config.hidden_norm, "has no `hidden_norm`"),
        "input_layernorm": (
            config.input_layernorm is is_eagle1,
            f"has {'an' if is_eagle1 else 'no'} `input_layernorm`",
        ),
        "features": (
            config.use_fc and not is_eagle1 and config.num_features != 3,
            f"reads {config.num_features} hidden states",
        ),
        "narrow": (
            config.target_hidden_size != config.hidden_size,
            f"is {config.hidden_size} wide, and its target {config.target_hidden_size}",
        ),
        "eagle1_vocabulary": (
            is_eagle1 and config.draft_vocab_size is not None,
            f"has an `lm_head` of its own for {config.draft_vocab_size} tokens",
        ),
        "no_lm_head": (not is_eagle1 and config.draft_vocab_size is None, "has no `lm_head`"),
        "parallel": (config.parallel_drafting, "drafts in parallel (P-EAGLE)"),
        "sliding_window": (config.sliding_window is not None, "attends within a window (`sliding_window`)"),
        "rope": (
            rope.get("rope_type", "default") not in ("default", "linear", "llama3", "yarn"),
            f"has rotary embeddings of type {rope.get('rope_type')!r}",
        ),
        "partial_rotary": (
            rope.get("partial_rotary_factor", 1.0) != 1.0,
            "rotates a part of each head only (`partial_rotary_factor`)",
        ),
    }  # fmt: skip
    return {name: words for name, (is_so, words) in found.items() if is_so}


def refuse(config: EagleConfig, engine: str, known: Collection[str], why: str) -> None:
    """
    Refuses a head that an engine would run as something else: the text would stay right, and nobody would notice that
    hardly a draft is accepted.

    Args:
        config ([`EagleConfig`]): Configuration of the head.
        engine (`str`): For whom it is to be written.
        known (`Collection[str]`): Names of [`traits`] that the engine computes as we do.
        why (`str`): Why it does not compute the others.

    Raises:
        `ValueError`: naming what the engine does not know.
    """
    if unknown := [words for name, words in traits(config).items() if name not in known]:
        raise ValueError(
            f"The head cannot be exported for {engine}: it {' and '.join(unknown)}, and {why}. It would not load "
            "there, or load and draft other tokens. Use `save_pretrained` for our own layout, or another layout that "
            "knows this."
        )


def usual_number_of_layers(ids: list[int]) -> int | None:
    """
    Returns the layers of a target for which `ids` are the choice of the EAGLE authors, [2, n // 2, n - 3]; `None` if
    none.
    """
    num_layers = max(ids) + 3
    return num_layers if len(ids) == 3 and ids == sorted({2, num_layers // 2, num_layers - 3}) else None
