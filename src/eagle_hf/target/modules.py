"""
The border between a target and its head. Nothing else touches the target's embedding and `lm_head`.

They are called, and their weights are never read: these may be quantised, adapted (PEFT), hooked, sharded, or somewhere
on the disk until a hook of `accelerate` brings them. Target and head may each have a device and a dtype of its own:

```text
target                                                                     head
embedding   <── token ids, where the embedding runs ─────────────────────
            ── embeddings, in the head's device and dtype ──────────────>  inputs_embeds
layers      ── features, in the head's device and dtype ────────────────>  hidden_states
lm_head     <── last_hidden_state, where and as the `lm_head` takes it ──
            ── logits, on the head's device ────────────────────────────>  drafts
```
"""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from .config import TargetConfig
from .sharded_weights import whole


# Of weights that are multiplied as they are. Others (int8, float8, packed ones) say nothing of what a layer takes.
_PLAIN_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class LentModule(nn.Module):
    """
    A module of the target as its head calls it.

    Args:
        module (`Callable`): The target's module.
        runs_on (`torch.device`): Where it takes its input.
        takes (`torch.dtype`, *optional*): As what it takes its input; as it comes if `None`, such as token ids.
        device (`torch.device`): Where the head wants the output.
        dtype (`torch.dtype`, *optional*): As what; as it comes if `None`.
    """

    def __init__(
        self,
        module: Callable[[torch.Tensor], torch.Tensor],
        runs_on: torch.device,
        takes: torch.dtype | None,
        device: torch.device,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        self.module = module
        self.runs_on, self.takes, self.device, self.dtype = runs_on, takes, device, dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the module's output, of shape `(..., size)`; gradients pass through, and leave none on the target."""
        inputs = inputs.to(device=self.runs_on, dtype=self.takes)
        if torch.is_grad_enabled() and (trainable := self._trainable()):
            frozen = cast(nn.Module, self.module)
            output = functional_call(frozen, {name: each.detach() for name, each in trainable.items()}, (inputs,))
        else:
            # What a hook puts back into a target must not be an inference tensor: it outlives the call.
            mode = torch.inference_mode(False) if hasattr(self.module, "_hf_hook") else nullcontext()
            takes_gradients = torch.is_grad_enabled()  # ending inference mode would begin to record them
            with mode, torch.set_grad_enabled(takes_gradients):
                output = self.module(inputs)
        return output.to(device=self.device, dtype=self.dtype)

    def _trainable(self) -> dict[str, nn.Parameter]:
        """
        Returns parameters that would get gradients. Those that a hook brings or that are spread over ranks are not
        those that compute, and get none.
        """
        if not isinstance(self.module, nn.Module) or hasattr(self.module, "_hf_hook"):
            return {}
        trainable = {name: each for name, each in self.module.named_parameters() if each.requires_grad}
        return trainable if all(type(each) is nn.Parameter for each in trainable.values()) else {}


def lent_embedding(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None = None, gathered: bool = False
) -> LentModule:
    """
    Lends the target's embedding: token ids of shape `(...)` to embeddings of shape `(..., hidden_size)`.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        device (`torch.device`): The head's.
        dtype (`torch.dtype`, *optional*): The head's; the target's if `None`.
        gathered (`bool`, *optional*, defaults to `False`): Whether to gather weights that are spread; see [`whole`].
    """
    embedding = model.get_input_embeddings()
    return LentModule(whole(embedding) if gathered else embedding, input_device(model), None, device, dtype)


def lent_lm_head(model: PreTrainedModel, device: torch.device, gathered: bool = False) -> LentModule | None:
    """
    Lends the target's `lm_head`: hidden states of shape `(..., hidden_size)` to logits of shape `(..., vocab_size)`, in
    the dtype that the target computes them in. Arguments as of [`lent_embedding`].

    Returns:
        [`LentModule`] or `None`: `None` where the target has none.
    """
    lm_head = model.get_output_embeddings()
    if lm_head is None:
        return None
    runs_on, takes = _device(model, lm_head), _input_dtype(model, lm_head)
    return LentModule(whole(lm_head) if gathered else lm_head, runs_on, takes, device, None)


def has_lm_head(model: PreTrainedModel) -> bool:
    """Returns whether the target has an `lm_head` to lend."""
    return model.get_output_embeddings() is not None


def embedding_width(model: PreTrainedModel) -> int | None:
    """Returns the width of the target's embeddings, `None` where its embedding does not say."""
    return getattr(model.get_input_embeddings(), "embedding_dim", None)


def input_device(model: PreTrainedModel) -> torch.device:
    """
    Returns the device on which the target's embedding runs. With weights offloaded to the disk or the CPU, hooks of
    `accelerate` bring them there for each forward; until then they are on the "meta" device, which holds no data.
    """
    return _device(model, model.get_input_embeddings())


def is_placed_by_hooks(model: PreTrainedModel) -> bool:
    """Returns whether hooks of `accelerate` move weights and inputs about, so that the model must not be moved."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


@torch.no_grad()
def embedding_rows(model: PreTrainedModel, vocab_size: int) -> torch.Tensor:
    """
    Returns the embeddings of the first `vocab_size` tokens, of shape `(vocab_size, hidden_size)` and on the CPU, as the
    target's embedding computes them: with adapters, and scaled where it scales them.
    """
    embedding = lent_embedding(model, torch.device("cpu"))
    return torch.cat([embedding(ids[None])[0] for ids in torch.arange(vocab_size).split(_ROWS_AT_ONCE)])


@torch.no_grad()
def lm_head_rows(model: PreTrainedModel) -> torch.Tensor | None:
    """
    Returns the matrix that the target's `lm_head` amounts to, of shape `(vocab_size, hidden_size)` and on the CPU: its
    output for unit vectors, less a bias. `None` where the target has none.
    """
    lm_head = lent_lm_head(model, torch.device("cpu"))
    if lm_head is None:
        return None
    width = getattr(lm_head.module, "in_features", None) or TargetConfig(model.config).hidden_size
    bias = lm_head(torch.zeros(1, width))[0]  # (vocab_size,)
    rows = bias.new_empty(len(bias), width)
    for first in range(0, width, _ROWS_AT_ONCE):
        units = torch.eye(width)[first : first + _ROWS_AT_ONCE]
        rows[:, first : first + len(units)] = lm_head(units).t()
    return rows - bias[:, None] if bias.any() else rows


_ROWS_AT_ONCE = 1024


def _device(model: PreTrainedModel, module: nn.Module) -> torch.device:
    """Returns the device of a module's input: where the nearest hook brings it, or else where its weights are."""
    for owner in (module, model):
        hook = getattr(owner, "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            if getattr(each, "execution_device", None) is not None:
                return torch.device(each.execution_device)
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), model.device)


def _input_dtype(model: PreTrainedModel, module: nn.Module) -> torch.dtype:
    """Returns the dtype of a linear layer's input: its weights', or if these are packed, the target's."""
    weight: Any = next(module.parameters(), None)
    return weight.dtype if weight is not None and weight.dtype in _PLAIN_DTYPES else model.dtype
