"""
Every decoder-only causal language model of the installed `transformers`, as a tiny random model. The list is that of
`transformers` itself; configurations are shrunk field by field, with a table for those that need more.
"""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging


VOCAB_SIZE = 96
NUM_LAYERS = 4
_LARGEST = 3_000_000  # parameters; what is larger has a size that nobody shrank

# Small values by field name: each is set where a configuration has such a field.
_SMALL: dict[str, Any] = {
    "unpadded_vocab_size": VOCAB_SIZE,
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False, "is_decoder": True,
    "use_cache": True,
    "initializer_range": 0.2, "init_std": 0.2,  # wide enough for random weights to have opinions
    # other names for the same things
    "d_model": 32, "n_embd": 32, "embedding_dim": 32, "embedding_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48,
    "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "n_inner": 48, "ffn_hidden_size": 48, "d_inner": 48, "dff": 48,
    "n_layer": NUM_LAYERS, "n_layers": NUM_LAYERS, "num_layers": NUM_LAYERS, "num_blocks": NUM_LAYERS,
    "decoder_layers": NUM_LAYERS, "encoder_layers": NUM_LAYERS, "num_decoder_layers": NUM_LAYERS,
    "num_encoder_layers": 2, "decoder_attention_heads": 4, "encoder_attention_heads": 4, "n_head": 4, "n_heads": 4,
    "num_heads": 4, "num_decoder_attention_heads": 4, "num_encoder_attention_heads": 4, "attention_heads": 4,
    "n_positions": 256, "n_ctx": 256, "max_seq_len": 256, "max_target_positions": 256,
    # windows, smaller than the prompts of the tests
    "sliding_window": 8, "window_size": 8, "attention_window_size": 8, "sliding_window_size": 8, "local_attention": 8,
    "attention_chunk_size": 8,
    # mixtures of experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1, "num_expert_group": 1,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24, "shared_intermediate_size": 24, "shared_experts_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24, "expert_ffn_hidden_size": 24, "intermediate_size_mlp": 48,
    "dense_intermediate_size": 48, "first_k_dense_replace": 1, "num_dense_layers": 1, "zero_expert_num": 2,
    # latent attention and indexers
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "index_head_dim": 16, "index_n_heads": 16, "index_topk": 8,  # fewer than the tokens
    "o_lora_rank": 8, "o_groups": 2,
    # recurrent layers
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_head_dim": 8, "linear_num_heads": 4, "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8,
    "mamba_d_ssm": 64, "mamba_chunk_size": 8, "chunk_size": 8, "mamba_dt_rank": 4, "state_size": 8,
    "ssm_state_size": 8, "time_step_rank": 4, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "lru_width": 32,
    # particular to a few
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB_SIZE, "laurel_rank": 8,
    "num_kv_shared_layers": 0, "rotary_dim": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2,
    "swa_head_dim": 8, "input_embedding_size": 32, "output_embedding_size": 32, "router_hidden_size": 16,
}  # fmt: skip

_HALF = ["linear_attention", "full_attention"] * (NUM_LAYERS // 2)
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# What the field names do not say: configurations with conditions between their fields.
_SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": NUM_LAYERS - 2, "n_output_layers": 1},
    "inkling2_loop_text": {
        "n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1, "loop_layer_index_end": NUM_LAYERS - 1,
        "loop_gate_rank": 8,
    },
    "cpmant": {"dim_ff": 48, "dim_head": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon": {"multi_query": True, "alibi": False, "new_decoder_architecture": False},
    "glm_moe_dsa": {"index_topk": 64},  # beyond its budget, see docs/architectures.md
    "gpt_neo": {"attention_types": [[["global", "local"], NUM_LAYERS // 2]]},
    "granitemoehybrid": {"layer_types": _HALF},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"full_attn_idxs": [1, 3], "layer_types": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (NUM_LAYERS // 2)},
    "mamba2": {"num_heads": 8},
    "phi4_multimodal": {"vision_config": {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16}},
    "prophetnet": {"num_hidden_layers": None, "num_encoder_layers": NUM_LAYERS, "is_encoder_decoder": False},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "reformer": {
        "axial_pos_embds_dim": (16, 16), "axial_pos_shape": (16, 16), "attention_head_size": 8,
        "feed_forward_size": 48, "is_decoder": True,
    },
    "roc_bert": {
        "shape_vocab_size": 16, "pronunciation_vocab_size": 16, "shape_embed_dim": 16, "pronunciation_embed_dim": 16,
    },
    "xlnet": {"max_position_embeddings": None, "d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"v_dim_factor": 1.0, "qk_dim_factor": 0.5, "head_dim": None, "mode": "inference"},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

# What checkpoints of a family have and its default configuration has not, where it is of another kind: which layers
# there are, whose keys they read, how they count positions. By model type, colon, and what is particular.
_MIXED = ["sliding_attention", "full_attention"] * (NUM_LAYERS // 2)
_LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "deepseek_v3: without a query projection": {"q_lora_rank": None},
    "exaone4: full attention": {"layer_types": ["full_attention"] * NUM_LAYERS, "sliding_window": None},
    "falcon: ALiBi": {"alibi": True, "multi_query": False},
    "falcon: new decoder architecture": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma2: windows first": {"layer_types": _MIXED},
    "gemma3_text: full attention last": {"layer_types": [*["sliding_attention"] * (NUM_LAYERS - 1), "full_attention"]},
    "gemma4_text: mixture of experts": {
        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24,
        "attention_k_eq_v": True, "num_global_key_value_heads": 1, "layer_types": _MIXED,
    },
    "gemma4_text: shared keys and values": {
        "num_kv_shared_layers": NUM_LAYERS // 2, "layer_types": _MIXED, "use_double_wide_mlp": True,
        "num_key_value_heads": 1,
    },
    "gpt_oss: full attention": {"layer_types": ["full_attention"] * NUM_LAYERS},
    "granitemoehybrid: attention only": {"layer_types": ["full_attention"] * NUM_LAYERS},
    "llama4_text: no positions in some layers": {"no_rope_layers": [1, 0] * (NUM_LAYERS // 2)},
    "minimax_m3_vl_text: sparse attention": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * (NUM_LAYERS // 2), "index_n_heads": 2,
        "index_head_dim": 8, "index_block_size": 4, "index_topk_blocks": 2,
    },
    "mistral: full attention": {"sliding_window": None},
    "mixtral: windows": {"sliding_window": 8},
    "opt: norms behind": {"do_layer_norm_before": False},
    "phi3: longrope": {"rope_parameters": _LONG, "original_max_position_embeddings": 20},
    "phi3: full attention": {"sliding_window": None},
    "qwen2: windows": {"use_sliding_window": True, "sliding_window": 8, "layer_types": _MIXED},
    "qwen3: windows": {"use_sliding_window": True, "sliding_window": 8, "layer_types": _MIXED},
    "qwen3_moe: some layers without experts": {"mlp_only_layers": [0, 2]},
    "smollm3: windows": {"use_sliding_window": True, "sliding_window": 8, "layer_types": _MIXED},
    "starcoder2: full attention": {"sliding_window": None},
}  # fmt: skip


class NotBuiltError(Exception):
    """An entry of the list that is no text decoder of its own, or has no tiny version here; says why."""


def model_types() -> dict[str, type[PreTrainedConfig]]:
    """Configuration of every causal language model in the list of `transformers`, in alphabetical order."""
    return dict(sorted((config.model_type, config) for config in MODEL_FOR_CAUSAL_LM_MAPPING.keys()))  # noqa: SIM118


def decoders() -> list[str]:
    """Every model type, and those of `VARIANTS` that this version of `transformers` has, in alphabetical order."""
    known = model_types()
    return sorted([*known, *(name for name in VARIANTS if name.partition(":")[0] in known)])


def tiny_config(name: str) -> PreTrainedConfig:
    """
    Args:
        name (`str`): A model type, or one of `VARIANTS`.

    Raises:
        `NotBuiltError`: if it is no text decoder of its own.
    """  # noqa: D205
    model_type = name.partition(":")[0]
    config_class = model_types()[model_type]
    try:
        default = config_class()
    except Exception as error:
        raise NotBuiltError(f"its default configuration is invalid ({_first_line(error)})") from error
    text = default.get_text_config(decoder=True)
    if type(text) is not config_class:
        known = type(text) in MODEL_FOR_CAUSAL_LM_MAPPING
        raise NotBuiltError(
            f"multimodal, its text decoder is `{text.model_type}`" if known else "multimodal, without a text decoder"
        )
    names = config_class.attribute_map
    values = {names.get(field, field): value for field, value in _SMALL.items() if _can_be_set(default, field)}
    if hasattr(default, "kv_lora_rank"):
        values["num_key_value_heads"] = values["num_attention_heads"]
    for field in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = list(dict.fromkeys(getattr(default, field, None) or ()))
        if kinds and _can_be_set(default, field):
            values[names.get(field, field)] = [kinds[i % len(kinds)] for i in range(NUM_LAYERS)]
    values |= _SPECIAL.get(model_type, {})
    values = {field: value for field, value in values.items() if value is not None}
    return config_class(**values | VARIANTS.get(name, {}))


def tiny_decoder(name: str) -> PreTrainedModel:
    """
    A random model in evaluation mode; the global generator is left as it was.

    Args:
        name (`str`): A model type, or one of `VARIANTS`.

    Raises:
        `NotBuiltError`: with the reason.
    """
    try:
        config = tiny_config(name)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > _LARGEST:
            raise NotBuiltError(f"no tiny version of it here ({size / 1e6:.0f} M parameters)")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).eval()
            # a model that cannot run an ordinary forward is no target, with or without drafts
            with torch.no_grad():
                model(torch.arange(3, 12)[None])
    except NotBuiltError:
        raise
    except Exception as error:
        raise NotBuiltError(f"no tiny version of it here ({_first_line(error)})") from error
    model.generation_config.pad_token_id = 0
    return model


def _can_be_set(config: PreTrainedConfig, name: str) -> bool:
    kind = getattr(type(config), type(config).attribute_map.get(name, name), None)
    try:
        return (not isinstance(kind, property) or kind.fset is not None) and hasattr(config, name)
    except Exception:  # fields that differ between layers refuse to be read as one
        return True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def decoder_or_skip(name: str) -> PreTrainedModel:
    """[`tiny_decoder`], or a skipped test where this version of `transformers` has none."""
    logging.set_verbosity_error()  # tiny vocabularies do not hold the special tokens of large ones
    if name not in decoders():
        pytest.skip("not in this version of transformers")
    try:
        return tiny_decoder(name)
    except NotBuiltError as error:
        pytest.skip(str(error))
