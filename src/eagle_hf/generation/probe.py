"""Finding out by trying whether a target can verify trees, only chains, or nothing. No list of architectures."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionLayer
from transformers.utils import logging

from ..target_config import TargetConfig
from ..target_modules import input_device
from ..tree import DraftTree
from .direct_layers import watched_layers
from .forward import cache_argument, forward_chain, forward_tree, takes_position_ids
from .masks import TreeMasks
from .recurrent import DeferredReplay, double_recurrent_states, has_recurrent_state


logger = logging.get_logger(__name__)

_VERDICTS: WeakKeyDictionary[PreTrainedModel, dict[str, bool]] = WeakKeyDictionary()  # by attention implementation

# How far logits of two exact computations may lie apart, relative to the largest logit.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# What a target's forward may raise where it meets a mask or a cache that it was not made for.
_FAILURES = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, AssertionError)


@torch.no_grad()
def can_verify_trees(model: PreTrainedModel) -> bool:
    """
    Whether the target verifies trees exactly; if not, whether it verifies chains and takes them back. Found out once
    per model and attention implementation with two forwards of a few tokens, and some more for targets that cannot:

    ```text
    prompt ── 0 ─┬─ 1 ─── 3              the tree in one forward, against a plain forward of  prompt 0 2 4 5
                 └─ 2 ─── 4 ─── 5        (2 and 5 are the same token, which shows what seeing more would do to it)
    ```

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.

    Returns:
        `bool`: `True` for trees, `False` for chains only.

    Raises:
        `ValueError`: if the target can do neither.
    """
    verdicts = _VERDICTS.setdefault(model, {})
    implementation = TargetConfig(model.config).attention_implementation
    if implementation not in verdicts:
        with _call_set_aside(model):
            verdicts[implementation] = _probe(model)
        kind = "trees" if verdicts[implementation] else "chains only"
        logger.info(f"{type(model).__name__} with {implementation} attention verifies {kind}.")
    return verdicts[implementation]


def _probe(model: PreTrainedModel) -> bool:
    vocab_size = TargetConfig(model.config).vocab_size
    device = input_device(model)
    prompt_len = max(4, _window_beyond_the_cache(model))
    tokens = (torch.arange(prompt_len + 5, device=device) * 7 + 3) % vocab_size
    prompt, nodes = tokens[None, :prompt_len], torch.cat([tokens[prompt_len:], tokens[prompt_len + 2, None]])
    tree = DraftTree(
        tokens=nodes[None],
        parents=torch.tensor([[-1, 0, 0, 1, 2, 4]], device=device),
        depths=torch.tensor([[0, 1, 1, 2, 2, 3]], device=device),
        scores=torch.zeros(1, 6, device=device),
        max_depth=3,
    )
    path = [0, 2, 4, 5]
    with watched_layers(model):
        logits, cache = _plain_with_cache(model, torch.cat([prompt, nodes[None, path]], dim=1))
    expected = logits[0, prompt_len:].float()
    if expected.isnan().any():
        raise ValueError(
            f"{type(model).__name__} gives NaN logits for ordinary tokens. Check its weights, and its dtype: float16 "
            "overflows in some models."
        )
    expected = expected.nan_to_num()  # some models mask unused tokens with -inf
    # What two tokens more do to a token: an error near this is a wrong mask, not rounding.
    effect = (expected[3] - expected[1]).abs().max().item()
    rounding = _TOLERANCES.get(model.dtype, 5e-2) * expected.abs().max().item()

    reasons = []
    try:
        if cache is None:
            cache = _prefilled(model, prompt)
        else:
            cache.crop(-len(path))
        logits = _tree_logits(model, prompt_len, tree, cache)[0, path].float().nan_to_num(nan=torch.inf)
        error = (logits - expected).abs().max().item()
        if error <= max(0.1 * effect, rounding):
            return True
        reasons.append(f"tree logits are off by {error:.2g}")
    except _FAILURES as failure:
        reasons.append(f"a tree mask fails ({failure})")
    paths = nodes[torch.tensor([[0, 1, 3], [0, 2, 4]], device=device)]
    try:
        got = _chain_logits(model, prompt, paths).float().nan_to_num(nan=torch.inf)
        expected = _single_step_logits(model, prompt, paths).float().nan_to_num()
        error = (got - expected).abs().max().item()
        if error <= rounding:
            return False
        reasons.append(f"logits after taking a chain back are off by {error:.2g}")
    except _FAILURES as failure:
        reasons.append(f"taking a chain back fails ({failure})")
    raise ValueError(
        f"{type(model).__name__} cannot verify drafts: {'; '.join(reasons)}. Generate without `assistant_model`."
    )


@contextmanager
def _call_set_aside(model: PreTrainedModel) -> Iterator[None]:
    """
    Keep what belongs to the call of `generate` that probes, and not to the target, apart from the probe: how far an
    image shifts the positions behind it, which multimodal targets remember, and which of PEFT's adapters is for which
    row, which hooks know.
    """
    modules = list(model.modules())
    deltas = [(module, module.rope_deltas) for module in modules if hasattr(module, "rope_deltas")]
    hooks = [(hooks, dict(hooks)) for module in modules if (hooks := module._forward_pre_hooks)]
    for current, _ in hooks:
        for key in [key for key, hook in current.items() if "adapter_names" in getattr(hook, "keywords", ())]:
            del current[key]
    try:
        yield
    finally:
        for current, before in hooks:
            current.clear()
            current.update(before)
        for module, value in deltas:
            module.rope_deltas = value


def _plain(model: PreTrainedModel, tokens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Logits of an ordinary forward, with the positions that `generate` passes."""
    if takes_position_ids(model):
        kwargs["position_ids"] = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return model(tokens, **kwargs).logits


def _window_beyond_the_cache(model: PreTrainedModel) -> int:
    """
    A window of attention that the cache does not know of: the model cuts it out of its own mask, by slots, which would
    be wrong for trees (GPT-Neo). Only a prompt that fills it can tell. 0 without one.
    """
    config = model.config.get_text_config(decoder=True)
    knows = any(getattr(layer, "is_sliding", False) for layer in DynamicCache(config=model.config).layers)
    window = getattr(config, "window_size", None)
    return 0 if knows or not isinstance(window, int) else window


def _prefilled(model: PreTrainedModel, prompt: torch.Tensor) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    _plain(model, prompt, use_cache=True, **{cache_argument(model): cache})
    if not has_recurrent_state(cache):
        _record_past(cache)
    return cache


def _plain_with_cache(model: PreTrainedModel, tokens: torch.Tensor) -> tuple[torch.Tensor, DynamicCache | None]:
    """Logits of an ordinary forward, and its cache where that can be cropped; `None` where not, or where it fails."""
    cache = DynamicCache(config=model.config)
    if any(isinstance(layer, LinearAttentionLayer) for layer in cache.layers):
        return _plain(model, tokens, use_cache=False), None
    _record_past(cache)
    try:
        return _plain(model, tokens, use_cache=True, **{cache_argument(model): cache}), cache
    except _FAILURES:
        return _plain(model, tokens, use_cache=False), None


def _record_past(cache: DynamicCache) -> None:
    """Let layers with windows keep what `crop` may need."""
    for layer in cache.layers:
        if hasattr(layer, "record_past"):
            layer.record_past = True


def _tree_logits(model: PreTrainedModel, prompt_len: int, tree: DraftTree, cache: DynamicCache) -> torch.Tensor:
    """Logits after every node, of shape `(1, num_nodes, vocab_size)`, from one forward over the tree."""
    root_position = torch.tensor([[prompt_len]], device=tree.tokens.device)
    masks = TreeMasks(model.config.get_text_config(decoder=True), cache, prompt_mask=None)
    return forward_tree(model, tree, root_position, [prompt_len], cache, masks).logits


def _chain_logits(model: PreTrainedModel, prompt: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
    """
    Logits after both paths of shape `(2, 3)`: the second one goes on from the root after the first is taken back. A
    recurrent target goes back behind the root and reads it again.
    """
    cache = _prefilled(model, prompt)
    start = torch.tensor([[prompt.shape[1]]], device=prompt.device)
    first, second, second_after_root = (
        DraftTree.from_paths(root, [rest], device=prompt.device)
        for root, *rest in (*paths.tolist(), paths[1, 1:].tolist())
    )
    if not has_recurrent_state(cache):
        first_logits = forward_chain(model, first, start, None, cache).logits[0]
        cache.crop(-2)
        second_logits = forward_chain(model, second_after_root, start + 1, None, cache).logits[0]
        return torch.stack([first_logits, torch.cat([first_logits[:1], second_logits])])
    replay = DeferredReplay(model, cache, pad_token=0)
    with replay.as_single_steps():
        first_logits = forward_chain(model, replay.begin(first), start, None, cache).logits[0]
        replay.end([[0]])
        second_logits = forward_chain(model, replay.begin(second_after_root), start, None, cache).logits[0]
        replay.undo()
        double_recurrent_states(cache)
        if torch.equal(second_logits, forward_chain(model, second, start, None, cache).logits[0]):
            raise ValueError("a forward over several tokens does not go on from the recurrent state")
    return torch.stack([first_logits, second_logits])


def _single_step_logits(model: PreTrainedModel, prompt: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
    """Logits after both paths of shape `(2, 3)`, token by token, as plain `generate` computes them."""
    logits = []
    for path in paths:
        cache = _prefilled(model, prompt)
        for i, token in enumerate(path):
            position = torch.tensor([[prompt.shape[1] + i]], device=prompt.device)
            logits.append(forward_chain(model, DraftTree.root_only(token[None]), position, None, cache).logits[0])
    return torch.cat(logits).view(2, 3, -1)
