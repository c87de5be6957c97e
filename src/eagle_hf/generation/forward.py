"""One forward of the target over draft nodes, and how its attention is told what each node sees."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..tree import DraftTree
from .masks import TreeMasks


@contextmanager
def _mask_reading_attention(model: PreTrainedModel) -> Iterator[torch.dtype | None]:
    """
    Attention that reads a mask per node: flash attention does not, so that sdpa (or eager) takes its place for this
    forward; keys and values have the same layout. Yields the dtype for additive masks, `None` for boolean ones.
    """
    config = model.config.get_text_config(decoder=True)
    implementation = config._attn_implementation
    if "flash" in str(implementation):
        config._attn_implementation = "sdpa" if model._supports_sdpa else "eager"
    try:
        yield None if config._attn_implementation == "sdpa" else model.dtype
    finally:
        config._attn_implementation = implementation


def takes_position_ids(model: PreTrainedModel) -> bool:
    """Whether the target accepts explicit positions; others count the columns of the cache."""
    return "position_ids" in inspect.signature(model.forward).parameters


def forward_tree(
    model: PreTrainedModel,
    tree: DraftTree,
    root_position: torch.Tensor,
    lengths: list[int],
    cache: Cache,
    masks: TreeMasks,
    **kwargs: Any,
) -> CausalLMOutputWithPast:
    """
    Run all nodes of the trees, every node seeing its own path.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        tree ([`DraftTree`]): The nodes.
        root_position (`torch.LongTensor` of shape `(..., batch_size or 1, 1)`): Position of the roots.
        lengths (`list[int]` of length `batch_size`): Committed columns of each row.
        cache ([`~transformers.Cache`]): Grows by `num_nodes` columns.
        masks ([`TreeMasks`]): Makes the mask.
        kwargs: Further arguments of the target's forward.
    """
    with _mask_reading_attention(model) as additive_dtype:
        mask = masks.make(tree, lengths, additive_dtype)
        return model(
            input_ids=tree.tokens,
            position_ids=root_position + tree.depths,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **kwargs,
        )


def forward_chain(
    model: PreTrainedModel,
    tree: DraftTree,
    root_position: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache,
    **kwargs: Any,
) -> CausalLMOutputWithPast:
    """
    Run a chain, for targets whose attention is causal by construction. Same arguments as [`forward_tree`], but for
    `attention_mask` of shape `(batch_size, past_len + num_nodes)`, which marks padding (`None` without any).
    """
    if takes_position_ids(model):
        kwargs["position_ids"] = root_position + tree.depths
    if attention_mask is not None:
        kwargs["attention_mask"] = attention_mask
    return model(input_ids=tree.tokens, past_key_values=cache, use_cache=True, return_dict=True, **kwargs)
