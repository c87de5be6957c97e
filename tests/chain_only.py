"""Targets whose layers take no mask per node, so that they verify chains only."""

import torch
from architectures import VOCAB_SIZE
from transformers import AutoConfig, AutoModelForCausalLM


def build(model_type, **config):
    common = {
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(common | config))).eval()


CHAIN_ONLY = {
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 128, "use_cache": True},
    "falcon": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "alibi": True,
        "multi_query": False,
    },
}
