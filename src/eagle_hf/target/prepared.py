"""Runs tokens as the target itself prepares them for plain `generate`: chains, and what the probe compares with."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..tree import DraftTree
from .forward import cache_argument, ordinary
from .inputs import StepInputs


def takes_position_ids(model: PreTrainedModel) -> bool:
    """Returns whether the target accepts explicit positions; others count the columns of the cache."""
    return "position_ids" in inspect.signature(model.forward).parameters


def forward_chain(
    model: PreTrainedModel,
    tree: DraftTree,
    root_position: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache,
    step_inputs: StepInputs | None = None,
    **kwargs: Any,
) -> CausalLMOutputWithPast:
    """
    Runs a chain, for targets whose attention is causal by construction. Same arguments as [`forward_tree`], but for
    `attention_mask` of shape `(batch_size, past_len + num_nodes)`, which marks padding (`None` without any).
    """
    inputs = prepared_inputs(model, ordinary(tree.tokens), root_position + tree.depths, attention_mask, cache)
    if step_inputs is not None:
        inputs = step_inputs.for_nodes(tree.num_nodes) | inputs
    return model(**inputs | {"return_dict": True} | kwargs)


def prepared_inputs(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    is_first: bool = False,
) -> dict[str, Any]:
    """
    Returns arguments of the target's forward over some tokens, as the target itself prepares them for plain `generate`:
    it may leave positions out and count for itself (Kosmos-2), or make the mask of a static cache (Bloom).

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        tokens (`torch.LongTensor` of shape `(batch_size, num_tokens)`): The tokens.
        positions (`torch.LongTensor` of shape `(..., batch_size or 1, num_tokens)`): Their positions.
        attention_mask (`torch.LongTensor` of shape `(batch_size, past_len + num_tokens)`, *optional*): 0 at padding.
        cache ([`~transformers.Cache`], *optional*): The target's cache; `None` for a forward without one.
        is_first (`bool`): Whether the tokens are a prompt.
    """
    kwargs: dict[str, Any] = {"position_ids": positions} if takes_position_ids(model) else {}
    if cache is not None:
        kwargs[cache_argument(model)] = cache
    with _as_plain(cache):
        inputs: dict[str, Any] = model.prepare_inputs_for_generation(
            tokens,
            next_sequence_length=tokens.shape[1],
            attention_mask=attention_mask,
            use_cache=cache is not None,
            is_first_iteration=is_first,
            **kwargs,
        )
    inputs.pop("logits_to_keep", None)  # all of them
    return inputs


@contextmanager
def _as_plain(cache: Cache | None) -> Iterator[None]:
    """
    Lets a cache say what it would say to plain `generate`: a static one whose convolutions record what they forget says
    that it cannot be compiled, and gets no mask that hides the columns behind the text.
    """
    recording = [layer for layer in (cache.layers if cache else ()) if getattr(layer, "record_past", False)]
    for layer in recording:
        layer.record_past = False
    try:
        yield
    finally:
        for layer in recording:
            layer.record_past = True
