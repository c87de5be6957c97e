"""Finding out by trying whether a target can verify trees, only chains, or nothing. No list of architectures."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.utils import logging

from ..tree import DraftTree
from .devices import input_device
from .forward import forward_chain, forward_tree
from .masks import TreeMasks


logger = logging.get_logger(__name__)

_VERDICTS: WeakKeyDictionary[PreTrainedModel, dict[str, bool]] = WeakKeyDictionary()  # by attention implementation

# How far logits of two exact computations may lie apart, relative to the largest logit.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@torch.no_grad()
def can_verify_trees(model: PreTrainedModel) -> bool:
    """
    Whether the target verifies trees exactly; if not, whether it verifies chains and takes them back. Found out once
    per model and attention implementation with three or four forwards of a few tokens:

    ```text
    prompt ── 0 ─┬─ 1 ─── 3      the tree in one forward, against plain forwards of  prompt 0 1 3,  prompt 0 2 4
                 └─ 2 ─── 4      and, to see what a wrong mask would do,  prompt 0 1 2
    ```

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.

    Returns:
        `bool`: `True` for trees, `False` for chains only.

    Raises:
        `ValueError`: if the target can do neither.
    """
    verdicts = _VERDICTS.setdefault(model, {})
    implementation = str(model.config.get_text_config(decoder=True)._attn_implementation)
    if implementation not in verdicts:
        with _call_set_aside(model):
            verdicts[implementation] = _probe(model)
        kind = "trees" if verdicts[implementation] else "chains only"
        logger.info(f"{type(model).__name__} with {implementation} attention verifies {kind}.")
    return verdicts[implementation]


def _probe(model: PreTrainedModel) -> bool:
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    device = input_device(model)
    tokens = (torch.arange(9, device=device) * 7 + 3) % vocab_size
    prompt, nodes = tokens[None, :4], tokens[4:].tolist()
    tree = DraftTree(
        tokens=tokens[None, 4:],
        parents=torch.tensor([[-1, 0, 0, 1, 2]], device=device),
        depths=torch.tensor([[0, 1, 1, 2, 2]], device=device),
        scores=torch.zeros(1, 5, device=device),
        max_depth=2,
    )
    paths = torch.tensor([[nodes[i] for i in path] for path in ((0, 1, 3), (0, 2, 4), (0, 1, 2))], device=device)
    expected = model(torch.cat([prompt.expand(3, -1), paths], dim=1), use_cache=False).logits[:, 4:].float()
    if expected.isnan().any():
        raise ValueError(
            f"{type(model).__name__} gives NaN logits for ordinary tokens. Check its weights, and its dtype: float16 "
            "overflows in some models."
        )
    expected = expected.nan_to_num()  # some models mask unused tokens with -inf
    # What node 2 would be if it saw its sibling: an error this large is a wrong mask, not rounding.
    sibling_effect = (expected[2, 2] - expected[1, 1]).abs().max().item()
    tolerance = max(0.1 * sibling_effect, _TOLERANCES.get(model.dtype, 5e-2) * expected.abs().max().item())

    reasons = []
    try:
        logits = _tree_logits(model, prompt, tree)[0].float().nan_to_num(nan=torch.inf)
        got = torch.stack([logits[[0, 1, 3]], logits[[0, 2, 4]]])
        error = (got - expected[:2]).abs().max().item()
        if error <= tolerance:
            return True
        reasons.append(f"tree logits are off by {error:.2g}")
    except (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError, AttributeError) as failure:
        reasons.append(f"a tree mask fails ({failure})")
    try:
        got = _chain_logits(model, prompt, paths[:2]).float().nan_to_num(nan=torch.inf)
        error = (got - expected[:2]).abs().max().item()
        if error <= tolerance:
            return False
        reasons.append(f"logits after taking a chain back are off by {error:.2g}")
    except (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError, AttributeError) as failure:
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
    deltas = [(module, module.rope_deltas) for module in model.modules() if hasattr(module, "rope_deltas")]
    hooks = [(module._forward_pre_hooks, dict(module._forward_pre_hooks)) for module in model.modules()]
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


def _prefilled(model: PreTrainedModel, prompt: torch.Tensor) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache = model(prompt, past_key_values=cache, use_cache=True).past_key_values
    for layer in cache.layers:
        if hasattr(layer, "record_past"):
            layer.record_past = True
    return cache


def _tree_logits(model: PreTrainedModel, prompt: torch.Tensor, tree: DraftTree) -> torch.Tensor:
    """Logits after every node, of shape `(1, num_nodes, vocab_size)`, from one forward over the tree."""
    cache = _prefilled(model, prompt)
    root_position = torch.tensor([[prompt.shape[1]]], device=prompt.device)
    masks = TreeMasks(model.config.get_text_config(decoder=True), cache, prompt_mask=None)
    return forward_tree(model, tree, root_position, [prompt.shape[1]], cache, masks).logits


def _chain_logits(model: PreTrainedModel, prompt: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
    """Logits after both paths of shape `(2, 3)`: the second one goes on from the root after the first is taken back."""
    cache = _prefilled(model, prompt)

    def forward(tokens: torch.Tensor, start: int) -> torch.Tensor:
        root, *rest = tokens.tolist()
        chain = DraftTree.from_paths(root, [rest], device=tokens.device)
        return forward_chain(model, chain, torch.tensor([[start]], device=tokens.device), None, cache).logits[0]

    first_logits = forward(paths[0], prompt.shape[1])
    cache.crop(-2)
    second_logits = forward(paths[1, 1:], prompt.shape[1] + 1)
    return torch.stack([first_logits, torch.cat([first_logits[:1], second_logits])])
