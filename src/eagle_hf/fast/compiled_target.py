"""
Fixed shapes: static caches with room for a tree, and the compiled forward that they allow.

Plain `generate` sizes a static cache for the last token it will hold. Verification writes a whole tree behind the
committed columns and takes most of it back, so that it needs room for one tree more:

```text
committed columns                                    | one tree | spare
a b c d e f ...                    (max_length - 1)  | r0 n1 n2 |
```
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import Cache, CompileConfig, GenerationConfig, PreTrainedModel, StaticCache

from ..cache.keeping import capacity, fixed_sizes, round_up
from .cpu import FewRowProducts
from .fingerprint import changes_itself, compiled, depends_on, state_of


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
    mask, embeds = model_kwargs.get("attention_mask"), model_kwargs.get("inputs_embeds")
    prompt_lens = [input_ids.shape[1], getattr(generation_config, "_mask_length", None) or 0]
    prompt_lens += [tensor.shape[1] for tensor in (mask, embeds) if tensor is not None]
    return max(prompt_lens) + generation_config.max_length - input_ids.shape[1] - 1  # all but the newest token


def with_room(model: PreTrainedModel, cache: Cache, num_nodes: int) -> Cache:
    """
    Returns the cache to generate with: a static one that `generate` has just made is replaced by one with room for a
    tree. Those of users stay as they are; trees shrink where they end.

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
    roomy = StaticCache(config=config, max_cache_len=round_up(columns + num_nodes), offloading=offloading, **where)
    roomy.plain_sizes = fixed_sizes(cache)
    return roomy


def plain_sizes(cache: Cache) -> list[int | None]:
    """
    Returns how many columns each layer of plain `generate`'s cache would have here, which its attentions are wide;
    `None` for layers that grow.
    """
    sizes = list(getattr(cache, "plain_sizes", fixed_sizes(cache)))
    # A target may have appended layers to the cache that `generate` made for it (Dory, for layers that run twice).
    return sizes + [min(filter(None, sizes), default=None)] * (len(cache.layers) - len(sizes))


def compiled_call(
    model: PreTrainedModel, model_kwargs: dict[str, Any], generation_config: GenerationConfig
) -> Callable[..., Any] | None:
    """
    Returns the compiled forward of the target, where plain `generate` would compile its steps; and also on a CPU if a
    `compile_config` was passed, since this asks for it.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        model_kwargs (`dict`): As prepared by `generate`; holds the cache.
        generation_config ([`~transformers.GenerationConfig`]): As prepared by `generate`.
    """
    config: CompileConfig | None = generation_config.compile_config
    if config is not None and model.device.type == "cpu":
        generation_config = copy.copy(generation_config)
        generation_config.compile_config = copy.copy(config)
        generation_config.compile_config._compile_all_devices = True
    if not model._valid_auto_compile_criteria(model_kwargs, generation_config):
        return None
    plain_call = model.get_compiled_call(config)
    if plain_call == model.__call__ or changes_itself(model):
        return plain_call
    return CompiledForward(model, config or CompileConfig())


class CompiledForward:
    """
    The target's forward, compiled without guards of its modules. On a CPU the number of rows, two or more, is left open
    from the first graph on.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        config ([`~transformers.CompileConfig`]): How to compile.
    """

    def __init__(self, model: PreTrainedModel, config: CompileConfig):
        self._model, self._forward, self._state = model, compiled(model, _forward, config), ""
        self._leaves_rows_open = model.device.type == "cpu" and config.dynamic is not False

    def look_over(self) -> None:
        """
        Recomputes the fingerprint of the target's modules; once per `generate` call, after the prefill: the first one
        that returns hidden states installs hooks for them.
        """
        self._state = state_of(self._model)

    def __call__(self, **inputs: Any) -> Any:
        """Calls the target's `forward`."""
        if self._leaves_rows_open:
            masks = inputs["attention_mask"]
            for mask in masks.values() if isinstance(masks, dict) else [masks]:
                torch._dynamo.maybe_mark_dynamic(mask, 2)  # (batch_size, 1, num_rows, num_columns)
            for name in ("input_ids", "position_ids"):  # (..., num_rows)
                torch._dynamo.maybe_mark_dynamic(inputs[name], inputs[name].dim() - 1)
        return self._forward(self._state, self._model, **inputs)


def _forward(state: str, model: PreTrainedModel, **inputs: Any) -> Any:
    depends_on(state)
    if inputs["input_ids"].device.type != "cpu":
        return model(**inputs)
    with FewRowProducts():
        return model(**inputs)
