"""Runs one forward of the target over draft nodes, with a mask that shows each node its own path."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..tree import DraftTree
from ..versions import CACHE
from .inputs import StepInputs
from .masks import TreeMasks


_LOCK = threading.Lock()
_REPLACED: dict[int, tuple[str, int]] = {}  # by id of the config: the implementation to restore, and threads inside


def attention_implementation(model: PreTrainedModel) -> str:
    """Returns the target's attention implementation, such as `"sdpa"`, also while a tree forward has replaced it."""
    config = model.config.get_text_config(decoder=True)
    with _LOCK:
        return str(_REPLACED.get(id(config), (config._attn_implementation, 0))[0])


@contextmanager
def attention_with_masks(model: PreTrainedModel) -> Iterator[None]:
    """
    Lets the target's attention read a mask per node, for one forward. Sdpa and eager attention do, and nothing is
    changed for them. Flash attention takes no such masks, and flex attention, given one, has ended processes on a CPU:
    sdpa or eager takes their place. Modules look for the implementation in the target's config, which all threads
    share.
    """
    implementation = attention_implementation(model)
    if not any(kind in implementation for kind in ("flash", "flex")):
        yield
        return
    config = model.config.get_text_config(decoder=True)
    replacement = "sdpa" if model._supports_sdpa else "eager"
    with _LOCK:
        # Other threads may be in a tree forward of this target, too: the first one in changes, the last one restores.
        implementation, users = _REPLACED.get(id(config), (implementation, 0))
        _REPLACED[id(config)] = (implementation, users + 1)
        config._attn_implementation = replacement
    try:
        yield
    finally:
        with _LOCK:
            users = _REPLACED.pop(id(config))[1] - 1
            if users:
                _REPLACED[id(config)] = (implementation, users)
            else:
                config._attn_implementation = implementation


def cache_argument(model: PreTrainedModel) -> str:
    """Returns the name under which the target's forward takes its cache."""
    if CACHE == "cache":  # one word for all
        return CACHE
    return "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else CACHE


def forward_tree(
    model: PreTrainedModel,
    tree: DraftTree,
    root_position: torch.Tensor,
    lengths: list[int],
    cache: Cache,
    masks: TreeMasks,
    call: Callable[..., CausalLMOutputWithPast] | None = None,
    step_inputs: StepInputs | None = None,
    **kwargs: Any,
) -> CausalLMOutputWithPast:
    """
    Runs all nodes of the trees, every node seeing its own path.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        tree ([`DraftTree`]): The nodes.
        root_position (`torch.LongTensor` of shape `(..., batch_size or 1, 1)`): Position of the roots.
        lengths (`list[int]` of length `batch_size`): Committed columns of each row.
        cache ([`~transformers.Cache`]): Grows by `num_nodes` columns.
        masks ([`TreeMasks`]): Makes the mask.
        call (`Callable`, *optional*): The target's forward, if it has been compiled.
        step_inputs ([`StepInputs`], *optional*): What plain `generate` passes to every forward besides.
        kwargs: Further arguments of the target's forward.
    """
    if step_inputs is not None:
        kwargs |= step_inputs.for_nodes(tree.num_nodes)
    if tree.num_nodes == 1 and min(lengths) == max(lengths) and masks.sees_all:
        return _forward_nodes(model, tree, root_position, None, cache, call, kwargs)
    with attention_with_masks(model):
        mask = masks.make(tree, lengths, model.dtype)
        return _forward_nodes(model, tree, root_position, mask, cache, call, kwargs)


def _forward_nodes(
    model: PreTrainedModel,
    tree: DraftTree,
    root_position: torch.Tensor,
    mask: torch.Tensor | dict[str, torch.Tensor] | None,
    cache: Cache,
    call: Callable[..., CausalLMOutputWithPast] | None,
    kwargs: dict[str, Any],
) -> CausalLMOutputWithPast:
    return (call or model)(
        input_ids=ordinary(tree.tokens),
        position_ids=root_position + tree.depths,
        attention_mask=mask,
        use_cache=True,
        return_dict=True,
        **{CACHE: cache},
        **kwargs,
    )


def ordinary(tokens: torch.Tensor) -> torch.Tensor:
    """
    Returns a copy that is no view and was not made in inference mode, as trees are: graphs tell these from others, and
    hooks of the target may keep what they see.
    """
    return tokens.clone(memory_format=torch.contiguous_format)
