"""
Seeing the speculation: draft trees as text, and which tokens of a text were drafted. Needs nothing but a terminal.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from .tree import DraftTree


def token_pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """
    The text that each token adds, so that the pieces join to the decoded text. Tokens that end inside a character (of a
    byte-level tokenizer) add nothing; the token that completes the character adds it.
    """
    pieces, done = [], ""
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False)
        complete = text if end == len(tokens) else text.rstrip("\ufffd")
        pieces.append(complete[len(done) :] if complete.startswith(done) else "")
        done = complete if complete.startswith(done) else done
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


def draft_tree_lines(
    tree: DraftTree,
    tokenizer: PreTrainedTokenizerBase,
    accepted: Sequence[int] = (),
    row: int = 0,
    style: tuple[str, str] = ("", ""),
) -> list[str]:
    """
    Draw a draft tree with one line per node: its token, the probability that the draft gave to the path so far, and a
    check mark where the target took it.

    Args:
        tree ([`DraftTree`]): The tree.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        accepted (`Sequence[int]`): Accepted nodes, the root first.
        row (`int`, defaults to 0): Which row of the batch.
        style (`tuple[str, str]`, defaults to `("", "")`): Put before and after the token of an accepted node.

    Returns:
        `list[str]`
    """
    tokens, parents = tree.tokens[row].tolist(), tree.parents[row].tolist()
    probs = tree.scores[row].exp().tolist()
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)

    def label(node: int) -> str:
        text = repr(tokenizer.decode([tokens[node]]))
        if node == 0:
            return f"{text} (root)"
        before, after = style if node in accepted else ("", "")
        return f"{before}{text}{after} {probs[node]:.0%}{' ✓' if node in accepted else ''}"

    lines = [label(0)]

    def draw(node: int, indent: str) -> None:
        nodes = children.get(node, [])
        for child in nodes:
            is_last = child == nodes[-1]
            lines.append(f"{indent}{'└─ ' if is_last else '├─ '}{label(child)}")
            draw(child, indent + ("   " if is_last else "│  "))

    draw(0, "")
    return lines
