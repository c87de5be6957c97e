"""Figures that the commands print."""

from collections.abc import Sequence

from .pair import Run


def mean_acceptance_length(runs: Sequence[Run]) -> float:
    """Returns the tokens per verification over all runs (tau of the EAGLE papers)."""
    lengths = [length for run in runs for length in run.acceptance_lengths]
    return sum(lengths) / max(len(lengths), 1)


def tokens_per_second(runs: Sequence[Run]) -> float:
    """Returns the new tokens of all runs per second of wall time."""
    return sum(len(run.tokens) for run in runs) / sum(run.seconds for run in runs)


def speed_line(plain: Sequence[Run], eagle: Sequence[Run]) -> str:
    """Returns a line with the tokens per second of both, their ratio, and the acceptance length."""
    rates = tokens_per_second(plain), tokens_per_second(eagle)
    return (
        f"plain {rates[0]:.1f} tokens/s, EAGLE {rates[1]:.1f} tokens/s: {rates[1] / rates[0]:.2f} times as fast, "
        f"{mean_acceptance_length(eagle):.2f} tokens per verification"
    )
