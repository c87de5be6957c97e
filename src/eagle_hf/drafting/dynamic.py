"""
The dynamic tree of EAGLE-2 (section 4): expand the likeliest nodes of each level, then keep the likeliest of all.

Candidates are numbered in the order in which they come, the root first, then the `width` children of the root, then
`width ** 2` per level (the children of the first beam, of the second, ...):

```text
width 2       0 root
              1         2                 level 1, both are beams
            3   4     5   6               level 2, say 3 and 5 are the likeliest: the next beams
           7 8             9 10           level 3, children of 3 and of 5
```

The tree keeps the candidates with the highest scores. A child is never likelier than its parent and always has a higher
number; so taking the likeliest first, and the lower number among equals, never takes a child without its parent.
"""

from typing import TYPE_CHECKING

import torch

from ..tree import DraftTree
from .auto_size import FixedSizing, TreeSizing


if TYPE_CHECKING:
    from ..fast.compiled_head import TracedLevels
    from .drafter import Drafter


def grow_dynamic_tree(
    drafter: "Drafter | TracedLevels",
    roots: torch.Tensor,
    hidden: torch.Tensor,
    width: int,
    depth: int,
    num_nodes: int,
    sizing: FixedSizing | TreeSizing,
) -> DraftTree:
    """
    Args:
        drafter ([`Drafter`]): Runs the head.
        roots (`torch.LongTensor` of shape `(batch_size,)`): The newest token of every row.
        hidden (`torch.Tensor` of shape `(batch_size, 1, hidden_size)`): The head's output at the newest true feature.
        width (`int`): Children per expanded node, and nodes expanded per level.
        depth (`int`): Levels below the root.
        num_nodes (`int`): Nodes to keep, the root included.
        sizing ([`FixedSizing`] or [`TreeSizing`]):
            Says which levels to grow, and which nodes to leave out where all rows can do without them.

    Returns:
        [`DraftTree`] with `num_nodes` nodes, or fewer where there are not as many candidates.
    """  # noqa: D205
    batch_size, device = len(roots), roots.device
    scores, draft_ids = (x.flatten(1) for x in drafter.top_children(hidden, width, 1))  # (batch_size, width)
    width = scores.shape[1]  # less than asked for if the draft vocabulary is tiny
    if not sizing.wants_level(scores, 1):
        return DraftTree.root_only(roots)
    all_scores, all_draft_ids = [torch.zeros_like(scores[:, :1]), scores], [draft_ids]
    beams = torch.arange(1, width + 1, device=device).expand(batch_size, -1)  # candidate numbers of the level's beams
    all_beams = [beams]
    itself = torch.eye(width, dtype=torch.bool, device=device).expand(batch_size, -1, -1)
    visible = drafter.visible_to_guesses(width)  # (batch_size, width, columns so far): what the beams see
    hidden = hidden.expand(-1, width, -1)

    for level in range(2, depth + 1):
        visible = torch.cat([visible, itself], dim=-1)
        tokens = drafter.to_target_ids(draft_ids)
        hidden, child_scores, child_ids = drafter.expand(
            hidden, tokens, drafter.level_rotary(level - 1), visible[:, None], width, level
        )  # children: (batch_size, width, width)
        child_scores = (child_scores + scores[..., None]).flatten(1)  # (batch_size, width ** 2)
        child_ids = child_ids.flatten(1)
        all_scores.append(child_scores)
        all_draft_ids.append(child_ids)
        if level == depth:
            break
        scores, best = largest(child_scores, width)
        if _is_complete(all_scores, scores, num_nodes) or not sizing.wants_level(scores, level + 1):
            break
        all_beams.append(best + (1 + width + (level - 2) * width**2))
        hidden, visible = take(hidden, best // width), take(visible, best // width)
        draft_ids = take(child_ids, best)

    # A broken head must not break the order: NaN counts as impossible. Every descendant of NaN is NaN as well.
    flat_scores = torch.cat(all_scores, dim=1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    # One child stays in any case: that there be a tree was wanted, and it shows whether the head is broken.
    num_nodes = min(num_nodes, flat_scores.shape[1], max(sizing.num_worth(flat_scores), 2))
    chosen = largest(flat_scores, num_nodes)[1].sort(dim=1).values  # (batch_size, num_nodes)
    expanded = torch.cat(all_beams[: len(all_scores) - 2], dim=1) if len(all_scores) > 2 else beams[:, :0]
    parent_of = torch.cat(
        [torch.zeros_like(chosen[:, :1]).expand(-1, 1 + width), expanded.repeat_interleave(width, 1)], 1
    )
    parents = torch.searchsorted(chosen, take(parent_of, chosen))
    depths = (chosen - (width + 1)).div(width**2, rounding_mode="floor") + 2
    parents[:, 0], depths[:, 0] = -1, 0
    tokens = drafter.to_target_ids(take(torch.cat(all_draft_ids, dim=1), chosen[:, 1:] - 1))
    return DraftTree(
        tokens=torch.cat([roots[:, None], tokens], dim=1),
        parents=parents,
        depths=depths,
        scores=take(flat_scores, chosen),
        max_depth=len(all_scores) - 1,
    )


def _is_complete(all_scores: list[torch.Tensor], beam_scores: torch.Tensor, num_nodes: int) -> bool:
    """
    Whether deeper levels cannot enter the tree any more: it is full, and no beam is likelier than its last node, so
    that no descendant of a beam can be either. Stopping then leaves the tree as it would have been. Elsewhere than on a
    CPU the answer would cost a synchronisation per level, so that all levels are grown there.
    """
    if (
        beam_scores.device.type != "cpu"
        or torch.compiler.is_compiling()
        or sum(scores.shape[1] for scores in all_scores) < num_nodes
    ):
        return False
    last_scores = torch.cat(all_scores, dim=1).topk(num_nodes, dim=1).values[:, -1]  # (batch_size,)
    return bool((beam_scores[:, 0] <= last_scores).all())


def largest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The `k` largest of each row, and where they stand; among equals the first come first, which `topk` leaves open.
    """
    values, index = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], index[:, :k]


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """
    `values[b, index[b, i]]` for `values` of shape `(batch_size, num, ...)` and `index` of shape `(batch_size, k)`.
    """
    if len(values) == 1:
        return values.index_select(1, index[0])
    return values[torch.arange(len(values), device=values.device)[:, None], index]
