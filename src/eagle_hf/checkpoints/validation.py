"""
Checks on a head's tensors. A head with a wrong tensor would still generate the right text, only without speedup, so
that nobody would notice: every inconsistency is an error here.
"""

from pathlib import Path

import torch

from ..configuration_eagle import EagleConfig


def check_tensors(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], source: Path) -> None:
    """
    Checks names and shapes against what the configuration asks for.

    Args:
        weights (`dict[str, torch.Tensor]`): Tensors of the file.
        expected (`dict[str, torch.Tensor]`): Tensors of a model made from the configuration; only shapes are read.
        source (`pathlib.Path`): The file, for messages.

    Raises:
        `ValueError`: naming all missing, unexpected and mis-shaped tensors, the latter with both shapes.
    """
    problems = [
        f"`{name}` has shape {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems += [
        f"`{name}` holds {weights[name].dtype}, expected {'floating-point values' if is_float else 'integers'}"
        for name, tensor in expected.items()
        if name in weights and weights[name].is_floating_point() != (is_float := tensor.is_floating_point())
    ]
    problems += [f"`{name}` {tuple(t.shape)} is missing" for name, t in expected.items() if name not in weights]
    problems += [f"`{name}` {tuple(t.shape)} is unexpected" for name, t in weights.items() if name not in expected]
    if problems:
        raise ValueError(
            f"The weights in {source} do not fit the head's configuration: {'; '.join(problems)}. Either the file is "
            "incomplete or of another head, or config.json describes another head (another target size, for example)."
        )


def check_vocabulary(config: EagleConfig, weights: dict[str, torch.Tensor], source: Path) -> dict[str, torch.Tensor]:
    """
    Checks `d2t` and `t2d`, and drops what is redundant: `t2d`, which follows from `d2t`, and both of them where the
    draft vocabulary is the target's.

    Raises:
        `ValueError`: if they are missing where needed, or contradict the configuration or each other.
    """
    weights = dict(weights)
    d2t, t2d = weights.pop("d2t", None), weights.pop("t2d", None)
    size, vocab_size = config.draft_vocab_size, config.vocab_size
    if size is None:
        if d2t is not None or t2d is not None:
            raise ValueError(
                f"{source} holds a draft vocabulary (`d2t` or `t2d`), but the head has no `lm_head` of its own."
            )
        return weights
    if size == vocab_size:
        if d2t is not None and d2t.count_nonzero():
            raise ValueError(
                f"{source}: `d2t` maps draft tokens elsewhere although `draft_vocab_size` equals `vocab_size` "
                f"({vocab_size}), where every token must map to itself."
            )
        return weights
    if d2t is None:
        raise ValueError(
            f"{source} has no `d2t`, which says to which of the {vocab_size} target tokens each of the {size} draft "
            "tokens belongs."
        )
    if d2t.is_floating_point() or d2t.is_complex() or d2t.dtype == torch.bool:
        raise ValueError(f"{source}: `d2t` must hold integers, got {d2t.dtype}.")
    if d2t.shape != (size,):
        raise ValueError(f"{source}: `d2t` has shape {tuple(d2t.shape)}, expected ({size},) (`draft_vocab_size`).")
    ids = d2t.long() + torch.arange(size)
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(
            f"{source}: `d2t` maps to target ids {int(ids.min())} to {int(ids.max())}, but the vocabulary has "
            f"{vocab_size} tokens. Its entries are offsets: target id = draft id + d2t[draft id]."
        )
    if len(ids.unique()) < size:
        raise ValueError(f"{source}: `d2t` maps {size - len(ids.unique())} draft tokens to target tokens of others.")
    if t2d is not None:
        if t2d.shape != (vocab_size,):
            raise ValueError(f"{source}: `t2d` has shape {tuple(t2d.shape)}, expected ({vocab_size},) (`vocab_size`).")
        in_draft = torch.zeros(vocab_size, dtype=torch.bool)
        in_draft[ids] = True
        if not torch.equal(t2d.bool(), in_draft):
            wrong = (t2d.bool() != in_draft).nonzero().flatten().tolist()
            raise ValueError(
                f"{source}: `d2t` and `t2d` contradict each other at {len(wrong)} target tokens, {wrong[:5]} among "
                "them: one of them belongs to another head."
            )
    return {**weights, "d2t": d2t.long()}


def check_size(config: EagleConfig, weights: dict[str, torch.Tensor], source: Path) -> None:
    """
    Checks that the configuration does not ask for many more layers than there are tensors, before anything is built
    from it: a billion layers of no size at all would keep a machine busy for days.

    Raises:
        `ValueError`: naming both numbers.
    """
    if config.num_hidden_layers > len(weights) or config.num_features > max(len(weights), 64):
        raise ValueError(
            f"config.json describes a head of {config.num_hidden_layers} layers that reads {config.num_features} "
            f"hidden states, but {source} holds only {len(weights)} tensors. It describes another head."
        )


def check_finite(weights: dict[str, torch.Tensor], source: Path) -> None:
    """
    Checks that all values are finite.

    Raises:
        `ValueError`: naming the tensors that hold NaN or infinity, or a dtype that cannot be read.
    """
    floating = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point() and tensor.numel()}
    if packed := [name for name, tensor in floating.items() if tensor.element_size() < 2]:
        raise ValueError(
            f"{source}: {len(packed)} tensors such as `{packed[0]}` hold {floating[packed[0]].dtype}, so that this is "
            "a quantised head. Only float16, bfloat16, float32 and float64 are read: use the head's original."
        )
    # The extremes of a tensor are NaN if anything in it is. They are found in one pass, at the speed of memory, and
    # without a copy; `isfinite().all()` takes sixteen times as long for half precision on a CPU.
    broken = [name for name, tensor in floating.items() if not all(torch.isfinite(x) for x in tensor.aminmax())]
    if broken:
        raise ValueError(
            f"{source}: {len(broken)} tensors hold NaN or infinite values, {', '.join(f'`{n}`' for n in broken[:5])} "
            "among them. The file is damaged, or the head's training diverged. To look at it all the same: "
            "`EagleDraftModel.from_pretrained(..., allow_non_finite=True)`."
        )
