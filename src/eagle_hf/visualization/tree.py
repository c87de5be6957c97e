"""Pictures of draft trees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from ..tree import DraftTree
from .text import NO_MATH
from .tokens import node_label
from .tree_svg import Node, tree_svg


if TYPE_CHECKING:
    from rich.text import Text


@dataclass(frozen=True, repr=False)
class TreePicture:
    """
    Shows itself in notebooks, and in terminals by `print`, in colour by `rich`'s.

    Args:
        nodes (`list[Node]`): Parents before children.
    """

    nodes: list[Node]

    def lines(self) -> list[tuple[str, str, bool]]:
        """Returns one per node, depth first: the branch that leads to it, its text, and whether it was accepted."""
        children: dict[int, list[int]] = {}
        for i, node in enumerate(self.nodes):
            children.setdefault(node.parent, []).append(i)
        lines = []
        stack = [(0, "", "")]  # node, branch that leads to it, indentation of its children
        while stack:
            i, branch, indent = stack.pop()
            node = self.nodes[i]
            if node.parent < 0:
                lines.append((branch, f"{node.label} (root)", False))
            else:
                mark = " ✓" if node.accepted else ""
                lines.append((branch, f"{node.label} {node.probability:.0%}{mark}", node.accepted))
            below = children.get(i, [])
            for child in reversed(below):
                is_last = child == below[-1]
                ends = ("└── ", "    ") if is_last else ("├── ", "│   ")
                stack.append((child, indent + ends[0], indent + ends[1]))
        return lines

    def __str__(self) -> str:
        return "\n".join(branch + text for branch, text, _ in self.lines())

    __repr__ = __str__

    def __rich__(self) -> "Text":
        from rich.text import Text

        text = Text(no_wrap=True, overflow="ellipsis")
        for i, (branch, label, accepted) in enumerate(self.lines()):
            text.append("\n" * (i > 0) + branch, style="dim")
            text.append(label, style="bold green" if accepted else "")
        return text

    def to_svg(self) -> str:
        """
        Returns the tree from left to right, as one `svg` element. Accepted nodes have a thick frame and a check mark,
        and the text of the tree stands in `desc` for readers of the screen.
        """
        return tree_svg(self.nodes, description=str(self))

    def _repr_html_(self) -> str:
        return f'<div class="{NO_MATH}" style="overflow-x:auto">{self.to_svg()}</div>'


def draw_tree(
    tree: DraftTree, tokenizer: PreTrainedTokenizerBase, accepted: Sequence[int] = (), row: int = 0
) -> TreePicture:
    """
    Returns a draft tree: every node with its token, the probability that the draft gives to the path from the root to
    it, and a check mark where the target accepted it. Nodes that only fill up a fixed size are left out.

    Args:
        tree ([`DraftTree`]): The tree.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        accepted (`Sequence[int]`): Accepted nodes, the root first.
        row (`int`, defaults to 0): Which row of the batch.

    Returns:
        [`TreePicture`]
    """
    columns = (tree.tokens, tree.parents, tree.depths, tree.scores.exp())
    rows = list(zip(*(column[row].tolist() for column in columns), strict=True))
    taken = set(accepted)
    while len(rows) > 1 and rows[-1][3] == 0 and len(rows) - 1 not in taken:  # padding to a fixed size
        rows.pop()
    return TreePicture(
        [
            Node(node_label(tokenizer, token), parent, depth, probability, i in taken)
            for i, (token, parent, depth, probability) in enumerate(rows)
        ]
    )
