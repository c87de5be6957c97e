"""Attention of the head: grouped queries with rotary embeddings."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache

from ..configuration_eagle import EagleConfig


# Cosines and sines, of shape (batch_size, 1, seq_len, rotary_dim) each.
Rotary = tuple[torch.Tensor, torch.Tensor]
# Attention of one layer in training, given its index, queries, keys and values of shape (batch_size, heads, seq_len,
# dim), and the factor of the scores; returns (batch_size, seq_len, num_heads * v_dim).
UnrolledAttention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


class Attention(nn.Module, ABC):
    """Attention of a head's layer: how queries, keys and values are made, its kinds say in `project`."""

    layer_idx: int
    scaling: float
    o_proj: nn.Linear

    @abstractmethod
    def project(self, inputs: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Makes queries, keys and values of `inputs`, of shape `(batch_size, heads, seq_len, dim)` each."""

    def forward(
        self,
        inputs: torch.Tensor,
        rotary: Rotary,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        unrolled_attention: UnrolledAttention | None = None,
    ) -> torch.Tensor:
        """Returns outputs of shape `(batch_size, seq_len, hidden_size)`; arguments as in [`EagleDraftModel.step`]."""
        query, key, value = self.project(inputs, rotary)
        if unrolled_attention is not None:
            return self.o_proj(unrolled_attention(self.layer_idx, query, key, value, self.scaling))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        return self.o_proj(attend(query, key, value, attention_mask, self.scaling))


class EagleAttention(Attention):
    """
    Grouped-query attention with rotary embeddings; its input may be wider than the head (EAGLE-3 reads two vectors).
    """

    def __init__(self, config: EagleConfig, layer_idx: int, input_size: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = cast(int, config.head_dim)
        q_size, kv_size = (
            config.num_attention_heads * self.head_dim,
            cast(int, config.num_key_value_heads) * self.head_dim,
        )
        self.q_proj = nn.Linear(input_size, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(input_size, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(input_size, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.o_bias)
        self.scaling = self.head_dim**-0.5
        self.has_qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def project(self, inputs: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Makes rotated queries and keys, and values, for every row of `inputs` of shape
        `(batch_size, seq_len, input_size)`.

        Returns:
            Three tensors of shape `(batch_size, heads, seq_len, head_dim)`, keys and values with `num_key_value_heads`.
        """
        by_head = (*inputs.shape[:-1], -1, self.head_dim)
        query = self.q_proj(inputs).view(by_head).transpose(1, 2)
        key = self.k_proj(inputs).view(by_head).transpose(1, 2)
        value = self.v_proj(inputs).view(by_head).transpose(1, 2)
        if self.has_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        return rotate(query, rotary), rotate(key, rotary), value


def rotate(states: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """
    Rotates the first `rotary_dim` entries of queries or keys of shape `(batch_size, heads, seq_len, dim)` by their
    positions; the others, where there are any, stay.
    """
    cos, sin = rotary
    rotated, rest = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([rotated, rest], dim=-1) if rest.shape[-1] else rotated


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """
    Computes the attention of new rows over all rows.

    Args:
        query (`torch.Tensor` of shape `(batch_size, num_heads, seq_len, qk_dim)`): Queries.
        key (`torch.Tensor` of shape `(batch_size, num_key_value_heads, past_len + seq_len, qk_dim)`): Keys.
        value (`torch.Tensor` of shape `(batch_size, num_key_value_heads, past_len + seq_len, v_dim)`): Values.
        attention_mask (`torch.Tensor`, *optional*): As in [`EagleDraftModel.step`].
        scaling (`float`): Factor of the scores.

    Returns:
        `torch.Tensor` of shape `(batch_size, seq_len, num_heads * v_dim)`
    """
    # Without a mask, attention is causal; a single row sees everything, which needs no mask at all.
    is_causal = attention_mask is None and query.shape[2] > 1
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, is_causal=is_causal, scale=scaling, enable_gqa=True
    )  # (batch_size, num_heads, seq_len, v_dim)
    return output.transpose(1, 2).flatten(2)
