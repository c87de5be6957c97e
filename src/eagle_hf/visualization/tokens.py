"""What the tokens of a text are: the characters that each adds, and where each came from."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

import regex
from transformers import PreTrainedTokenizerBase


# Where a token came from: the prompt's forward; the draft, accepted by the target; the target's own, after the drafts.
Kind = Literal["first", "drafted", "bonus"]

# Visible signs for control characters, which would move the cursor of a terminal.
CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"} | {127: "\u2421"}


def token_pieces(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], skip_special_tokens: bool = False
) -> list[str]:
    """
    The text that each token adds, so that the pieces join to the decoded text. Pieces end between characters as readers
    see them (grapheme clusters): a token that ends inside one adds nothing of it, and the token that completes it adds
    all of it. Such characters are bytes of byte-level tokenizers, and emoji or letters of several code points:

    ```text
    tokens of 👩‍👩‍👧!     F0 9F | 91 A9 E2 80 | 8D F0 9F 91 A9 | ... | 91 A7 | !
    their pieces                                                      👩‍👩‍👧     !
    ```

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        tokens (`Sequence[int]`): Token ids.
        skip_special_tokens (`bool`, defaults to `False`): Whether special tokens add nothing.

    Returns:
        `list[str]`: One per token. `"".join` of them is `tokenizer.decode(tokens)`.
    """
    tokens = list(tokens)
    text = tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
    character_ends = [0, *(match.end() for match in regex.finditer(r"\X", text))]
    pieces, done = [], 0
    for count in range(1, len(tokens) + 1):
        if count == len(tokens):
            end = len(text)
        else:
            start = tokenizer.decode(tokens[:count], skip_special_tokens=skip_special_tokens)
            end = _common_length(start.rstrip("\ufffd"), text)
        end = max(character_ends[bisect_right(character_ends, end) - 1], done)
        pieces.append(text[done:end])
        done = end
    return pieces


def _common_length(start: str, text: str) -> int:
    """Characters that both begin with. Some tokenizers change the end of a text when more follows."""
    if text.startswith(start):
        return len(start)
    return next(i for i, (a, b) in enumerate(zip(start + "\0", text + "\1", strict=False)) if a != b)


def token_kinds(acceptance_lengths: Sequence[int]) -> list[tuple[Kind, int]]:
    """
    Where the new tokens of a row came from, and in which step: the first from the prompt's forward (step 0); every
    verification adds drafted tokens and, last, one of the target's own. Where a text ends inside an accepted path, by
    its length or an end-of-sequence token, its last token counts as the target's own.

    Args:
        acceptance_lengths (`Sequence[int]`): Of one row, from [`EagleGenerateOutput`].

    Returns:
        `list[tuple[Kind, int]]`: Per token.
    """
    kinds: list[tuple[Kind, int]] = [("first", 0)]
    for step, length in enumerate(acceptance_lengths, start=1):
        kinds += [("drafted", step)] * (length - 1)
        kinds.append(("bonus", step))
    return kinds


def node_label(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """
    A token on one line: quoted, with escapes. One that holds no whole character is followed by its id; right-to-left
    text is isolated, so that figures behind it stay behind it.
    """
    text = tokenizer.decode([token])
    label = repr(text)
    if "\ufffd" in text:
        label += f" #{token}"
    return f"\u2068{label}\u2069" if is_right_to_left(text) else label


def is_right_to_left(text: str) -> bool:
    """Whether there are letters that are written from right to left."""
    return regex.search(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}]", text) is not None
