"""
The static tree of EAGLE-1: the same shape in every step, every node being the child of a given rank. Only nodes with
children are expanded, and what leads from one level to the next is worked out once from the paths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..tree import DraftTree
from .levels import Levels


@dataclass(frozen=True)
class StaticLevel:
    """
    Says how nodes of one depth lead to those of the next.

    Args:
        expanded (`torch.LongTensor` of shape `(num_expanded,)`): Which nodes of this depth have children.
        parent_rows (`torch.LongTensor` of shape `(num_expanded,)`):
            Row of each one's parent among the expanded nodes of the depth above.
        visible (`torch.BoolTensor` of shape `(num_expanded, num_expanded_so_far)`):
            Which expanded nodes, from depth 1 to this one, each of them sees: its ancestors and itself.
        num_ranks (`int`): Children per expanded node to compute.
        rows (`torch.LongTensor` of shape `(num_children,)`): Row of every child's parent among the expanded nodes.
        ranks (`torch.LongTensor` of shape `(num_children,)`): Rank of every child.
        parents (`torch.LongTensor` of shape `(num_children,)`): Parent of every child among the nodes of this depth.
    """

    expanded: torch.Tensor
    parent_rows: torch.Tensor
    visible: torch.Tensor
    num_ranks: int
    rows: torch.Tensor
    ranks: torch.Tensor
    parents: torch.Tensor


@dataclass(frozen=True)
class StaticPlan:
    """
    Holds the shape of a static tree, worked out level by level.

    Args:
        levels (`list[StaticLevel]`): From the root (depth 0) to the deepest nodes with children.
        parents (`torch.LongTensor` of shape `(1, num_nodes)`): Parent of every node of the tree, -1 for the root.
        depths (`torch.LongTensor` of shape `(1, num_nodes)`): Depth of every node.
    """

    levels: list[StaticLevel]
    parents: torch.Tensor
    depths: torch.Tensor

    @classmethod
    def make(cls, paths: Sequence[tuple[int, ...]], max_depth: int, device: torch.device) -> "StaticPlan":
        """
        Works out the levels of a tree.

        Args:
            paths (`Sequence[tuple[int, ...]]`): Nodes as child ranks, shallower first; every node's parent is listed.
            max_depth (`int`): Deeper nodes are left out.
            device (`torch.device`): Where the index tensors live.
        """

        def index(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        nodes = [(), *(path for path in paths if len(path) <= max_depth)]
        node_index = {path: i for i, path in enumerate(nodes)}
        by_depth = [[path for path in nodes if len(path) == depth] for depth in range(len(nodes[-1]) + 1)]
        levels: list[StaticLevel] = []
        above: list[tuple[int, ...]] = []  # expanded nodes of the depth above
        so_far: list[tuple[int, ...]] = []  # expanded nodes from depth 1 on
        for here, children in zip(by_depth, by_depth[1:], strict=False):
            expanded = [path for path in here if any(child[:-1] == path for child in children)]
            so_far = so_far + [path for path in expanded if path]
            levels.append(
                StaticLevel(
                    expanded=index([here.index(path) for path in expanded]),
                    parent_rows=index([above.index(path[:-1]) for path in expanded if path]),
                    visible=torch.tensor([[p == path[: len(p)] for p in so_far] for path in expanded], device=device),
                    num_ranks=1 + max(child[-1] for child in children),
                    rows=index([expanded.index(child[:-1]) for child in children]),
                    ranks=index([child[-1] for child in children]),
                    parents=index([here.index(child[:-1]) for child in children]),
                )
            )
            above = expanded
        parents = [-1, *(node_index[path[:-1]] for path in nodes[1:])]
        return cls(levels, index(parents)[None], index([len(path) for path in nodes])[None])


def grow_static_tree(levels: Levels, roots: torch.Tensor, hidden: torch.Tensor, plan: StaticPlan) -> DraftTree:
    """
    Grows static trees.

    Args:
        levels ([`Levels`]): Runs the head.
        roots (`torch.LongTensor` of shape `(batch_size,)`): The newest token of every row.
        hidden (`torch.Tensor` of shape `(batch_size, 1, hidden_size)`): The head's output at the newest true feature.
        plan ([`StaticPlan`]): The shape of the tree.

    Returns:
        [`DraftTree`]
    """
    batch_size = len(roots)
    tokens, scores = [roots[:, None]], [torch.zeros_like(roots[:, None], dtype=torch.float32)]
    for depth, level in enumerate(plan.levels):
        if depth == 0:  # the root's children come from the output at the newest true feature
            child_scores, child_tokens = levels.children(hidden, level.num_ranks, 1)
        else:
            among = level.visible.expand(batch_size, -1, -1)
            expanded = tokens[-1][:, level.expanded]  # (batch_size, num_expanded)
            hidden, child_scores, child_tokens = levels.expand(
                hidden[:, level.parent_rows], expanded, among, level.num_ranks, depth
            )  # children: (batch_size, num_expanded, num_ranks)
        tokens.append(child_tokens[:, level.rows, level.ranks])
        scores.append(child_scores[:, level.rows, level.ranks] + scores[-1][:, level.parents])
    parents, depths = (index.expand(batch_size, -1) for index in (plan.parents, plan.depths))
    return DraftTree(torch.cat(tokens, 1), parents, depths, torch.cat(scores, 1), max_depth=len(plan.levels))
