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

from dataclasses import dataclass

import torch

from ..tree import DraftTree, largest, take
from .levels import Levels
from .policy import Plan


@dataclass(frozen=True)
class DynamicShape:
    """
    Bounds of a dynamic tree.

    Args:
        width (`int`): Children per expanded node, and nodes expanded per level.
        depth (`int`): Levels below the root.
        num_nodes (`int`): Nodes to keep, the root included.
        stops_early (`bool`, defaults to `False`):
            Whether to grow no further once deeper levels cannot enter the tree. The tree is the same; finding out reads
            a value from the device per level.
    """

    width: int
    depth: int
    num_nodes: int
    stops_early: bool = False


def grow_dynamic_tree(
    levels: Levels, roots: torch.Tensor, hidden: torch.Tensor, shape: DynamicShape, plan: Plan
) -> DraftTree:
    """
    Grows dynamic trees.

    Args:
        levels ([`Levels`]): Runs the head.
        roots (`torch.LongTensor` of shape `(batch_size,)`): The newest token of every row.
        hidden (`torch.Tensor` of shape `(batch_size, 1, hidden_size)`): The head's output at the newest true feature.
        shape ([`DynamicShape`]): How large they may be.
        plan ([`Plan`]):
            Says which levels to grow, and which nodes to leave out where all rows can do without them.

    Returns:
        [`DraftTree`] with `shape.num_nodes` nodes, or fewer where there are not as many candidates.
    """
    batch_size, device = len(roots), roots.device
    scores, tokens = (x.flatten(1) for x in levels.children(hidden, shape.width, 1))  # (batch_size, width)
    width = scores.shape[1]  # less than asked for if the draft vocabulary is tiny
    if not plan.wants_level(scores, 1):
        return DraftTree.root_only(roots)
    all_scores, all_tokens = [torch.zeros_like(scores[:, :1]), scores], [roots[:, None], tokens]
    beams = torch.arange(1, width + 1, device=device).expand(batch_size, -1)  # candidate numbers of the level's beams
    all_beams = [beams]
    itself = torch.eye(width, dtype=torch.bool, device=device).expand(batch_size, -1, -1)
    among = itself  # (batch_size, width, beams so far): what the beams see of each other
    hidden = hidden.expand(-1, width, -1)

    for level in range(1, shape.depth):
        hidden, child_scores, child_tokens = levels.expand(hidden, tokens, among, width, level)
        child_scores = (child_scores + scores[..., None]).flatten(1)  # (batch_size, width ** 2)
        child_tokens = child_tokens.flatten(1)
        all_scores.append(child_scores)
        all_tokens.append(child_tokens)
        if level + 1 == shape.depth:
            break
        scores, best = largest(child_scores, width)
        if shape.stops_early and _is_complete(all_scores, scores, shape.num_nodes):
            break
        if not plan.wants_level(scores, level + 2):
            break
        all_beams.append(best + (1 + width + (level - 1) * width**2))
        hidden, tokens = take(hidden, best // width), take(child_tokens, best)
        among = torch.cat([take(among, best // width), itself], dim=-1)

    # A broken head must not break the order: NaN counts as impossible. Every descendant of NaN is NaN as well.
    flat_scores = torch.cat(all_scores, dim=1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    # One child stays in any case: that there be a tree was wanted, and it shows whether the head is broken.
    num_nodes = min(shape.num_nodes, flat_scores.shape[1], max(plan.num_worth(flat_scores), 2))
    chosen = largest(flat_scores, num_nodes)[1].sort(dim=1).values  # (batch_size, num_nodes)
    expanded = torch.cat(all_beams[: len(all_scores) - 2], dim=1) if len(all_scores) > 2 else beams[:, :0]
    parent_of = torch.cat(
        [torch.zeros_like(chosen[:, :1]).expand(-1, 1 + width), expanded.repeat_interleave(width, 1)], 1
    )
    parents = torch.searchsorted(chosen, take(parent_of, chosen))
    depths = (chosen - (width + 1)).div(width**2, rounding_mode="floor") + 2
    parents[:, 0], depths[:, 0] = -1, 0
    return DraftTree(
        tokens=take(torch.cat(all_tokens, dim=1), chosen),
        parents=parents,
        depths=depths,
        scores=take(flat_scores, chosen),
        max_depth=len(all_scores) - 1,
    )


def _is_complete(all_scores: list[torch.Tensor], beam_scores: torch.Tensor, num_nodes: int) -> bool:
    """
    Returns whether deeper levels cannot enter the tree any more: it is full, and no beam is likelier than its last
    node, so that no descendant of a beam can be either. Stopping then leaves the tree as it would have been.
    """
    if sum(scores.shape[1] for scores in all_scores) < num_nodes:
        return False
    last_scores = torch.cat(all_scores, dim=1).topk(num_nodes, dim=1).values[:, -1]  # (batch_size,)
    return bool((beam_scores[:, 0] <= last_scores).all())
