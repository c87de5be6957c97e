"""Chains whose tokens the caller chooses, one after the other: what the decoding loop of `transformers` verifies."""

from collections.abc import Callable

import torch

from .levels import Levels
from .parallel import Placeholder, parallel_rows


# Logits of the draft vocabulary, of shape `(batch_size, draft_vocab_size)`, to the next tokens, target ids of shape
# `(batch_size,)`; `None` ends the chain.
Choose = Callable[[torch.Tensor], torch.Tensor | None]


def draft_chain(
    levels: Levels, hidden: torch.Tensor, depth: int, choose: Choose, placeholder: Placeholder | None = None
) -> None:
    """
    Drafts a chain, each token of which is chosen from the head's logits after the one before.

    Args:
        levels ([`Levels`]): Runs the head.
        hidden (`torch.Tensor` of shape `(batch_size, 1, hidden_size)`): The head's output at the newest true feature.
        depth (`int`): Most tokens to draft.
        choose (`Callable`): Chooses the next tokens.
        placeholder ([`Placeholder`], *optional*): Of P-EAGLE heads, whose rows do not wait for the tokens chosen.
    """
    if placeholder is not None:
        for row in parallel_rows(levels, hidden, placeholder, depth).split(1, dim=1):
            if choose(levels.head.logits(row)[:, 0]) is None:
                return
        return
    for level in range(1, depth + 1):
        tokens = choose(levels.head.logits(hidden)[:, 0])
        if tokens is None or level == depth:
            return
        among = torch.ones(len(hidden), 1, level, dtype=torch.bool, device=hidden.device)  # all of them
        hidden = levels.step(hidden, tokens[:, None].to(hidden.device), among, level)
