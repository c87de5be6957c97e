"""
Seeing the speculation: draft trees, and which tokens of a text were drafted. Drawn by `rich` (`pip install
'eagle-hf[viz]'`), which shows colours where there are any and plain text elsewhere.
"""

from collections.abc import Sequence

from rich.text import Text
from rich.tree import Tree
from transformers import PreTrainedTokenizerBase

from .tree import DraftTree


DRAFTED = "green"  # style of tokens that were drafted and accepted


def token_pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """
    The text that each token adds, so that the pieces join to the decoded text. A token that ends inside a character (of
    a byte-level tokenizer) adds nothing; the one that completes the character adds it.
    """
    pieces, done = [], ""
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(list(tokens[:end]))
        if end < len(tokens):
            text = text.rstrip("\ufffd")
        grows = text.startswith(done)
        pieces.append(text[len(done) :] if grows else "")
        done = text if grows else done
    return pieces


def drafted_tokens(acceptance_lengths: Sequence[int]) -> list[bool]:
    """
    Which new tokens of a row were drafted. The first comes from the prompt; every verification adds accepted drafts
    and, last, one token of the target's own.

    Args:
        acceptance_lengths (`Sequence[int]`): Of one row, from [`EagleGenerateOutput`].
    """
    flags = [False]
    for length in acceptance_lengths:
        flags += [True] * (length - 1) + [False]
    return flags


def draw_text(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], acceptance_lengths: Sequence[int] | None = None
) -> Text:
    """
    Generated text, drafted tokens in colour.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        tokens (`Sequence[int]`): New tokens of one row.
        acceptance_lengths (`Sequence[int]`, *optional*): Of this row; without them nothing is coloured.
    """
    pieces = token_pieces(tokenizer, tokens)
    flags = [False] * len(tokens) if acceptance_lengths is None else drafted_tokens(acceptance_lengths)
    text = Text()
    for piece, drafted in zip(pieces, flags, strict=True):
        text.append(piece, style=DRAFTED if drafted else None)
    return text


def draw_tree(tree: DraftTree, tokenizer: PreTrainedTokenizerBase, accepted: Sequence[int] = (), row: int = 0) -> Tree:
    """
    A draft tree: every node with its token, the probability that the draft gives to the path from the root to it, and a
    check mark where the target accepted it.

    Args:
        tree ([`DraftTree`]): The tree.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        accepted (`Sequence[int]`): Accepted nodes, the root first.
        row (`int`, defaults to 0): Which row of the batch.
    """
    tokens, parents = tree.tokens[row].tolist(), tree.parents[row].tolist()
    probs = tree.scores[row].exp().tolist()
    branches: list[Tree] = []
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        label = Text(repr(tokenizer.decode([token])))
        if node == 0:
            branches.append(Tree(label.append(" (root)", style="dim")))
            continue
        label.append(f" {probs[node]:.0%}", style="dim")
        if node in accepted:
            label.stylize(DRAFTED)
            label.append(" ✓", style=DRAFTED)
        branches.append(branches[parent].add(label))
    return branches[0]
