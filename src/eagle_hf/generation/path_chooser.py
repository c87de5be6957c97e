"""Choosing along the accepted path only, where reading a token is free but processing rejected nodes is not."""

import torch

from ..tree import DraftTree
from .choosing import NodeChooser


class PathChooser(NodeChooser):
    """Chooses at the nodes of the accepted path of a single row, one by one. Arguments as in [`NodeChooser`]."""

    def advance(self, logits: torch.Tensor, tree: DraftTree) -> list[list[int]]:
        """Implements [`Chooser.advance`]."""
        [tokens], [parents] = self._read_back(tree)
        child = dict(zip(zip(parents, tokens, strict=True), range(len(tokens)), strict=True))
        path: list[int] = []
        node: int | None = 0
        while node is not None and not self.text.done:
            at_node = DraftTree.root_only(tree.tokens[:, node])
            super().advance(logits[:, node : node + 1], at_node)
            path.append(node)
            node = child.get((node, self.text.new_tokens[0][-1]))
        return [path]
