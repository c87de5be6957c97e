"""Says what the tokens of a text are: the characters that each adds, and where each came from."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

import regex
from transformers import PreTrainedTokenizerBase


# Where a token came from: the prompt's forward; the draft, accepted by the target; the target's own, after the drafts.
Kind = Literal["first", "drafted", "bonus"]

WINDOW = 16  # tokens that are decoded again to see what the next one adds

# Visible signs for control characters, which would move the cursor of a terminal.
CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"} | {127: "\u2421"}


def token_pieces(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], skip_special_tokens: bool = False
) -> list[str]:
    """
    Returns the text that each token adds, so that the pieces join to the decoded text. Pieces end between characters as
    readers see them (grapheme clusters): a token that ends inside one adds nothing of it, and the token that completes
    it adds all of it. Such characters are bytes of byte-level tokenizers, and emoji or letters of several code points:

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

    def read(start: int, end: int) -> str:
        """Returns the text of some of the tokens, without the bytes of a character that follows."""
        return tokenizer.decode(tokens[start:end], skip_special_tokens=skip_special_tokens).rstrip("\ufffd")

    pieces: list[str] = []
    done, start, base = 0, 0, 0  # characters in pieces; tokens from `start` on decode to the text from `base` on
    for count in range(1, len(tokens) + 1):
        # Some tokenizers change the end of a text when more follows: only what stays counts.
        end = len(text) if count == len(tokens) else base + _common_length(read(start, count), text[base:])
        end = max(character_ends[bisect_right(character_ends, end) - 1], done)
        pieces.append(text[done:end])
        done = end
        if count - start > 2 * WINDOW:  # not the whole text again for every token
            new_base = done - sum(map(len, pieces[-WINDOW:]))
            if read(count - WINDOW, count) == text[new_base:done]:
                start, base = count - WINDOW, new_base
    return pieces


def _common_length(start: str, text: str) -> int:
    """Returns characters that both begin with."""
    if text.startswith(start):
        return len(start)
    return next(i for i, (a, b) in enumerate(zip(start + "\0", text + "\1", strict=False)) if a != b)


def step_kinds(step: int, length: int) -> list[tuple[Kind, int]]:
    """Returns where the tokens of one step came from: step 0 is the prompt's forward, all others are verifications."""
    drafted: list[tuple[Kind, int]] = [("drafted", step)] * (length - 1)
    return [*drafted, ("bonus" if step else "first", step)]


def token_kinds(acceptance_lengths: Sequence[int]) -> list[tuple[Kind, int]]:
    """
    Returns where the new tokens of a row came from, and in which step: the first from the prompt's forward (step 0);
    every verification adds drafted tokens and, last, one of the target's own. Where a text ends inside an accepted
    path, by its length or an end-of-sequence token, its last token counts as the target's own.

    Args:
        acceptance_lengths (`Sequence[int]`): Of one row, from [`EagleGenerateOutput`].

    Returns:
        `list[tuple[Kind, int]]`: Per token.
    """
    return [kind for step, length in enumerate([1, *acceptance_lengths]) for kind in step_kinds(step, length)]


def node_label(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """
    Returns a token on one line: quoted, with escapes. One that holds no whole character is followed by its id;
    right-to-left text is isolated, so that figures behind it stay behind it.
    """
    text = tokenizer.decode([token])
    label = repr(text)
    if "\ufffd" in text:
        label += f" #{token}"
    return f"\u2068{label}\u2069" if is_right_to_left(text) else label


def is_right_to_left(text: str) -> bool:
    """Checks whether there are letters that are written from right to left."""
    return regex.search(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}]", text) is not None
