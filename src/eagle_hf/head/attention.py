"""Attention of the head: grouped queries with rotary embeddings."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache

from ..configuration_eagle import EagleConfig
from .packed_linear import PackedLinear


# Cosines, and sines whose first half is negated, of shape (batch_size, 1, seq_len, head_dim) each: then rotating x is
# x * cos + roll(x, head_dim // 2) * signed_sin.
Rotary = tuple[torch.Tensor, torch.Tensor]
# Attention of one layer in training, given its index, queries, keys and values of shape (batch_size, heads, seq_len,
# dim), and the factor of the scores; returns (batch_size, seq_len, num_heads * v_dim).
UnrolledAttention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


class Attention(nn.Module, ABC):
    """Attention of a head's layer. What it is made of, its kinds say in `project` and `pack`."""

    layer_idx: int
    scaling: float
    o_proj: nn.Linear

    @abstractmethod
    def project(
        self, inputs: torch.Tensor, rotary: Rotary, packed: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of `inputs`, of shape `(batch_size, heads, seq_len, dim)` each."""

    @abstractmethod
    def pack(self) -> None:
        """Let `project(..., packed=True)` compute projections of the same input at once."""

    @property
    @abstractmethod
    def is_packed(self) -> bool:
        """Whether `project(..., packed=True)` may be called."""

    def forward(
        self,
        inputs: torch.Tensor,
        rotary: Rotary,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        packed: bool = False,
        unrolled_attention: UnrolledAttention | None = None,
    ) -> torch.Tensor:
        """Attention output of shape `(batch_size, seq_len, hidden_size)`; arguments as in [`EagleDraftModel.step`]."""
        query, key, value = self.project(inputs, rotary, packed)
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
        self.num_heads, self.num_key_value_heads = config.num_attention_heads, cast(int, config.num_key_value_heads)
        q_size, kv_size = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(input_size, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(input_size, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(input_size, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.o_bias)
        self.scaling = self.head_dim**-0.5
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.has_qk_norm = config.qk_norm
        self.qkv = PackedLinear("q_proj", "k_proj", "v_proj")

    def project(
        self, inputs: torch.Tensor, rotary: Rotary, packed: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Rotated queries and keys, and values, for every row of `inputs` of shape `(batch_size, seq_len, input_size)`.

        Returns:
            Three tensors of shape `(batch_size, heads, seq_len, head_dim)`, keys and values with `num_key_value_heads`.
        """
        # `unflatten`, which says the same, ends the graph within `FewRowProducts`.
        qkv = self.qkv(self, inputs, packed).view(*inputs.shape[:-1], -1, self.head_dim).transpose(1, 2)  # all heads
        num_rotated = self.num_heads + self.num_key_value_heads
        qk, value = qkv[:, :num_rotated], qkv[:, num_rotated:]
        if self.has_qk_norm:
            qk = torch.cat([self.q_norm(qk[:, : self.num_heads]), self.k_norm(qk[:, self.num_heads :])], dim=1)
        cos, signed_sin = rotary  # (batch_size, 1, seq_len, rotary_dim), less than head_dim if a part is rotated
        size = cos.shape[-1]
        rotated = qk if size == self.head_dim else qk[..., :size]
        rotated = torch.addcmul(rotated * cos, rotated.roll(size // 2, -1), signed_sin)
        qk = rotated if size == self.head_dim else torch.cat([rotated, qk[..., size:]], dim=-1)
        return qk[:, : self.num_heads], qk[:, self.num_heads :], value

    def pack(self) -> None:
        """Let `project(..., packed=True)` compute queries, keys and values at once."""
        self.qkv.pack(self)

    @property
    def is_packed(self) -> bool:
        """Whether `project(..., packed=True)` may be called."""
        return self.qkv.is_packed(self)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """
    Attention of new rows over all rows.

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
