"""
A draft tree as SVG, from left to right: a column per depth, a row per leaf, a parent in the middle of its children.

```text
           ┌───────┐     ┌───────┐
       ┌───┤ cat ✓ ├──┬──┤  sat  │
┌─────┐│   └───────┘  │  └───────┘
│ the ├┤              │  ┌───────┐
└─────┘│   ┌───────┐  └──┤ ran ✓ │
       └───┤  dog  │     └───────┘
           └───────┘
```
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape


LETTER, ROW, HEIGHT, GAP, MARGIN = 7.9, 46, 36, 34, 8  # pixels: of a letter, a leaf, a box, between columns, around
LONGEST = 22  # letters of a label


@dataclass(frozen=True)
class Node:
    """
    A node of a picture.

    Args:
        label (`str`): Its token, quoted.
        parent (`int`): Its parent, -1 for the root.
        depth (`int`): Its distance to the root.
        probability (`float`): What the draft gives to the path from the root to it.
        accepted (`bool`): Whether the target took it.
    """

    label: str
    parent: int
    depth: int
    probability: float
    accepted: bool


def tree_svg(nodes: Sequence[Node], description: str) -> str:
    """
    Draws a tree as SVG.

    Args:
        nodes (`Sequence[Node]`): Parents before children.
        description (`str`): Text alternative for screen readers.

    Returns:
        `str`: One `svg` element.
    """
    labels = [_shorten(node.label) for node in nodes]
    widths = [_width(label) * LETTER + 18 for label in labels]
    columns = [max(w for w, n in zip(widths, nodes, strict=True) if n.depth == d) for d in range(_depth(nodes) + 1)]
    lefts = [MARGIN + sum(columns[:depth]) + GAP * depth for depth in range(len(columns))]
    middles = _rows(nodes)
    width, height = lefts[-1] + columns[-1] + MARGIN, max(middles) + ROW / 2 + MARGIN / 2
    edges, boxes = [], []
    for node, label, middle in zip(nodes, labels, middles, strict=True):
        left, box = lefts[node.depth], columns[node.depth]
        stroke, thickness = ("#1a7f37", 3) if node.accepted and node.parent >= 0 else ("#8c959f", 1)
        if node.parent >= 0:
            x, y = lefts[node.depth - 1] + columns[node.depth - 1], middles[node.parent]
            bend = (x + left) / 2
            edges.append(
                f'<path d="M{x:.1f} {y:.1f}C{bend:.1f} {y:.1f} {bend:.1f} {middle:.1f} {left:.1f} {middle:.1f}" '
                f'fill="none" stroke="{stroke}" stroke-width="{thickness}"/>'
            )
        fill = "#d3f2d9" if node.accepted else "#ffffff"
        note = "root" if node.parent < 0 else f"{node.probability:.0%}{' ✓' if node.accepted else ''}"
        boxes.append(
            f'<rect x="{left:.1f}" y="{middle - HEIGHT / 2:.1f}" width="{box:.1f}" height="{HEIGHT}" rx="5" '
            f'fill="{fill}" stroke="{stroke}" stroke-width="{thickness}"/>'
            f'<text x="{left + box / 2:.1f}" y="{middle - 3:.1f}" font-size="13" xml:space="preserve" '
            f'style="unicode-bidi:isolate;white-space:pre">{escape(label)}</text>'
            f'<text x="{left + box / 2:.1f}" y="{middle + 12:.1f}" font-size="11" fill="#424a53">{note}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" '
        f'fill="#14301b" text-anchor="middle"><title>Draft tree</title><desc>{escape(description)}</desc>'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(edges + boxes)}</svg>'
    )


def _depth(nodes: Sequence[Node]) -> int:
    return max(node.depth for node in nodes)


def _rows(nodes: Sequence[Node]) -> list[float]:
    """
    Returns the middle of every node: leaves below one another, depth first; a parent between its first and last child.
    """
    children: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        if node.parent >= 0:
            children[node.parent].append(i)
    order, stack = [], [0]
    while stack:
        order.append(stack.pop())
        stack += reversed(children[order[-1]])
    middles, num_leaves = [0.0] * len(nodes), 0
    for i in order:
        if not children[i]:
            middles[i] = MARGIN / 2 + ROW * (num_leaves + 0.5)
            num_leaves += 1
    for i in reversed(order):
        if children[i]:
            middles[i] = (middles[children[i][0]] + middles[children[i][-1]]) / 2
    return middles


def _shorten(label: str) -> str:
    bare = label.strip("\u2068\u2069")
    return bare if len(bare) <= LONGEST else bare[: LONGEST - 1] + "…"


def _width(label: str) -> int:
    """Returns the columns of a monospaced font: two for East Asian characters and emoji, none for marks."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in label)
