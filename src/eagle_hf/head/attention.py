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


class Attention(nn.Module, ABC):
    """
    Attention of a head's layer. Its kinds say in `project` how queries, keys and values are made; `attend` may be
    replaced on an instance, as training does to unroll the head.
    """

    scaling: float
    o_proj: nn.Linear

    def __init__(self, config: EagleConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        attention_function(config._attn_implementation)  # refuses what it does not know

    @abstractmethod
    def project(self, inputs: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Makes queries, keys and values of `inputs`, of shape `(batch_size, heads, seq_len, dim)` each."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Lets new rows see all rows, by the implementation that the head's configuration names.

        Args:
            query (`torch.Tensor` of shape `(batch_size, num_heads, seq_len, qk_dim)`): Queries.
            key (`torch.Tensor` of shape `(batch_size, num_key_value_heads, past_len + seq_len, qk_dim)`): Keys.
            value (`torch.Tensor` of shape `(batch_size, num_key_value_heads, past_len + seq_len, v_dim)`): Values.
            attention_mask (`torch.Tensor`, *optional*): As in [`EagleDraftModel.step`].

        Returns:
            `torch.Tensor` of shape `(batch_size, seq_len, num_heads * v_dim)`
        """
        output = attention_function(self.config._attn_implementation)(query, key, value, attention_mask, self.scaling)
        return output.transpose(1, 2).flatten(2)

    def forward(
        self, inputs: torch.Tensor, rotary: Rotary, attention_mask: torch.Tensor | None, cache: Cache | None
    ) -> torch.Tensor:
        """Returns outputs of shape `(batch_size, seq_len, hidden_size)`; arguments as in [`EagleDraftModel.step`]."""
        query, key, value = self.project(inputs, rotary)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        return self.o_proj(self.attend(query, key, value, attention_mask))


class EagleAttention(Attention):
    """
    Grouped-query attention with rotary embeddings; its input may be wider than the head (EAGLE-3 reads two vectors).
    """

    def __init__(self, config: EagleConfig, layer_idx: int, input_size: int):
        super().__init__(config, layer_idx)
        self.head_dim = cast(int, config.head_dim)
        q_size = config.num_attention_heads * self.head_dim
        kv_size = cast(int, config.num_key_value_heads) * self.head_dim
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


def sdpa_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attends by PyTorch's kernels; arguments as in [`Attention.attend`], `scaling` is the factor of the scores."""
    # Without a mask, attention is causal; a single row sees everything, which needs no mask at all.
    is_causal = attention_mask is None and query.shape[2] > 1
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, is_causal=is_causal, scale=scaling, enable_gqa=True
    )


def eager_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attends step by step, as the formula is written; arguments as in [`sdpa_attention`]."""
    num_groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(num_groups, dim=1), value.repeat_interleave(num_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # (batch_size, num_heads, seq_len, past_len + seq_len)
    if attention_mask is None and query.shape[2] > 1:
        attention_mask = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value


_IMPLEMENTATIONS = {"sdpa": sdpa_attention, "eager": eager_attention}


def attention_function(name: str | None) -> Callable[..., torch.Tensor]:
    """
    Returns the attention of a name, `None` standing for the fastest.

    Raises:
        `ValueError`: if heads have no such attention.
    """
    name = name or "sdpa"
    if name not in _IMPLEMENTATIONS:
        raise ValueError(
            f"`attn_implementation={name!r}` is none that heads have: rows of trees need masks of any form. "
            f"Use one of {', '.join(map(repr, _IMPLEMENTATIONS))}; that of the target does not matter."
        )
    return _IMPLEMENTATIONS[name]
