"""
Reading hidden states from a target's layers themselves.

`transformers` returns hidden states by hooks on all layers, which stay on the target and slow down every forward from
then on, with and without drafts. A head reads three of them. Where a target declares that its hidden states are the
outputs of its layers, and a forward has shown that these run one after the other, hooks on the three layers do, for the
time of a call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel

from .config import TargetConfig


_RUN_IN_ORDER: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@contextmanager
def watched_layers(model: PreTrainedModel) -> Iterator[None]:
    """Watches the one forward of the target that is run within this context: it shows in which order the layers run."""
    layers, calls = _declared_layers(model), []
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _RUN_IN_ORDER[model] = bool(layers) and calls == list(range(len(layers)))


def direct_layers(model: PreTrainedModel) -> list[nn.Module]:
    """
    Returns the target's layers, if the output of layer `i` is known to be entry `i + 1` of the hidden states that it
    returns (of the last layer it is not, as that entry is normed).

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.

    Returns:
        `list[nn.Module]`: The layers in order; empty if that is not known, as before the target has been probed.
    """
    return _declared_layers(model) if _RUN_IN_ORDER.get(model) else []


def forget_order(model: PreTrainedModel) -> None:
    """Drops what was seen of a target's layers."""
    _RUN_IN_ORDER.pop(model, None)


def _declared_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Returns the layers whose outputs the target declares as its hidden states, if hooks on them are called."""
    decoder = model.get_decoder()
    kind = (getattr(decoder, "_can_record_outputs", None) or {}).get("hidden_states")
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        return []  # an `OutputRecorder`, which may mean anything
    layers = [module for module in decoder.modules() if isinstance(module, kind)]
    if len(layers) != TargetConfig(model.config).num_layers:
        return []
    return [] if any(map(_has_other_forward, (model, decoder, *layers))) else layers


def _has_other_forward(module: nn.Module) -> bool:
    """Checks whether a module was compiled, which may have been without hooks, or runs on several devices."""
    return "forward" in vars(module) or module._compiled_call_impl is not None
