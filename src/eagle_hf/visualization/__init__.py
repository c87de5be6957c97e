"""
Draws the speculation: draft trees, and which tokens of a text were drafted. The same picture shows itself in a
terminal (`print`, or in colour by `rich`), in a notebook, and as SVG or HTML. Nothing is shown by colour alone.
"""

from .text import TextPicture, draw_text
from .tree import TreePicture, draw_tree


__all__ = ["TextPicture", "TreePicture", "draw_text", "draw_tree"]
