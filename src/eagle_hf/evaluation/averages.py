"""
The only place where averages are made, from records of single prompts.

A speedup is the ratio of tokens per second over all prompts together: with equal texts, that of the times. It is called
a speedup only where the token ids are those of plain `generate`; else it is a ratio of throughputs.
"""

import random
import statistics
from collections.abc import Sequence
from typing import Any

from .acceptance import calibration, n_alpha, summarize_lengths
from .methods import PLAIN


Record = dict[str, Any]
ALL = "all"  # the row over all tasks
RESAMPLINGS = 1000


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float | None]:
    """Returns the median and quartiles; a single value has no quartiles."""
    if len(values) < 2:
        return {"median": round(values[0], digits), "first_quartile": None, "third_quartile": None}
    low, median, high = statistics.quantiles(values, n=4)
    low, high = max(low, min(values)), min(high, max(values))  # quartiles of two values lie beyond them
    return {
        "median": round(median, digits),
        "first_quartile": round(low, digits),
        "third_quartile": round(high, digits),
    }


def answers(records: Sequence[Record], method: str) -> list[dict[str, Any]]:
    """Returns what a method did in all turns of some prompts."""
    return [turn["methods"][method] for record in records for turn in record["turns"]]


def rates(records: Sequence[Record], method: str) -> list[float]:
    """Returns the tokens per second over all prompts, in every repeat."""
    measured = answers(records, method)
    tokens = sum(answer["num_tokens"] for answer in measured)
    return [tokens / sum(column) for column in zip(*(answer["seconds"] for answer in measured), strict=True)]


def ratios(records: Sequence[Record], method: str) -> list[float]:
    """Returns the tokens per second over those of plain `generate`, in every repeat."""
    return [rate / plain for rate, plain in zip(rates(records, method), rates(records, PLAIN), strict=True)]


def interval(records: Sequence[Record], method: str) -> list[float]:
    """
    Returns where the ratio to plain `generate` lies in 95 % of the selections of as many prompts from these (bootstrap,
    always with the same random numbers): what another choice of prompts may give.
    """
    sums = [_sums(record, method) for record in records]
    generator = random.Random(0)
    values = []
    for _ in range(RESAMPLINGS):
        chosen = generator.choices(sums, k=len(sums))
        tokens, seconds, plain_tokens, plain_seconds = (sum(column) for column in zip(*chosen, strict=True))
        values.append(tokens / seconds * plain_seconds / plain_tokens)
    values.sort()
    return [round(values[int(share * RESAMPLINGS)], 3) for share in (0.025, 0.975)]


def _sums(record: Record, method: str) -> tuple[float, float, float, float]:
    """Returns the tokens and median seconds of a prompt, of a method and of plain `generate`."""
    sums = []
    for name in (method, PLAIN):
        measured = answers([record], name)
        sums.append(sum(answer["num_tokens"] for answer in measured))
        sums.append(sum(statistics.median(answer["seconds"]) for answer in measured))
    return sums[0], sums[1], sums[2], sums[3]


def summarize(records: Sequence[Record], task: str, temperature: float, method: str) -> dict[str, Any]:
    """
    Returns a row of the results: a method on a task at a temperature, or on all tasks together (`task` is `"all"`).

    Returns:
        `dict`: Without any average where the method failed on a prompt: then `failures` says how often and where.
    """
    chosen = [r for r in records if r["temperature"] == temperature and task in (r["task"], ALL)]
    row: dict[str, Any] = {
        "task": task,
        "temperature": temperature,
        "method": method,
        "prompts": len(chosen),
        "turns": sum(len(record["turns"]) for record in chosen),
    }
    measured = answers(chosen, method)
    failures = [answer["error"] for answer in measured if "error" in answer]
    if failures:
        return row | {"failures": len(failures), "first_failure": failures[0]}
    unequal = [answer for answer in measured if not answer["equal"]]
    ties = sum(answer["is_tie"] for answer in unequal)
    row |= {
        "new_tokens": sum(answer["num_tokens"] for answer in measured),
        "tokens_per_second": spread(rates(chosen, method)),
        "tokens_per_target_forward": round(
            sum(answer["num_tokens"] for answer in measured) / sum(answer["target_forwards"] for answer in measured), 4
        ),
        "texts_that_differ": len(unequal),
        "of_these_at_ties": ties,
    }
    if method != PLAIN:
        name = "speedup" if len(unequal) == ties else "throughput_ratio"
        row[name] = spread(ratios(chosen, method))
        row[f"{name}_interval"] = interval(chosen, method)
    if "acceptance_lengths" in measured[0]:
        by_prompt: list[list[int]] = [
            sum((a["acceptance_lengths"] for a in answers([record], method)), []) for record in chosen
        ]
        row |= summarize_lengths(by_prompt)
    return row


def head_metrics(records: Sequence[Record], temperature: float) -> dict[str, Any]:
    """Returns the n-alpha and calibration over all prompts of a temperature."""
    turns = [turn for record in records if record["temperature"] == temperature for turn in record["turns"]]
    return {
        "temperature": temperature,
        "n_alpha": n_alpha(turn["chains"] for turn in turns),
        "calibration": calibration(turn["confidence"] for turn in turns),
    }
