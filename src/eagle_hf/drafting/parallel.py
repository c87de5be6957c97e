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
from typing import TYPE_CHECKING, cast

import torch

from ..tree import DraftTree


if TYPE_CHECKING:
    from .drafter import Drafter


def grow_parallel_chain(
    drafter: "Drafter", roots: torch.Tensor, hidden: torch.Tensor, depth: int, threshold: float = 0.0
) -> DraftTree:
    """
    Args:
        drafter ([`Drafter`]): Runs the head.
        roots (`torch.LongTensor` of shape `(batch_size,)`): The newest token of every row.
        hidden (`torch.Tensor` of shape `(batch_size, 1, hidden_size)`): The head's output at the newest true feature.
        depth (`int`): Tokens to draft, at least one.
        threshold (`float`, defaults to 0.0): The chain ends where no row's path is as probable as this.

    Returns:
        [`DraftTree`]: A chain of at most `depth` nodes below the root.
    """  # noqa: D205
    batch_size, device = len(roots), roots.device
    if depth > 1:
        mask = drafter.visible_past(depth - 1)
        causal = torch.ones(depth - 1, depth - 1, dtype=torch.bool, device=device).tril().expand(batch_size, -1, -1)
        later = drafter.step(
            drafter.placeholder.expand(batch_size, depth - 1, -1),
            torch.full_like(roots, cast(int, drafter.mask_token_id))[:, None].expand(-1, depth - 1),
            drafter.following_rotary(depth - 1),
            torch.cat([mask, causal], dim=-1)[:, None],
        )
        hidden = torch.cat([hidden, later], dim=1)
    scores, draft_ids = (x.squeeze(-1) for x in drafter.top_children(hidden, 1, 1, depth))  # (batch_size, depth)
    # A broken head must not break the order: NaN counts as impossible.
    scores = scores.cumsum(dim=1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    if threshold > 0:  # one node stays in any case: it shows whether the head is broken
        depth = max(1, int((scores >= math.log(threshold)).any(dim=0).sum()))
    nodes = torch.arange(depth + 1, device=device).expand(batch_size, -1)
    return DraftTree(
        tokens=torch.cat([roots[:, None], drafter.to_target_ids(draft_ids[:, :depth])], dim=1),
        parents=nodes - 1,
        depths=nodes,
        scores=torch.cat([torch.zeros_like(scores[:, :1]), scores[:, :depth]], dim=1),
        max_depth=depth,
    )
