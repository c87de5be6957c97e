"""
Reads the target's features: the hidden states that a head was trained on.

`transformers` returns the last hidden state after the final norm. Most heads want layers further down, EAGLE-1 heads
want just that one, and a few want the output of the last layer before the norm, which nobody returns:

```text
embedding ── layer 0 ── layer 1 ── ... ── layer n - 1 ── final norm ── lm_head
         0           1          2                     n              -1
```

What `transformers` returns, it collects by hooks on all layers, which stay on the target and slow down every forward
from then on, with and without drafts. A head reads three of them. Where a target declares that its hidden states are
the outputs of its layers, and the probe has seen that these run one after the other, hooks on the three layers do, for
the time of a call.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..configuration_eagle import EagleConfig
from ..versions import hidden_states_argument
from .config import TargetConfig


_RUN_IN_ORDER: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


class FeatureReader:
    """
    Reads the features of one head from forwards of its target:

    ```python
    reader = FeatureReader(target, draft.config)
    with reader:
        outputs = target(input_ids, output_hidden_states=reader.output_hidden_states)
    features = reader.concatenate(reader.states(outputs.hidden_states))
    ```

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        config ([`EagleConfig`]): Configuration of the head.

    Raises:
        `ValueError`: if the head reads layers that the target does not have.
    """

    def __init__(self, model: PreTrainedModel, config: EagleConfig):
        self._model, target = model, TargetConfig(model.config)
        num_layers, self._may_be_cut = target.num_layers, target.borrows_keys
        self.layer_ids = config.resolve_feature_layer_ids(num_layers)
        self._last = num_layers
        self._width = config.target_hidden_size
        self._hooked: dict[int, nn.Module] = {}  # modules whose outputs are read, by the hidden state that they are
        if num_layers in config.feature_sources(num_layers):  # before the final norm
            self._hooked[num_layers] = last_decoder_layer(model, num_layers)
        elif num_layers in self.layer_ids and target.merges_streams:
            self._hooked[num_layers] = model.get_decoder()
        self._outputs: dict[int, torch.Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    @property
    def output_hidden_states(self) -> list[int] | bool:
        """
        What to pass to the target's forward under this name. Where layers run for the whole prompt only if hidden
        states are asked for, the embeddings are asked for at least.
        """
        returned = [i for i in self.layer_ids if i not in self._hooked] or [0] * self._may_be_cut
        return hidden_states_argument(returned) if returned else False

    @property
    def has_hook(self) -> bool:
        """Whether forward hooks read some of the features, which a compiled forward would not call."""
        return bool(self._hooked)

    def hook_layers(self) -> None:
        """
        Reads the features by hooks on the layers, if all of them can be read so. The embeddings and what comes after
        the final norm are outputs of no layer.
        """
        layers = layers_in_order(self._model)
        inner = {i: layers[i - 1] for i in self.layer_ids if 0 < i < self._last} if layers else {}
        if layers and inner.keys() | self._hooked.keys() == set(self.layer_ids):
            self._hooked |= inner

    def __enter__(self) -> "FeatureReader":
        thread = threading.get_ident()

        def keep_output(module: nn.Module, args: tuple, output: Any, layer_id: int) -> None:
            if threading.get_ident() == thread:  # others may use the target at the same time
                output = getattr(output, "last_hidden_state", output)
                self._outputs[layer_id] = output[0] if isinstance(output, tuple) else output

        self._hooks = [
            layer.register_forward_hook(partial(keep_output, layer_id=layer_id))
            for layer_id, layer in self._hooked.items()
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def states(self, hidden_states: tuple[torch.Tensor, ...] | None, seq_len: int | None = None) -> list[torch.Tensor]:
        """
        Returns the hidden states that the head reads, in its order, each of shape `(batch_size, seq_len, hidden_size)`.

        Args:
            hidden_states (`tuple` of `torch.Tensor`, *optional*): What the last forward returned under this name.
            seq_len (`int`, *optional*): Tokens that the forward was about at least, if known.

        Raises:
            `RuntimeError`: if layers that are read directly did not run.
            `ValueError`: if the target keeps something else than one state per token there.
        """
        outputs, self._outputs = self._outputs, {}  # of a prompt they are long
        if silent := self._hooked.keys() - outputs.keys():
            raise RuntimeError(
                f"The draft reads outputs {sorted(silent)} of the target's layers, whose hooks were not called, as in "
                "a forward that was compiled without them. Load the target anew and leave compiling to `generate`: "
                "pass a `compile_config`."
            )
        states = [outputs[i] if i in self._hooked else (hidden_states or ())[i] for i in self.layer_ids]
        for layer_id, state in zip(self.layer_ids, states, strict=True):
            if state.dim() != 3 or state.shape[-1] != self._width:
                advice = "If its last hidden state is a single one, use a head with `feature_layer_ids=[-1]`."
                if layer_id == self._last:
                    advice = "Generate without the draft."
                raise ValueError(
                    f"The draft reads the target's hidden state {layer_id}, which has the shape {tuple(state.shape)} "
                    f"instead of (batch_size, seq_len, {self._width}): this target keeps several streams there, which "
                    f"no head reads. {advice}"
                )
            if seq_len is not None and state.shape[1] < seq_len:
                raise ValueError(
                    f"The draft reads the target's hidden state {layer_id}, which has {state.shape[1]} tokens instead "
                    f"of the {seq_len} of the forward: this target does not run all of its layers for all tokens. Use "
                    "a head that reads other layers, or generate without the draft."
                )
        return states

    @staticmethod
    def concatenate(
        states: Sequence[torch.Tensor], device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """
        Brings hidden states together, as `project_features` takes them.

        Args:
            states (`Sequence[torch.Tensor]`, each of shape `(batch_size, seq_len, hidden_size)`):
                From `states`. Those of a target that is spread over devices are on several.
            device (`torch.device`, *optional*), dtype (`torch.dtype`, *optional*):
                The head's. By default the first state's device, and the dtype as it is.

        Returns:
            `torch.Tensor` of shape `(batch_size, seq_len, num_features * hidden_size)`
        """
        device = states[0].device if device is None else device
        moved = [state.to(device=device, dtype=dtype) for state in states]
        return torch.cat(moved, dim=-1) if len(moved) > 1 else moved[0]


@contextmanager
def watched_layers(model: PreTrainedModel) -> Iterator[None]:
    """Sees in which order the target's layers run, in one forward that is to be made within this context."""
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


def layers_in_order(model: PreTrainedModel) -> list[nn.Module]:
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
    """Returns whether a module was compiled, which may have been without hooks, or runs on several devices."""
    return "forward" in vars(module) or module._compiled_call_impl is not None


def last_decoder_layer(model: PreTrainedModel, num_layers: int) -> nn.Module:
    """
    Returns the last layer of a target's decoder, whatever its attributes are called: decoders keep their layers in the
    first list of this length.

    Raises:
        `ValueError`: if there is no such list.
    """
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module[-1]
    raise ValueError(
        f"The draft reads the output of layer {num_layers - 1} before the final norm, but {type(model).__name__} has "
        f"no list of {num_layers} decoder layers to read it from. Use another draft, or one without this feature."
    )


# Features of accepted tokens of shape `(batch_size, new_len, num_features * hidden_size)`, the tokens that follow them
# of shape `(batch_size, new_len)`, and how many of these columns are real, row by row.
Learned = tuple[torch.Tensor, torch.Tensor, Sequence[int]]


def join_steps(steps: Sequence[Learned]) -> Learned:
    """Returns what several steps have brought, as if it had been one: real columns first in every row."""
    features, tokens, counts = zip(*steps, strict=True)
    if len(counts[0]) == 1:
        return torch.cat(features, dim=1), torch.cat(tokens, dim=1), [sum(count for (count,) in counts)]

    def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = [
            torch.cat([part[row, : count[row]] for part, count in zip(parts, counts, strict=True)])
            for row in range(len(counts[0]))
        ]
        return pad_sequence(rows, batch_first=True)

    return joined(features), joined(tokens), [sum(row) for row in zip(*counts, strict=True)]
