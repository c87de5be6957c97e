"""Verifies trees on a CPU without copying keys and values."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..target.forward import attention_implementation
from ..target.target import Target
from ..tree import DraftTree


_THREAD = threading.local()  # `is_grouped`: whether this thread is in a tree forward


class CPUTarget(Target):
    """
    A target that verifies trees on a CPU. Where several heads of queries share one of keys, `transformers` repeats keys
    and values in every layer as soon as there is a mask; a tree has one, and each of its forwards would copy the whole
    cache. Here the heads of keys are read as they are, with the same sums.
    """

    @staticmethod
    def suits(model: PreTrainedModel) -> bool:
        """Returns whether a target's attention is the one that is computed here."""
        config = model.config.get_text_config(decoder=True)
        is_ordinary = _ORDINARY_LAYERS.issuperset(getattr(config, "layer_types", None) or ())
        is_on_cpu = model.device.type == "cpu" and not hasattr(model, "hf_device_map")
        return is_ordinary and is_on_cpu and attention_implementation(model) == "sdpa"

    def _forward(self, tree: DraftTree, **kwargs: Any) -> CausalLMOutputWithPast:
        """Overrides [`Target._forward`]."""
        with _grouped():
            return super()._forward(tree, **kwargs)


@contextmanager
def _grouped() -> Iterator[None]:
    _THREAD.is_grouped = True
    try:
        yield
    finally:
        _THREAD.is_grouped = False


def sdpa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Computes `transformers`' sdpa attention; in tree forwards of a [`CPUTarget`], in the same thread, without repeating
    keys and values. Stands under the name of the original, since a module finds its attention by the name in the
    target's configuration, which other threads read.

    Args:
        module, scaling, kwargs: As `transformers` passes them.
        query (`torch.Tensor` of shape `(batch_size, num_heads, num_nodes, head_dim)`): Queries of the nodes.
        key, value (`torch.Tensor` of shape `(batch_size, num_key_value_heads, num_columns, head_dim)`): The cache.
        attention_mask (`torch.Tensor` of shape `(batch_size, 1, num_nodes, num_columns)`, *optional*): What they see.
        dropout (`float`): None in a tree forward.
    """
    is_grouped = not torch.compiler.is_compiling() and getattr(_THREAD, "is_grouped", False)
    if not is_grouped or _is_unusual(query, key, attention_mask, kwargs):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None


def _is_unusual(
    query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None, kwargs: dict[str, Any]
) -> bool:
    """Returns whether there is nothing to gain, or anything beyond queries, keys, values and a mask."""
    has_more = any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "cache", "s_aux"))
    is_alone = query.shape[2] == 1  # which `transformers` does not repeat keys for, in newer versions
    return attention_mask is None or has_more or is_alone or query.shape[1] == key.shape[1]


# Other layers, such as sparse ones with an indexer (DeepSeek-V3.2), ask for the name of the implementation.
_ORDINARY_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
if ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward:  # not one of the user's
    AttentionInterface.register("sdpa", sdpa_attention)
