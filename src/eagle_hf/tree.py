"""
The draft tree: tokens that the draft proposes, arranged so that the target can verify all of them in one forward.

Node 0 is the root, the newest token, which is in no cache yet. Every other node is a guess for the token after its
parent. Parents come before children, so that a path reads in ascending node order:

```text
node      0      1      2      3      4      5             depth 0      1      2
token     the    cat    dog    sat    ran    sat
parent   -1      0      0      1      1      2             the ─┬─ cat ─┬─ sat
depth     0      1      1      2      2      2                  │       └─ ran
                                                               └─ dog ─── sat
```

For verification every node attends to the committed prefix and to its own path (tree attention, SpecInfer; EAGLE
section 3.2), at the position of the root plus its depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DraftTree:
    """
    Draft trees of a batch, one per row, all with the same number of nodes.

    Args:
        tokens (`torch.LongTensor` of shape `(batch_size, num_nodes)`): Target token ids; node 0 is the root.
        parents (`torch.LongTensor` of shape `(batch_size, num_nodes)`): Node index of every parent, -1 for the root.
        depths (`torch.LongTensor` of shape `(batch_size, num_nodes)`): Distance to the root.
        scores (`torch.FloatTensor` of shape `(batch_size, num_nodes)`):
            Log-probability that the draft gives to the path from the root to the node; 0 for the root.
        max_depth (`int`): A bound on `depths`, known without reading them from the device.

    Invariant: `parents[i] < i`, and `depths[i] == depths[parents[i]] + 1` for every node but the root.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    scores: torch.Tensor
    max_depth: int

    @classmethod
    def root_only(cls, root_tokens: torch.Tensor) -> "DraftTree":
        """
        Returns trees without guesses: verifying them is a plain decoding step.

        Args:
            root_tokens (`torch.LongTensor` of shape `(batch_size,)`): The newest token of every row.
        """
        tokens = root_tokens[:, None]
        zeros = torch.zeros_like(tokens)
        return cls(tokens, zeros - 1, zeros, zeros.float(), max_depth=0)

    @classmethod
    def from_paths(
        cls, root_token: int, paths: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> "DraftTree":
        """
        Returns a tree, batch size 1, from the token paths below the root; common prefixes are shared. Scores are 0.

        Example:

        ```python
        >>> tree = DraftTree.from_paths(7, [[1, 2], [1, 3], [4]])
        >>> tree.tokens, tree.parents
        (tensor([[7, 1, 4, 2, 3]]), tensor([[-1,  0,  0,  1,  1]]))
        ```
        """
        prefixes = {tuple(path[:length]) for path in paths for length in range(1, len(path) + 1)}
        order = sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
        node = {(): 0} | {prefix: i for i, prefix in enumerate(order, start=1)}
        tokens = torch.tensor([[root_token, *(prefix[-1] for prefix in order)]], device=device)
        parents = torch.tensor([[-1, *(node[prefix[:-1]] for prefix in order)]], device=device)
        depths = torch.tensor([[0, *(len(prefix) for prefix in order)]], device=device)
        return cls(tokens, parents, depths, torch.zeros_like(tokens).float(), max_depth=max(map(len, paths), default=0))

    def to(self, device: torch.device) -> "DraftTree":
        """Returns the same trees on a device; themselves where they are there already."""
        if self.tokens.device == device:
            return self
        tokens, parents, depths, scores = (
            values.to(device) for values in (self.tokens, self.parents, self.depths, self.scores)
        )
        return DraftTree(tokens, parents, depths, scores, self.max_depth)

    @property
    def num_nodes(self) -> int:
        """Nodes per row, the root included."""
        return self.tokens.shape[1]

    def first(self, num_nodes: int) -> "DraftTree":
        """Returns the first nodes only, at most `num_nodes`. Parents come before children, so that this is a tree."""
        if num_nodes >= self.num_nodes:
            return self
        return DraftTree(
            tokens=self.tokens[:, :num_nodes],
            parents=self.parents[:, :num_nodes],
            depths=self.depths[:, :num_nodes],
            scores=self.scores[:, :num_nodes],
            max_depth=min(self.max_depth, num_nodes - 1),
        )

    def likeliest(self, num_nodes: int) -> "DraftTree":
        """
        Returns the likeliest nodes of every row only, at most `num_nodes`, the root included. A child is never likelier
        than its parent and stands behind it, so that this is a tree.
        """
        if num_nodes >= self.num_nodes:
            return self
        order = self.scores.sort(dim=1, descending=True, stable=True).indices[:, :num_nodes]
        kept = order.sort(dim=1).values  # (batch_size, num_nodes)
        parents = torch.searchsorted(kept, self.parents.gather(1, kept))
        parents[:, 0] = -1
        tokens, depths, scores = (values.gather(1, kept) for values in (self.tokens, self.depths, self.scores))
        return DraftTree(tokens, parents, depths, scores, min(self.max_depth, num_nodes - 1))

    def padded(self, num_nodes: int) -> "DraftTree":
        """
        Returns the trees padded with dummy children of the root at the end, up to `num_nodes` nodes.
        """
        more = num_nodes - self.num_nodes
        if more < 1:
            return self
        root_tokens, zeros = self.tokens[:, :1].expand(-1, more), torch.zeros_like(self.tokens[:, :1]).expand(-1, more)
        return DraftTree(
            tokens=torch.cat([self.tokens, root_tokens], dim=1),
            parents=torch.cat([self.parents, zeros], dim=1),
            depths=torch.cat([self.depths, zeros + 1], dim=1),
            scores=torch.cat([self.scores, torch.full_like(zeros, -torch.inf, dtype=self.scores.dtype)], dim=1),
            max_depth=max(self.max_depth, 1),
        )

    def ancestor_mask(self) -> torch.Tensor:
        """
        Returns which nodes every node attends to: its ancestors and itself. Nothing is read back from the device.

        Returns:
            `torch.BoolTensor` of shape `(batch_size, num_nodes, num_nodes)`; `[b, i, j]` is `True` if and only if node
            `j` of row `b` is node `i` or an ancestor of it.
        """
        batch_size, num_nodes = self.parents.shape
        up = self.parents.clamp(min=0)  # one step up the tree; the root stays where it is
        ancestors = [torch.arange(num_nodes, device=up.device).expand(batch_size, -1), up]
        for _ in range(self.max_depth - 1):
            ancestors.append(up.gather(1, ancestors[-1]))
        mask = torch.zeros(batch_size, num_nodes, num_nodes, dtype=torch.bool, device=up.device)
        return mask.scatter_(2, torch.stack(ancestors, dim=2), True)


def largest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Returns the `k` largest of each row, and where they stand; among equals the first come first, which `topk` leaves
    open.
    """
    values, index = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], index[:, :k]


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """
    Returns `values[b, index[b, i]]`, for `values` of shape `(batch_size, num, ...)` and `index` of shape `(batch_size,
    k)`.
    """
    if len(values) == 1:
        return values.index_select(1, index[0])
    return values[torch.arange(len(values), device=values.device)[:, None], index]
