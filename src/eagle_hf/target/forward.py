"""One forward of the target over draft nodes, and how its attention is told what each node sees."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..tree import DraftTree
from ..versions import CACHE
from .inputs import StepInputs
from .masks import TreeMasks


_LOCK = threading.Lock()
_REPLACED: dict[int, tuple[str, int]] = {}  # by id of the config: the implementation to restore, and threads inside


@contextmanager
def tree_attention(model: PreTrainedModel) -> Iterator[torch.dtype | None]:
    """
    Let the target's attention read a mask per node, for one forward. Flash attention cannot, and flex attention,
    given such a mask, has ended processes on a CPU, so that sdpa or eager takes their place; keys and values have the
    same layout. On a CPU, sdpa takes grouped keys and values as they are, where `transformers` would repeat them for
    every layer as soon as there is a mask.

    Yields:
        `torch.dtype` or `None`: The dtype for masks that are added to the scores; `None` for boolean ones.
    """
    config = model.config.get_text_config(decoder=True)
    on_cpu = model.device.type == "cpu"
    is_ordinary = _ORDINARY_LAYERS.issuperset(getattr(config, "layer_types", None) or ())
    with _LOCK:
        # Other threads may be in a tree forward of this target, too: the first one in changes, the last one restores.
        implementation, users = _REPLACED.get(id(config), (config._attn_implementation, 0))
        _REPLACED[id(config)] = (implementation, users + 1)
        if any(kind in str(implementation) for kind in ("flash", "flex")):
            config._attn_implementation = "sdpa" if model._supports_sdpa else "eager"
        elif implementation == "sdpa" and on_cpu and is_ordinary:
            config._attn_implementation = GROUPED_SDPA
        replacement = config._attn_implementation
    try:
        # Adding a mask is what sdpa does on a CPU anyway, after converting a boolean one in every layer.
        yield None if replacement == "sdpa" and not on_cpu else model.dtype
    finally:
        with _LOCK:
            users = _REPLACED.pop(id(config))[1] - 1
            if users:
                _REPLACED[id(config)] = (implementation, users)
            else:
                config._attn_implementation = implementation


GROUPED_SDPA = "eagle_hf_grouped_sdpa"
# Other layers, such as sparse ones with an indexer (DeepSeek-V3.2), ask for the name of the implementation.
_ORDINARY_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def grouped_sdpa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    `transformers`' sdpa attention without repeating grouped keys and values. Anything unusual is left to the original:
    calls without a mask (another thread may use the model), and arguments beyond the mask.
    """
    unusual = any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "cache", "s_aux"))
    if attention_mask is None or unusual:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED_SDPA, grouped_sdpa_attention)
AttentionMaskInterface.register(GROUPED_SDPA, sdpa_mask)


def cache_argument(model: PreTrainedModel) -> str:
    """Returns the name under which the target's forward takes its cache."""
    if CACHE == "cache":  # one word for all
        return CACHE
    return "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else CACHE


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
    call: Callable[..., CausalLMOutputWithPast] | None = None,
    step_inputs: StepInputs | None = None,
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
        call (`Callable`, *optional*): The target's forward, if it has been compiled.
        step_inputs ([`StepInputs`], *optional*): What plain `generate` passes to every forward besides.
        kwargs: Further arguments of the target's forward.
    """
    if step_inputs is not None:
        kwargs |= step_inputs.for_nodes(tree.num_nodes)
    if tree.num_nodes == 1 and min(lengths) == max(lengths) and masks.sees_all:
        return _forward_nodes(model, tree, root_position, None, cache, call, kwargs)
    with tree_attention(model) as additive_dtype:
        if kwargs.get("output_attentions"):  # some sdpa models compute these with the eager formula
            additive_dtype = model.dtype
        mask = masks.make(tree, lengths, additive_dtype)
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
    tokens = tree.tokens
    if call is not None:  # graphs tell views and tensors made in inference mode from others
        tokens = tokens.clone(memory_format=torch.contiguous_format)
    return (call or model)(
        input_ids=tokens,
        position_ids=root_position + tree.depths,
        attention_mask=mask,
        use_cache=True,
        return_dict=True,
        **{CACHE: cache},
        **kwargs,
    )


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
    Run a chain, for targets whose attention is causal by construction. Same arguments as [`forward_tree`], but for
    `attention_mask` of shape `(batch_size, past_len + num_nodes)`, which marks padding (`None` without any).
    """
    inputs = prepared_inputs(model, tree.tokens, root_position + tree.depths, attention_mask, cache)
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
    Arguments of the target's forward over some tokens, as the target itself prepares them for plain `generate`: it may
    leave positions out and count for itself (Kosmos-2), or make the mask of a static cache (Bloom).

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
        inputs = model.prepare_inputs_for_generation(
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
    Let a cache say what it would say to plain `generate`: a static one whose convolutions record what they forget says
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
