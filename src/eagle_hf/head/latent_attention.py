"""Multi-head latent attention, as in DeepSeek-V2, V3 and Kimi-K2: heads for these targets are often built of it."""

import math
from typing import cast

import torch
from torch import nn

from ..configuration_eagle import EagleConfig
from .attention import Attention, Rotary, rotate


class MultiHeadLatentAttention(Attention):
    """
    Attention whose queries, and whose keys and values, come through low-rank projections; a part of every query and key
    carries the position, and that part of the key is the same for all heads:

    ```text
    query of a head = [from the latent: qk_nope_head_dim | rotated: qk_rope_head_dim]
    key of a head   = [from the latent: qk_nope_head_dim | rotated, shared: qk_rope_head_dim]
    ```

    Takes the place of [`EagleAttention`]. Its cache holds whole keys and values: the head is one layer, and what
    matters is the time of a step.

    Args:
        config ([`EagleConfig`]): Configuration of the head, with `kv_lora_rank`.
        layer_idx (`int`): Which layer of the head this is.
        input_size (`int`): Width of what attention reads.
    """

    def __init__(self, config: EagleConfig, layer_idx: int, input_size: int):
        super().__init__(config, layer_idx)
        self.num_heads = self.num_key_value_heads = config.num_attention_heads
        self.nope_dim, self.rope_dim = cast(int, config.qk_nope_head_dim), cast(int, config.qk_rope_head_dim)
        self.v_dim, self.kv_rank = cast(int, config.v_head_dim), cast(int, config.kv_lora_rank)
        self.interleaved = config.rope_interleave
        query_size = self.num_heads * (self.nope_dim + self.rope_dim)
        bias = config.qkv_bias and config.q_lora_rank is not None  # `q_proj` never has one
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(input_size, query_size, bias=False)
        else:
            self.q_a_proj = nn.Linear(input_size, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = nn.RMSNorm(config.q_lora_rank, eps=config.rms_norm_eps)
            self.q_b_proj = nn.Linear(config.q_lora_rank, query_size, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(input_size, self.kv_rank + self.rope_dim, bias=bias)
        self.kv_a_layernorm = nn.RMSNorm(self.kv_rank, eps=config.rms_norm_eps)
        self.kv_b_proj = nn.Linear(self.kv_rank, self.num_heads * (self.nope_dim + self.v_dim), bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.v_dim, config.hidden_size, bias=config.o_bias)
        self.has_query_latent = config.q_lora_rank is not None
        self.scaling = (self.nope_dim + self.rope_dim) ** -0.5 * _length_scaling(config.rope_parameters or {}) ** 2

    def project(self, inputs: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Makes queries, keys and values for every row of `inputs` of shape `(batch_size, seq_len, input_size)`.

        Returns:
            Three tensors of shape `(batch_size, num_heads, seq_len, dim)`; `dim` is `v_head_dim` for values, and
            `qk_nope_head_dim + qk_rope_head_dim` for queries and keys.
        """
        if self.has_query_latent:
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(inputs)))
        else:
            query = self.q_proj(inputs)
        latent, shared_key = self.kv_a_proj_with_mqa(inputs).split([self.kv_rank, self.rope_dim], dim=-1)
        query = query.view(*inputs.shape[:-1], self.num_heads, -1).transpose(1, 2)
        key_value = self.kv_b_proj(self.kv_a_layernorm(latent))
        key_value = key_value.view(*inputs.shape[:-1], self.num_heads, -1).transpose(1, 2)
        key, value = key_value.split([self.nope_dim, self.v_dim], dim=-1)
        query, query_rope = query.split([self.nope_dim, self.rope_dim], dim=-1)
        query_rope, key_rope = self._rotate(query_rope, rotary), self._rotate(shared_key[:, None], rotary)
        query = torch.cat([query, query_rope], dim=-1)
        key = torch.cat([key, key_rope.expand(-1, self.num_heads, -1, -1)], dim=-1)
        return query, key, value

    def _rotate(self, states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        if self.interleaved:  # pairs lie side by side; queries and keys may be reordered as long as both are
            states = states.view(*states.shape[:-1], -1, 2).transpose(-1, -2).flatten(-2)
        return rotate(states, rotary)


def _length_scaling(rope_parameters: dict) -> float:
    """
    Returns by how much scaled rotary embeddings sharpen attention, where the configuration says so (`mscale_all_dim`).
    """
    mscale, factor = rope_parameters.get("mscale_all_dim"), rope_parameters.get("factor", 1.0)
    if not mscale or factor <= 1 or rope_parameters.get("rope_type", "default") == "default":
        return 1.0
    return 0.1 * mscale * math.log(factor) + 1.0
