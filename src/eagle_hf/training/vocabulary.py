"""Choosing the draft vocabulary: the target tokens that the head can propose."""

from collections.abc import Mapping

import torch


def most_frequent_tokens(counts: Mapping[int, int], draft_vocab_size: int) -> torch.Tensor:
    """
    The most frequent tokens of the training text, as [`EagleDraftModel.set_draft_vocabulary`] takes them.

    Args:
        counts (`Mapping[int, int]`):
            How often each target token occurs where the head is trained. Among equals, those counted first win.
        draft_vocab_size (`int`): How many tokens to choose.

    Returns:
        `torch.LongTensor` of shape `(draft_vocab_size,)`: Target ids in ascending order. If fewer tokens occur, the
        lowest of the other ids fill it up.
    """
    chosen = sorted(counts, key=lambda token: -counts[token])[:draft_vocab_size]
    taken, token = set(chosen), 0
    while len(chosen) < draft_vocab_size:
        if token not in taken:
            chosen.append(token)
        token += 1
    return torch.tensor(sorted(chosen))
