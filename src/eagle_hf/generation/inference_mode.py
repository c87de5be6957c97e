"""
Steps in inference mode: PyTorch notes nothing about tensors for autograd, which costs 4 to 7 % of a small forward.

Plain `generate` runs under `no_grad`, as tensors made in inference mode may neither be written to nor meet autograd
afterwards. So only those steps run in it whose tensors nobody else gets to see:

```text
prefill       as plain `generate`: first forwards set up what modules and cache keep
steps         the target's forward over a tree, and what becomes of its nodes in the cache
hand back     what is returned is copied: scores, hidden states, a cache that somebody will see
```
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from ..compiling import changes_itself
from ..kv_cache import GrowingLayer


def keeps_to_itself(model: PreTrainedModel) -> bool:
    """
    Whether nothing of a forward is seen from outside: all modules are those of `transformers` and PyTorch, with plain
    weights, without hooks of others, and with the `forward`s they were written with. Hooks may come at any time, so
    that every call asks.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
    """
    if nn.modules.module._has_any_global_hook() or any(map(_may_be_watched, model.modules())):
        return False
    return not changes_itself(model)


def _may_be_watched(module: nn.Module) -> bool:
    return bool(
        not type(module).__module__.startswith(("transformers.", "torch.nn."))
        or any(getattr(hook, "__module__", "") != _FOR_OUTPUTS for hook in module._forward_hooks.values())
        or module._forward_pre_hooks
        or module._compiled_call_impl
        or "forward" in vars(module)
        or any(
            type(parameter) is not nn.Parameter for parameter in module._parameters.values() if parameter is not None
        )
    )


# Where `transformers` makes the hooks that hidden states are returned by: they keep nothing that is not asked for.
_FOR_OUTPUTS = "transformers.utils.output_capturing"


def is_plain_cache(cache: Cache) -> bool:
    """Whether a cache consists of keys and values alone, which [`make_ordinary`] can copy."""
    return not getattr(cache, "offloading", False) and all(type(layer) in _PLAIN_LAYERS for layer in cache.layers)


_PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, GrowingLayer, StaticLayer)


def step_mode(is_inference: bool) -> AbstractContextManager[object]:
    """The mode of a step: inference mode, or the one that the caller is in."""
    return torch.inference_mode() if is_inference else nullcontext()


def make_ordinary(model: PreTrainedModel, cache: Cache) -> None:
    """
    Replace what was made in inference mode and stays by copies. To be called outside of that mode.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target: a table of positions may have grown with the text (XGLM).
        cache ([`~transformers.Cache`]): Its cache, one of [`is_plain_cache`].
    """
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()
    for layer in cache.layers:
        if layer.is_initialized and layer.keys.is_inference():
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
