"""Tiny random targets of many architectures."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from eagle_hf.cache.growing import GrowingLayer


VOCAB_SIZE = 96

GrowingLayer.FEW_BYTES = 1200  # so that the caches of these targets outgrow what is copied

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,  # wide enough for random weights to have opinions
}
_WINDOW = {"sliding_window": 8}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip

# What is particular about each: name -> (model_type, extra configuration)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-multi-query": ("llama", {"num_key_value_heads": 1}),
    "mistral-sliding": ("mistral", _WINDOW),
    "mixtral-moe": ("mixtral", _MOE),
    "qwen2": ("qwen2", {}),
    "qwen2-mixed": ("qwen2", _WINDOW | {"use_sliding_window": True, "layer_types": _MIXED}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3-moe": ("qwen3_moe", _MOE | {"head_dim": 8}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma2-softcap": ("gemma2", _WINDOW | {"head_dim": 8}),
    "gemma3-mixed": ("gemma3_text", _WINDOW | {"head_dim": 8, "layer_types": _MIXED}),
    "gpt-oss-sinks": ("gpt_oss", _WINDOW | _MOE | {"head_dim": 8, "layer_types": _MIXED}),
    "phi": ("phi", {}),
    "phi3-sliding": ("phi3", _WINDOW),
    "gpt2-learned-positions": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}),
    "gpt-bigcode-multi-query": ("gpt_bigcode", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}),
    "gpt-neox": ("gpt_neox", {}),
    "opt-learned-positions": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon-multi-query": ("falcon", {"multi_query": True, "alibi": False, "new_decoder_architecture": False}),
    "stablelm": ("stablelm", {}),
    "starcoder2-sliding": ("starcoder2", _WINDOW),
    "olmo2": ("olmo2", {}),
    "olmo3-mixed": ("olmo3", _WINDOW | {"layer_types": _MIXED}),
    "cohere": ("cohere", {}),
    "cohere2-mixed": ("cohere2", _WINDOW | {"layer_types": _MIXED}),
    "deepseek-v2-mla": ("deepseek_v2", _MLA | {"num_key_value_heads": 4, "topk_method": "greedy"}),
    "deepseek-v3-mla": ("deepseek_v3", _MLA | {"num_key_value_heads": 4}),
    "glm4": ("glm4", {"head_dim": 8}),
    "granite-moe": ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "llama4-chunked": (
        "llama4_text",
        _MOE | {"attention_chunk_size": 8, "head_dim": 8, "intermediate_size_mlp": 48,
                "layer_types": ["chunked_attention", "full_attention", "chunked_attention"]},
    ),
}  # fmt: skip


def tiny_target(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random target of one of `ARCHITECTURES`, in evaluation mode; the global generator is left as it was."""
    model_type, extra = ARCHITECTURES[name]
    config = AutoConfig.for_model(model_type, **(COMMON | extra))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.pad_token_id = 0
    return model.eval()
