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

from ..cache.keeping import GrowingLayer
from ..fast.fingerprint import has_growing_frequencies


# Where PyTorch keeps hooks on all modules of the process; a function that asks for all of them is not in every version.
_GLOBAL_HOOKS = (
    "_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_pre_hooks", "_global_backward_hooks",
)  # fmt: skip


class StepMode:
    """
    The mode that the steps of a call run in, as a context: inference mode if nothing of a forward is seen from outside,
    otherwise the one that the caller is in. Hooks may come at any time, so that every call asks.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The target. All its modules have to be those of `transformers` and PyTorch, with plain weights, without
            hooks of others, with the `forward`s they were written with, and with rotary frequencies that stay.
        may_be_inference (`bool`): Whether nothing else forbids it.
    """

    def __init__(self, model: PreTrainedModel, may_be_inference: bool = True):
        modules = list(model.modules()) if may_be_inference else []
        self.is_inference = may_be_inference and not (
            any(getattr(nn.modules.module, name) for name in _GLOBAL_HOOKS) or any(map(_may_be_watched, modules))
        )
        self._modules = [module for module in modules if module._buffers]

    def __call__(self) -> AbstractContextManager[object]:
        """The context of one step."""
        return torch.inference_mode() if self.is_inference else nullcontext()

    def see_cache(self, cache: Cache) -> None:
        """Stay out of inference mode where the cache holds more than keys and values, which could not be copied."""
        if getattr(cache, "offloading", False) or any(type(layer) not in _PLAIN_LAYERS for layer in cache.layers):
            self.is_inference = False

    def make_ordinary(self, cache: Cache) -> None:
        """
        Replace what was made in inference mode and stays by copies: keys and values, and the target's buffers (a table
        of positions may have grown with the text, as in XGLM). To be called outside of the context.
        """
        if not self.is_inference:
            return
        for module in self._modules:
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_inference():
                    module._buffers[name] = buffer.clone()
        for layer in cache.layers:
            if type(layer) in _PLAIN_LAYERS and layer.is_initialized and layer.keys.is_inference():
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()


_PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, GrowingLayer, StaticLayer)
# Where `transformers` makes the hooks that hidden states are returned by: they keep nothing that is not asked for.
_FOR_OUTPUTS = "transformers.utils.output_capturing"


def _may_be_watched(module: nn.Module) -> bool:
    """Whether anybody else may see what passes through a module, or the module keep it."""
    return bool(
        not type(module).__module__.startswith(("transformers.", "torch.nn."))
        or any(getattr(hook, "__module__", "") != _FOR_OUTPUTS for hook in module._forward_hooks.values())
        or module._forward_pre_hooks
        or module._compiled_call_impl
        or "forward" in vars(module)
        or any(
            type(parameter) is not nn.Parameter for parameter in module._parameters.values() if parameter is not None
        )
        or has_growing_frequencies(module)
    )
