"""Finds out by trying whether a target can verify trees, only chains, or nothing. No list of architectures."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import LinearAttentionLayer
from transformers.utils import logging

from ..cache.fixed import fixed_sizes
from ..cache.keeping import take_back
from ..cache.layers import goes_back_alone
from ..tree import DraftTree
from .config import TargetConfig
from .features import watched_layers
from .forward import attention_implementation, forward_tree
from .masks import TreeMasks
from .modules import input_device
from .prepared import forward_chain, prepared_inputs
from .recurrent import DeferredReplay, double_recurrent_states, has_recurrent_state


logger = logging.get_logger(__name__)

# By what a verdict depends on: what the target's modules are, in which mode, and whether the cache is static.
_VERDICTS: WeakKeyDictionary[PreTrainedModel, dict[tuple[int, bool], str]] = WeakKeyDictionary()

TREES, CHAINS, RECURRENT = "trees", "chains", "chains from a copy of its recurrent state"

# How far logits of two exact computations may lie apart, relative to the largest logit.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# What a target's forward may raise where it meets a mask or a cache that it was not made for.
_FAILURES = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, AssertionError)


@torch.no_grad()
def can_verify_trees(model: PreTrainedModel, is_static: bool = False) -> bool:
    """
    Returns whether the target verifies trees exactly; if not, it verifies chains and takes them back. Found out with
    two forwards of a few tokens, and some more for targets that cannot. The plain forward gets the inputs that the
    target itself prepares for `generate`:

    ```text
    prompt ── 0 ─┬─ 1 ─── 3              the tree in one forward, against a plain forward of  prompt 0 2 4 5
                 └─ 2 ─── 4 ─── 5        (2 and 5 are the same token, which shows what seeing more would do to it)
    ```

    The verdict is kept as long as the target has the same modules in the same mode with the same attention: adapters
    that are loaded, `train()` and `set_attn_implementation` lead to a new one.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        is_static (`bool`): Whether it is going to use a static cache, which some attend to in a way of their own.

    Returns:
        `bool`: `True` for trees, `False` for chains only.

    Raises:
        `ValueError`: if the target can do neither.
    """
    return _verdict(model, is_static) == TREES


def is_recurrent(model: PreTrainedModel, is_static: bool = False) -> bool:
    """
    Returns whether a target that verifies chains has a recurrent state, which nothing can be cut off from.

    Args:
        model, is_static: As in [`can_verify_trees`].

    Raises:
        `ValueError`: if the target can verify nothing.
    """
    return _verdict(model, is_static) == RECURRENT


def _verdict(model: PreTrainedModel, is_static: bool) -> str:
    verdicts, situation = _VERDICTS.setdefault(model, {}), (_state(model), is_static)
    if situation not in verdicts:
        with _call_set_aside(model):
            verdicts[situation] = _probe(model, is_static)
        implementation = attention_implementation(model)
        logger.info(f"{type(model).__name__} with {implementation} attention verifies {verdicts[situation]}.")
    return verdicts[situation]


def forget_verdicts(model: PreTrainedModel) -> None:
    """Drops what was found out about a target."""
    _VERDICTS.pop(model, None)


def _state(model: PreTrainedModel) -> int:
    """Returns what a verdict depends on, as a number that is equal for equal states."""
    modules = (
        (type(module), module.training, getattr(module, "gradient_checkpointing", None)) for module in model.modules()
    )
    return hash((attention_implementation(model), model.dtype, *modules))


def _why_training_fails(model: PreTrainedModel) -> str:
    """Says what to do about a target that cannot verify drafts in training mode."""
    modules = [module for module in model.modules() if module.training]
    if any(getattr(module, "gradient_checkpointing", False) for module in modules):
        disable = "activation_checkpointing_disable"  # as it is called in newer versions
        disable = disable if hasattr(model, disable) else "gradient_checkpointing_disable"
        return (
            "It is in training mode with gradient checkpointing, which leaves the cache empty. Call `model.eval()` or "
            f"`model.{disable}()`, or generate"
        )
    if modules:
        return "It is in training mode, where dropout makes every forward another one. Call `model.eval()`, or generate"
    return "Generate"


def _probe(model: PreTrainedModel, is_static: bool) -> str:
    vocab_size = TargetConfig(model.config).vocab_size
    device = input_device(model)
    prompt_len = max(4, _window_beyond_the_cache(model))
    tokens = (torch.arange(prompt_len + 5, device=device) * 7 + 3) % vocab_size
    prompt, nodes = tokens[None, :prompt_len], torch.cat([tokens[prompt_len:], tokens[prompt_len + 2, None]])
    if (pad_token := _pad_token(model)) is not None:
        nodes[1] = pad_token  # some targets count positions by the tokens that are none
    tree = DraftTree(
        tokens=nodes[None],
        parents=torch.tensor([[-1, 0, 0, 1, 2, 4]], device=device),
        depths=torch.tensor([[0, 1, 1, 2, 2, 3]], device=device),
        scores=torch.zeros(1, 6, device=device),
        max_depth=3,
    )
    path = [0, 2, 4, 5]

    def new_cache() -> Cache:
        room = prompt_len + len(nodes)
        return StaticCache(config=model.config, max_cache_len=room) if is_static else DynamicCache(config=model.config)

    if is_static and min(size for size in fixed_sizes(new_cache()) if size is not None) < prompt_len + len(nodes):
        return _verdict(model, is_static=False)  # a window that a call with a static cache must not fill
    try:
        with watched_layers(model):
            logits, cache = _plain_with_cache(model, torch.cat([prompt, nodes[None, path]], dim=1), new_cache())
    except (ValueError, TypeError, LookupError, AttributeError) as failure:
        raise ValueError(
            f"{type(model).__name__} cannot verify drafts: whether it can is tried with a few tokens of text, and a "
            f"forward over text alone fails ({failure}). Generate without the draft."
        ) from failure
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
        if any(map(goes_back_alone, new_cache().layers)):
            raise ValueError("its cache has layers of its own, which take back their newest columns only")
        if cache is None:
            cache = _prefilled(model, prompt, new_cache())
        else:
            take_back(cache, len(path))
        logits = _tree_logits(model, prompt_len, tree, cache)[0, path].float().nan_to_num(nan=torch.inf)
        error = (logits - expected).abs().max().item()
        if error <= max(0.1 * effect, rounding):
            return TREES
        reasons.append(f"tree logits are off by {error:.2g}")
    except _FAILURES as failure:
        reasons.append(f"a tree mask fails ({failure})")
    paths = nodes[torch.tensor([[0, 1, 3], [0, 2, 4]], device=device)]
    try:
        got, kind = _chain_logits(model, prompt, paths, new_cache)
        got = got.float().nan_to_num(nan=torch.inf)
        expected = _single_step_logits(model, prompt, paths, new_cache).float().nan_to_num()
        error = (got - expected).abs().max().item()
        if error <= rounding:
            return kind
        reasons.append(f"logits after taking a chain back are off by {error:.2g}")
    except _FAILURES as failure:
        reasons.append(f"taking a chain back fails ({failure})")
    raise ValueError(
        f"{type(model).__name__} cannot verify drafts: {'; '.join(reasons)}. {_why_training_fails(model)} "
        "without the draft."
    )


@contextmanager
def _call_set_aside(model: PreTrainedModel) -> Iterator[None]:
    """
    Keeps what belongs to the call of `generate` that probes, and not to the target, apart from the probe: how far an
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


def _pad_token(model: PreTrainedModel) -> int | None:
    """Returns the target's padding token, if it has one that can be embedded."""
    config = TargetConfig(model.config)
    token = config.special_token_ids["pad_token_id"]
    return token if isinstance(token, int) and token < config.vocab_size else None


def _plain(model: PreTrainedModel, tokens: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
    """
    Returns the logits of an ordinary forward over a prompt, with the inputs that the target prepares for `generate`.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    mask = _no_padding(model, tokens, tokens.shape[1])
    return model(**prepared_inputs(model, tokens, positions, mask, cache, is_first=True)).logits


def _no_padding(model: PreTrainedModel, tokens: torch.Tensor, length: int) -> torch.Tensor | None:
    """Returns the mask of a prompt without padding, as `generate` makes it: some targets need it (Bloom)."""
    return tokens.new_ones(1, length) if "attention_mask" in inspect.signature(model.forward).parameters else None


def _window_beyond_the_cache(model: PreTrainedModel) -> int:
    """
    Returns a window of attention that the cache does not know of: the model cuts it out of its own mask, by slots,
    which would be wrong for trees (GPT-Neo). Only a prompt that fills it can tell. 0 without one.
    """
    config = model.config.get_text_config(decoder=True)
    knows = any(getattr(layer, "is_sliding", False) for layer in DynamicCache(config=model.config).layers)
    window = getattr(config, "window_size", None)
    return 0 if knows or not isinstance(window, int) else window


def _prefilled(model: PreTrainedModel, prompt: torch.Tensor, cache: Cache) -> Cache:
    """Returns a new cache, filled with a prompt."""
    _plain(model, prompt, cache)
    if not has_recurrent_state(cache):
        _record_past(cache)
    return cache


def _plain_with_cache(model: PreTrainedModel, tokens: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache | None]:
    """
    Returns the logits of an ordinary forward, and the new cache that it filled where that can be cropped; `None` where
    not, or where it fails.
    """
    if any(isinstance(layer, LinearAttentionLayer) for layer in cache.layers):
        return _plain(model, tokens), None
    _record_past(cache)
    try:
        return _plain(model, tokens, cache), cache
    except _FAILURES:
        return _plain(model, tokens), None


def _record_past(cache: Cache) -> None:
    """Lets layers with windows keep what `crop` may need."""
    for layer in cache.layers:
        if hasattr(layer, "record_past"):
            layer.record_past = True


def _tree_logits(model: PreTrainedModel, prompt_len: int, tree: DraftTree, cache: Cache) -> torch.Tensor:
    """Returns the logits after every node, of shape `(1, num_nodes, vocab_size)`, from one forward over the tree."""
    root_position = torch.tensor([[prompt_len]], device=tree.tokens.device)
    masks = TreeMasks(model.config.get_text_config(decoder=True), cache, prompt_mask=None)
    return forward_tree(model, tree, root_position, [prompt_len], cache, masks).logits


def _chain_logits(
    model: PreTrainedModel, prompt: torch.Tensor, paths: torch.Tensor, new_cache: Callable[[], Cache]
) -> tuple[torch.Tensor, str]:
    """
    Returns logits after both paths of shape `(2, 3)`: the second goes on from the root after the first is taken back. A
    recurrent target goes back behind the root and reads it again. And which of both kinds of chains these are.
    """
    cache = _prefilled(model, prompt, new_cache())

    def run(chain: DraftTree, num_known: int) -> torch.Tensor:
        position = torch.tensor([[prompt.shape[1] + num_known]], device=prompt.device)
        mask = _no_padding(model, prompt, prompt.shape[1] + num_known + chain.num_nodes)
        return forward_chain(model, chain, position, mask, cache).logits[0]

    first, second, second_after_root = (
        DraftTree.from_paths(root, [rest], device=prompt.device)
        for root, *rest in (*paths.tolist(), paths[1, 1:].tolist())
    )
    if not has_recurrent_state(cache):
        first_logits = run(first, 0)
        take_back(cache, 2)
        second_logits = run(second_after_root, 1)
        return torch.stack([first_logits, torch.cat([first_logits[:1], second_logits])]), CHAINS
    replay = DeferredReplay(model, cache, pad_token=0)
    with replay.as_single_steps():
        first_logits = run(replay.begin(first), 0)
        replay.end([[0]])
        second_logits = run(replay.begin(second_after_root), 0)
        replay.undo()
        double_recurrent_states(cache)
        if torch.equal(second_logits, run(second, 0)):
            raise ValueError("a forward over several tokens does not go on from the recurrent state")
    return torch.stack([first_logits, second_logits]), RECURRENT


def _single_step_logits(
    model: PreTrainedModel, prompt: torch.Tensor, paths: torch.Tensor, new_cache: Callable[[], Cache]
) -> torch.Tensor:
    """Returns the logits after both paths of shape `(2, 3)`, token by token, as plain `generate` computes them."""
    logits = []
    for path in paths:
        cache = _prefilled(model, prompt, new_cache())
        for i, token in enumerate(path):
            position = torch.tensor([[prompt.shape[1] + i]], device=prompt.device)
            mask = _no_padding(model, prompt, prompt.shape[1] + i + 1)
            logits.append(forward_chain(model, DraftTree.root_only(token[None]), position, mask, cache).logits[0])
    return torch.cat(logits).view(2, 3, -1)
