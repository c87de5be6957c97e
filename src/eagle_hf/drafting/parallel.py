"""
Chains of P-EAGLE heads, drafted in one forward: where a token and its feature are not known yet, a placeholder token
and a learned placeholder feature stand in for both.

```text
feature   f[n-1]   m        m        m
token     root     mask     mask     mask
drafts    1st      2nd      3rd      4th      each row sees the true rows and the rows to its left
```
"""

import math

import torch

from ..tree import DraftTree
from .levels import Levels
from .masks import causal


# What stands for an unknown feature, projected, of shape `(1, 1, hidden_size)`, and for an unknown token.
Placeholder = tuple[torch.Tensor, int]


def parallel_rows(levels: Levels, hidden: torch.Tensor, placeholder: Placeholder, depth: int) -> torch.Tensor:
    """Returns the head's output at `depth` rows from the newest true one on, `(batch_size, depth, hidden_size)`."""
    if depth == 1:
        return hidden
    batch_size, device = len(hidden), hidden.device
    feature, token = placeholder
    among = causal(depth - 1, 0, device).expand(batch_size, -1, -1)
    unknown = torch.full((batch_size, depth - 1), token, device=device)
    later = levels.step(feature.expand(batch_size, depth - 1, -1), unknown, among, 1, depth - 1)
    return torch.cat([hidden, later], dim=1)


def grow_parallel_chain(
    levels: Levels,
    roots: torch.Tensor,
    hidden: torch.Tensor,
    placeholder: Placeholder,
    depth: int,
    threshold: float = 0.0,
) -> DraftTree:
    """
    Grows chains in one forward.

    Args:
        levels ([`Levels`]): Runs the head.
        roots (`torch.LongTensor` of shape `(batch_size,)`): The newest token of every row.
        hidden (`torch.Tensor` of shape `(batch_size, 1, hidden_size)`): The head's output at the newest true feature.
        placeholder ([`Placeholder`]): Stands for what is not known yet.
        depth (`int`): Tokens to draft, at least one.
        threshold (`float`, defaults to 0.0): The chain ends where no row's path is as probable as this.

    Returns:
        [`DraftTree`]: A chain of at most `depth` nodes below the root.
    """
    batch_size, device = len(roots), roots.device
    hidden = parallel_rows(levels, hidden, placeholder, depth)
    scores, drafted = (x.squeeze(-1) for x in levels.children(hidden, 1, 1, depth))  # (batch_size, depth)
    # A broken head must not break the order: NaN counts as impossible.
    scores = scores.cumsum(dim=1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    if threshold > 0:  # one node stays in any case: it shows whether the head is broken
        depth = max(1, int((scores >= math.log(threshold)).any(dim=0).sum()))
    nodes = torch.arange(depth + 1, device=device).expand(batch_size, -1)
    return DraftTree(
        tokens=torch.cat([roots[:, None], drafted[:, :depth]], dim=1),
        parents=nodes - 1,
        depths=nodes,
        scores=torch.cat([torch.zeros_like(scores[:, :1]), scores[:, :depth]], dim=1),
        max_depth=depth,
    )
