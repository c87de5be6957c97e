"""
Caches of fixed size, with room for a tree.

Plain `generate` sizes a static cache for the last token it will hold. Verification writes a whole tree behind the
committed columns and takes most of it back, so that it needs room for one tree more:

```text
committed columns                                    | one tree | spare
a b c d e f ...                    (max_length - 1)  | r0 n1 n2 |
```
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, GenerationConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from .layers import holds_keys, layers_with_keys


def set_filled(layer: StaticLayer, length: int | torch.Tensor) -> None:
    """
    Says how many columns of a layer of fixed size count from now on: what lies behind them is written over. A layer
    with a window must never have been full.
    """
    layer.cumulative_length.fill_(length)  # in place: graphs know its address
    if hasattr(layer, "cumulative_length_int"):
        layer.cumulative_length_int = int(length)


def capacity(cache: Cache) -> int | None:
    """Returns the columns that a cache of fixed size has; `None` for one that grows."""
    sizes = [layer.max_cache_len for layer in cache.layers if isinstance(layer, StaticLayer)]
    return min(sizes) if sizes else None


def round_up(columns: int) -> int:
    """Returns a size for a cache of fixed size, one of few: calls of slightly different lengths share their graphs."""
    return -(-columns // 64) * 64


def put_aside(cache: Cache, row: int, column: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """
    Copies what a column of a row holds in every layer of fixed size, for the time that other rows write over it.

    Returns:
        Pairs of a view of shape `(heads, head_dim)` and its copy; copying them back undoes what was written.
    """
    views = [
        states[row, :, column]
        for layer in layers_with_keys(cache)
        if isinstance(layer, StaticLayer)
        for states in (layer.keys, layer.values)
    ]
    return [(view, view.clone()) for view in views]


def hand_back_columns(cache: Cache, columns: Sequence[int | None]) -> None:
    """
    Leaves the layers of fixed size as plain `generate` leaves them: nothing behind the text, and no room for a tree.

    Args:
        cache ([`~transformers.Cache`]): A cache between two steps.
        columns (`Sequence[int | None]`): Columns that each layer shall have; `None` for layers that grow.
    """
    for layer, size in zip(cache.layers, columns, strict=True):
        if not (isinstance(layer, StaticLayer) and holds_keys(layer)):
            continue
        length = int(layer.get_seq_length())
        layer.keys[:, :, length:], layer.values[:, :, length:] = 0, 0
        if size is not None and size < layer.max_cache_len:
            layer.max_cache_len = size
            layer.keys, layer.values = layer.keys[:, :, :size].clone(), layer.values[:, :, :size].clone()
            for states in (layer.keys, layer.values):
                torch._dynamo.mark_static_address(states)  # as the layer itself does, for graphs of later calls


def fixed_sizes(cache: Cache) -> list[int | None]:
    """Returns the columns that each layer of a cache has; `None` for layers that grow or hold no keys and values."""
    return [layer.max_cache_len if isinstance(layer, StaticLayer) else None for layer in cache.layers]


def columns_of_text(
    input_ids: torch.Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
) -> int | None:
    """
    Returns the columns of the cache that the longest text of a call fills; `None` where only its end is known.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, prompt_len)`): The prompt, or what is new of it.
        generation_config ([`~transformers.GenerationConfig`]): As prepared by `generate`.
        model_kwargs (`dict`): As prepared by `generate`.
    """
    if generation_config.max_length is None:
        return None
    num_new = generation_config.max_length - input_ids.shape[1]
    return columns_of_prompt(input_ids, generation_config, model_kwargs) + num_new - 1  # all but the newest token


def columns_of_prompt(
    input_ids: torch.Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
) -> int:
    """Returns the columns of the cache that the prompt of a call fills. Arguments as in [`columns_of_text`]."""
    mask, embeds = model_kwargs.get("attention_mask"), model_kwargs.get("inputs_embeds")
    prompt_lens = [input_ids.shape[1], getattr(generation_config, "_mask_length", None) or 0]
    return max(prompt_lens + [tensor.shape[1] for tensor in (mask, embeds) if tensor is not None])


def with_room(model: PreTrainedModel, cache: Cache, num_nodes: int) -> Cache:
    """
    Returns the cache to generate with: instead of a static one that `generate` has just made, one with room for a tree.
    Those of users stay as they are; trees shrink where they end.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        cache ([`~transformers.Cache`]): As prepared by `generate`.
        num_nodes (`int`): Nodes of the largest tree, the root included.
    """
    columns = capacity(cache)
    if columns is None or getattr(cache, "_is_user_defined", False) or not isinstance(cache, StaticCache):
        return cache
    config = model.config.get_text_config(decoder=True)
    offloading = getattr(cache, "offloading", False)
    where = {"offload_only_non_sliding": cache.only_non_sliding} if offloading else {}
    return StaticCache(config=config, max_cache_len=round_up(columns + num_nodes), offloading=offloading, **where)
