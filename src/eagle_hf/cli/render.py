"""What the commands print: text with drafted tokens in colour, and figures. Colours only on a terminal."""

import os
import sys
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..visualization import draft_tree_lines, drafted_tokens, token_pieces
from .pair import Run


GREEN, RESET = "\033[32m", "\033[0m"


def uses_color() -> bool:
    """Whether standard output is a terminal that shows colours (https://no-color.org)."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def colored_text(tokenizer: PreTrainedTokenizerBase, run: Run, color: bool) -> str:
    """The generated text, drafted tokens in green."""
    pieces = token_pieces(tokenizer, run.tokens)
    if not color or run.output is None:
        return "".join(pieces)
    flags = drafted_tokens(run.acceptance_lengths)
    return "".join(f"{GREEN}{piece}{RESET}" if drafted else piece for piece, drafted in zip(pieces, flags, strict=True))


def tree_of_best_step(tokenizer: PreTrainedTokenizerBase, run: Run, color: bool) -> list[str]:
    """The draft tree of the step that accepted most, as lines."""
    if run.output is None or not run.output.draft_trees:
        return []
    tree, paths = max(run.output.draft_trees, key=lambda step: len(step[1][0]))
    return draft_tree_lines(tree, tokenizer, paths[0], style=(GREEN, RESET) if color else ("", ""))


def mean_acceptance_length(runs: Sequence[Run]) -> float:
    """Tokens per verification over all runs (tau of the EAGLE papers)."""
    lengths = [length for run in runs for length in run.acceptance_lengths]
    return sum(lengths) / max(len(lengths), 1)


def speed_line(plain: Sequence[Run], eagle: Sequence[Run]) -> str:
    """Tokens per second of both, their ratio, and the acceptance length."""
    rates = [sum(len(run.tokens) for run in runs) / sum(run.seconds for run in runs) for runs in (plain, eagle)]
    return (
        f"plain {rates[0]:.1f} tokens/s, EAGLE {rates[1]:.1f} tokens/s: {rates[1] / rates[0]:.2f} times as fast, "
        f"{mean_acceptance_length(eagle):.2f} tokens per verification"
    )
