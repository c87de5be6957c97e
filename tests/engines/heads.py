"""
Random heads, one per option and more with several, for the demo target. Random weights make every option visible: an
engine that leaves one out drafts other tokens at once, while a trained head would only be accepted a little less.
"""

import random
from typing import Any

import torch

from eagle_hf import EagleConfig, EagleDraftModel


NUM_LAYERS, HIDDEN, VOCAB, DRAFT_VOCAB = 24, 192, 8192, 1024  # of the demo target; of the heads
PLAIN: dict[str, Any] = {
    "vocab_size": VOCAB, "draft_vocab_size": DRAFT_VOCAB, "hidden_size": HIDDEN, "intermediate_size": 448,
    "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64, "rms_norm_eps": 1e-6,
    "feature_layer_ids": [3, 12, 19],
}  # fmt: skip
OWN = {"own_embed_tokens": True}
BIASES = {"qkv_bias": True, "o_bias": True}
PARALLEL = {"parallel_drafting": True, "mask_token_id": 5, "num_hidden_layers": 2} | OWN
EAGLE1 = {"eagle_version": 1, "draft_vocab_size": None, "feature_layer_ids": [-1]}
LATENT = {
    "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "num_key_value_heads": 3, "head_dim": None,
}  # fmt: skip


def _ids(*ids: int) -> dict[str, Any]:
    return {"feature_layer_ids": list(ids)}


def _rope(kind: str, theta: float = 1e4, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


_YARN = {"factor": 4.0, "original_max_position_embeddings": 512}
_LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
_LONG = {"short_factor": [1.5] * 32, "long_factor": [3.0] * 32, "original_max_position_embeddings": 512}

# What is different from a plain EAGLE-3 head, by name.
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "usual layers": {"feature_layer_ids": None},
    "whole vocabulary": {"draft_vocab_size": VOCAB},
    "no fc": {"use_fc": False} | _ids(-1),
    "no fc, reads layer 12": {"use_fc": False} | _ids(12),
    "reads the embedding": _ids(0, 3, 12),
    "reads the last layer": _ids(12, 19, 24),
    "reads the state after the norm": _ids(3, 12, -1),
    "layers in another order": _ids(19, 3, 12),
    "four layers in another order": _ids(20, 8, 1, 12),
    "reads one hidden state": _ids(12),
    "reads two hidden states": _ids(3, 12),
    "reads four hidden states": _ids(3, 8, 12, 19),
    "reads five hidden states": _ids(2, 7, 12, 16, 21),
    "norm_before_residual": {"norm_before_residual": True},
    "norm_before_fc": {"norm_before_fc": True},
    "fc_norm": {"fc_norm": True},
    "norm_output": {"norm_output": True},
    "hidden_act gelu_pytorch_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "hidden_act relu": {"hidden_act": "relu"},
    "hidden_act swish": {"hidden_act": "swish"},
    "no lm_head": {"draft_vocab_size": None},
    "own embedding": OWN,
    "narrower than the target": {"target_hidden_size": HIDDEN, "hidden_size": 128, "num_attention_heads": 2} | OWN,
    "head_dim 32 of 6 heads": {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32},
    "rope theta 1e6": _rope("default", 1e6),
    "rope linear": _rope("linear", factor=4.0),
    "rope llama3": _rope("llama3", **_LLAMA3),
    "rope yarn": _rope("yarn", **_YARN),
    "rope yarn with all its parameters": _rope("yarn", **_YARN, attention_factor=1.3, beta_fast=16.0, beta_slow=2.0),
    "rope dynamic": _rope("dynamic", factor=4.0),
    "rope longrope": _rope("longrope", **_LONG),
    "rope of a half of each head": _rope("default", partial_rotary_factor=0.5),
    "qk_norm": {"qk_norm": True},
    "biases on q, k, v and o": BIASES,
    "biases on q, k and v": {"qkv_bias": True},
    "bias on o": {"o_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "fc_bias": {"fc_bias": True},
    "two layers": {"num_hidden_layers": 2},
    "no hidden_norm": {"hidden_norm": False},
    "no input_layernorm": {"input_layernorm": False},
    "sliding_window 16": {"sliding_window": 16},
    "sliding_window 16 in the second layer": {
        "sliding_window": 16, "sliding_window_layers": [1], "num_hidden_layers": 2,
    },
    "P-EAGLE": PARALLEL,
    "EAGLE-1": EAGLE1,
    "EAGLE-1, own embedding": EAGLE1 | OWN,
    "EAGLE-1, bias on fc": EAGLE1 | {"fc_bias": True},
    "EAGLE-1, biases on q, k and v": EAGLE1 | {"qkv_bias": True},
    "EAGLE-1, bias on o": EAGLE1 | {"o_bias": True},
    "EAGLE-1, mlp_bias": EAGLE1 | {"mlp_bias": True},
    "EAGLE-1, two layers": EAGLE1 | {"num_hidden_layers": 2},
    "EAGLE-1, input_layernorm": EAGLE1 | {"input_layernorm": True},
    "EAGLE-1, qk_norm": EAGLE1 | {"qk_norm": True},
    "EAGLE-1, reads the last layer": EAGLE1 | _ids(24),
    "EAGLE-1, hidden_act relu": EAGLE1 | {"hidden_act": "relu"},
    "latent attention": LATENT,
    # Options that meet in one place of an engine's code.
    "DeepSeek's: qk_norm, five hidden states, own embedding, whole vocabulary": (
        {"qk_norm": True, "draft_vocab_size": VOCAB} | OWN | _ids(2, 10, 14, 18, 22)
    ),
    "fc_norm, layers in another order": {"fc_norm": True} | _ids(19, 3, 12),
    "norm_before_fc, layers in another order": {"norm_before_fc": True} | _ids(12, 19, 3, 8),
    "qk_norm, layers in another order, two layers": {"qk_norm": True, "num_hidden_layers": 2} | _ids(19, 3, 12),
    "P-EAGLE, layers in another order, norm_before_fc": PARALLEL | {"norm_before_fc": True} | _ids(19, 3, 12),
    "P-EAGLE, two hidden states": PARALLEL | _ids(3, 12),
    "P-EAGLE, qk_norm": PARALLEL | {"qk_norm": True},
    "P-EAGLE, norm_before_residual, biases": PARALLEL | BIASES | {"norm_before_residual": True},
    "P-EAGLE, no lm_head": PARALLEL | {"draft_vocab_size": None},
    "P-EAGLE, norm_output": PARALLEL | {"norm_output": True},
    "P-EAGLE, fc_norm": PARALLEL | {"fc_norm": True},
    "qk_norm, biases": BIASES | {"qk_norm": True},
    "qk_norm, mlp_bias": {"qk_norm": True, "mlp_bias": True},
    "qk_norm, sliding_window 16": {"qk_norm": True, "sliding_window": 16},
    "no lm_head, norm_output": {"draft_vocab_size": None, "norm_output": True},
    "no lm_head, two hidden states": {"draft_vocab_size": None} | _ids(3, 12),
    "no lm_head, qk_norm": {"draft_vocab_size": None, "qk_norm": True},
    "all biases, two layers": BIASES | {"mlp_bias": True, "num_hidden_layers": 2},
    "narrow, fc_norm, layers in another order": (
        {"target_hidden_size": HIDDEN, "hidden_size": 128, "num_attention_heads": 2, "fc_norm": True}
        | OWN | _ids(19, 3, 12)
    ),
    "no fc, norm_output": {"use_fc": False, "norm_output": True} | _ids(-1),
    "no fc, two layers": {"use_fc": False, "num_hidden_layers": 2} | _ids(-1),
    "no fc, no lm_head": {"use_fc": False, "draft_vocab_size": None} | _ids(-1),
    "no fc, norm_before_residual": {"use_fc": False, "norm_before_residual": True} | _ids(-1),
}  # fmt: skip

# Options that are drawn together, each with the chance of being drawn.
_DRAWN: list[list[dict[str, Any]]] = [
    [{}, {"num_hidden_layers": 2}],
    [{}, {"norm_before_residual": True}],
    [{}, {"norm_before_fc": True}, {"fc_norm": True}],
    [{}, {"norm_output": True}],
    [{}, {"qk_norm": True}],
    [{}, {}, BIASES],
    [{}, {}, {"mlp_bias": True}],
    [{}, OWN],
    [{}, {"draft_vocab_size": None}, {"draft_vocab_size": VOCAB}],
    [{}, _ids(19, 3, 12), _ids(3, 12), _ids(16, 2, 21, 12), _ids(0, 24), _ids(7, 2, 12, 21, 16)],
    [{}, _rope("default", 5e5), _rope("linear", factor=2.0), _rope("yarn", **_YARN)],
    [{}, {}, {"sliding_window": 16}],
    [{}, {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}],
]


def drawn_heads(number: int) -> dict[str, dict[str, Any]]:
    """Heads with options drawn at random and together, always the same ones."""
    found = {}
    for seed in range(number):
        generator, fields = random.Random(seed), {}
        for choices in _DRAWN:
            fields |= generator.choice(choices)
        found[f"drawn {seed}"] = fields
    return found


def random_head(fields: dict[str, Any], seed: int = 0) -> EagleDraftModel:
    """A head with these options and random weights, large enough that all of them matter."""
    draft = EagleDraftModel(EagleConfig(**(PLAIN | fields))).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in draft.named_parameters():
        scale = 0.08 if parameter.dim() == 2 else 0.5
        parameter.data.normal_(0.0, scale, generator=generator)
        if "norm" in name:
            parameter.data += 1.0
    if draft.has_reduced_vocabulary:
        draft.set_draft_vocabulary(torch.randperm(VOCAB, generator=generator)[:DRAFT_VOCAB].sort().values)
    return draft
