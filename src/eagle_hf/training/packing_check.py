"""
Checks whether a target keeps the documents of a packed block apart. Many do not: attention that is not given its mask
by `transformers.masking_utils` alone, and layers with a recurrent state or a convolution, which is carried on into the
next document. Nothing says so, and what is learned then is wrong; so it is tried, with a few tokens, before training.

```text
alone     B B B B B               what a document is
packed    A A A A B B B B B       positions start again with B: to be the same
joined    A A A A B B B B B       positions go on: what seeing A does to B, to compare with
```
"""

from weakref import WeakKeyDictionary

import torch

from ..target.config import TargetConfig
from .frozen_target import FrozenTarget


# By the target of a run: the next run may find other adapters on the same model.
_CHECKED: WeakKeyDictionary[FrozenTarget, set[tuple[str, bool]]] = WeakKeyDictionary()

# How far two exact computations may lie apart, relative to what is computed.
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 1e-2}
_LEAST_ROUNDING = 5e-2  # bfloat16, and what is quantised
_LENGTHS = (6, 5, 7)  # of three documents
_MAY_RAISE = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, AssertionError, NotImplementedError)


def check_packing(target: FrozenTarget, num_blocks: int = 2) -> None:
    """
    Checks that the target computes packed documents as it does each of them alone, with forwards of some twenty tokens,
    once per run and kind of attention.

    Args:
        target ([`FrozenTarget`]): The target.
        num_blocks (`int`, *optional*, defaults to 2):
            Blocks of a batch. FlashAttention keeps documents apart in batches of one block only.

    Raises:
        `ValueError`: if it does not; says by how much, and what to do.
    """
    implementation = TargetConfig(target.model.config).attention_implementation
    checked, kind = _CHECKED.setdefault(target, set()), (implementation, num_blocks > 1)
    if kind in checked:
        return
    if (problem := find_problem(target, min(num_blocks, 2))) is not None:
        raise ValueError(
            f"{type(target.model).__name__} cannot be trained on with packed texts: {problem}. The head would learn "
            "from hidden states that no single text has. Train without packing: `PaddingCollator` instead of "
            "`PackedDataset` and `PackedCollator`, without `--packing` for `eagle-hf train`."
        )
    checked.add(kind)


@torch.no_grad()
def find_problem(target: FrozenTarget, num_blocks: int = 2) -> str | None:
    """Returns what is wrong with packed texts for this target; `None` if they are as if each were alone."""
    device = target.device
    tokens = (torch.arange(sum(_LENGTHS), device=device) * 7 + 3) % TargetConfig(target.model.config).vocab_size
    documents = tokens.split(_LENGTHS)
    positions = torch.cat([torch.arange(length, device=device) for length in _LENGTHS])
    try:
        alone = [_signals(target, {"input_ids": document[None]}) for document in documents[1:]]
        joined = _signals(target, {"input_ids": tokens[None], "attention_mask": torch.ones_like(tokens)[None]})
    except _MAY_RAISE:
        return None  # not a matter of packing: training says what fails
    try:
        inputs = {"input_ids": tokens.expand(num_blocks, -1), "position_ids": positions.expand(num_blocks, -1)}
        packed = _signals(target, inputs)
    except _MAY_RAISE as failure:
        return f"its forward fails with positions that start again with every text ({failure})"
    start, off = _LENGTHS[0], 0.0
    dtype = None if getattr(target.model, "is_quantized", False) else target.model.dtype
    for i in range(len(joined)):
        expected = torch.cat([signals[i][0] for signals in alone])
        size = float(expected.abs().mean(-1).max())
        limit = (_LEAST_ROUNDING if dtype is None else _ROUNDING.get(dtype, _LEAST_ROUNDING)) * size
        if dtype not in (torch.float32, torch.float64):  # rounding may choose other experts
            limit = max(limit, 0.1 * _distance(joined[i][0, start:], expected))
        error = max(_distance(block[start:], expected) for block in packed[i])
        if error > limit:
            off = max(off, error / max(size, 1e-12))
    return f"texts of one block are mixed, what follows another text is off by {off:.1%}" if off else None


def _signals(target: FrozenTarget, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Returns what a head learns from: features and logits, of shape `(batch_size, seq_len, num_values)`."""
    features, _, logits = target.compute(inputs)
    return [values.float().nan_to_num(nan=1e30, posinf=0.0, neginf=0.0) for values in (features, logits)]


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """
    Returns the largest distance of a position, averaged over its values: single ones say little in half precision.
    """
    return float((found - expected).abs().mean(-1).max())
