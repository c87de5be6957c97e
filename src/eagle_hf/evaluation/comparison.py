"""Two results side by side: what became slower or faster beyond the spread."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .averages import ALL, RESAMPLINGS, answers
from .methods import EAGLE, PLAIN


# What is compared, and whether more of it is better.
FIGURES = ("speedup", "tau", "plain tokens/s")
NEGLIGIBLE = 0.02  # relative changes below this are of no interest


@dataclass(frozen=True)
class Change:
    """
    Says how a figure changed.

    Args:
        task (`str`), temperature (`float`), figure (`str`): Which.
        before, after (`float`): Its values, over the prompts that both results have.
        low, high (`float`): Where `after / before` lies in 95 % of resamplings of prompts and repeats.
        prompts (`int`): How many prompts both have.
    """

    task: str
    temperature: float
    figure: str
    before: float
    after: float
    low: float
    high: float
    prompts: int

    @property
    def verdict(self) -> str:
        """`"worse"`, `"better"` or `"same"`: the interval has to exclude equality, and the change to matter."""
        change = self.after / self.before - 1
        if self.high < 1 and change < -NEGLIGIBLE:
            return "worse"
        return "better" if self.low > 1 and change > NEGLIGIBLE else "same"


@dataclass
class Comparison:
    """
    Holds what differs between two results.

    Args:
        changes (`list[Change]`): By task, temperature and figure.
        conditions (`list[str]`): What else differs between the results.
        broken (`list[str]`): Where token ids differ from plain `generate` in the second result and not in the first.
    """

    changes: list[Change] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def has_regressions(self) -> bool:
        """Whether anything became worse; plain `generate` itself is not this library's."""
        is_worse = any(change.verdict == "worse" and change.figure != FIGURES[2] for change in self.changes)
        return is_worse or bool(self.broken)

    def __str__(self) -> str:
        lines = [f"Not equal in both: {condition}" for condition in self.conditions]
        lines += ["", *self.broken] if self.broken else []
        lines += [
            "",
            "| task | temperature | figure | before | after | after / before, 95 % | prompts | |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for c in self.changes:
            lines.append(
                f"| {c.task} | {c.temperature:g} | {c.figure} | {c.before:.2f} | {c.after:.2f} "
                f"| {c.after / c.before:.3f} [{c.low:.3f}, {c.high:.3f}] | {c.prompts} | {c.verdict} |"
            )
        return "\n".join(lines).lstrip("\n")


def compare(before: dict[str, Any], after: dict[str, Any]) -> Comparison:
    """
    Compares two results on the prompts that both have.

    Args:
        before, after (`dict`): From [`load_result`].

    Returns:
        [`Comparison`]

    Raises:
        `ValueError`: if they have no prompt in common.
    """
    comparison = Comparison(conditions=_conditions(before, after))
    by_key = {_key(record): record for record in before["records"]}
    pairs = [(by_key[_key(record)], record) for record in after["records"] if _key(record) in by_key]
    if not pairs:
        raise ValueError("The results have no prompt at the same temperature in common: there is nothing to compare.")
    for temperature in sorted({new["temperature"] for _, new in pairs}):
        chosen = [pair for pair in pairs if pair[1]["temperature"] == temperature]
        tasks = list(dict.fromkeys(new["task"] for _, new in chosen))
        for task in [*tasks, ALL] if len(tasks) > 1 else tasks:
            of_task = [pair for pair in chosen if task in (pair[1]["task"], ALL)]
            are_equal = [_are_equal([pair[i] for pair in of_task]) for i in (0, 1)]
            if are_equal[0] and not are_equal[1]:
                comparison.broken.append(f"{task}, temperature {temperature:g}: token ids differ from plain `generate`")
            for figure in FIGURES:
                change = _change(task, temperature, figure, of_task)
                if change is not None and (figure != "speedup" or all(are_equal)):
                    comparison.changes.append(change)
    return comparison


def _key(record: dict[str, Any]) -> tuple[str, str, float]:
    return record["task"], record["digest"], record["temperature"]


def _conditions(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    found = []
    for name in ("hardware", "dtype", "attention", "settings", "methods", "target", "draft", "versions"):
        if before[name] != after[name]:
            found.append(f"{name}: {_differences(before[name], after[name])}")
    keys = [{_key(record) for record in result["records"]} for result in (before, after)]
    if keys[0] != keys[1]:
        found.append(f"prompts: {len(keys[0] & keys[1])} are in both, of {len(keys[0])} and {len(keys[1])}")
    return found


def _differences(a: Any, b: Any) -> str:
    if not isinstance(a, dict) or not isinstance(b, dict):
        return f"{a}, then {b}"
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    return "; ".join(f"{name} {a.get(name)}, then {b.get(name)}" for name in names)


def _are_equal(records: Sequence[dict[str, Any]]) -> bool:
    return all(answer["equal"] or answer["is_tie"] for answer in answers(records, EAGLE))


def _change(task: str, temperature: float, figure: str, pairs: Sequence[tuple[Any, Any]]) -> Change | None:
    values = [_ratio([_sums(record, figure, None) for record in side]) for side in zip(*pairs, strict=True)]
    if not all(values):
        return None
    drawn_from = [tuple(_by_repeat(record, figure) for record in pair) for pair in pairs]
    generator = random.Random(0)
    changes = []
    for _ in range(RESAMPLINGS):
        drawn = generator.choices(drawn_from, k=len(pairs))
        before, after = (_ratio([generator.choice(repeats) for repeats in side]) for side in zip(*drawn, strict=True))
        if before and after:
            changes.append(after / before)
    changes.sort()
    low, high = (changes[int(share * len(changes))] for share in (0.025, 0.975))
    return Change(task, temperature, figure, values[0], values[1], low, high, len(pairs))


def _ratio(sums: Sequence[tuple[float, ...]]) -> float:
    """Returns, from sums of prompts, the product of all numerators' sums over that of the denominators' sums."""
    totals = [sum(column) for column in zip(*sums, strict=True)]
    value = 1.0
    for numerator, denominator in zip(totals[::2], totals[1::2], strict=True):
        value *= numerator / denominator if denominator else 0.0
    return value


def _by_repeat(record: dict[str, Any], figure: str) -> list[tuple[float, ...]]:
    """Returns the sums of a prompt in each of its repeats."""
    count = min(len(answer["seconds"]) for method in (PLAIN, EAGLE) for answer in answers([record], method))
    return [_sums(record, figure, repeat) for repeat in range(count)]


def _sums(record: dict[str, Any], figure: str, repeat: int | None) -> tuple[float, ...]:
    """Returns numerators and denominators of a figure for a prompt, with the times of a repeat or median times."""
    if figure == "tau":
        lengths = [n for answer in answers([record], EAGLE) for n in answer["acceptance_lengths"]]
        return sum(lengths), len(lengths)

    def sums_of(method: str) -> tuple[float, float]:
        tokens = seconds = 0.0
        for answer in answers([record], method):
            times = answer["seconds"]
            tokens += answer["num_tokens"]
            seconds += statistics.median(times) if repeat is None else times[repeat]
        return tokens, seconds

    tokens, seconds = sums_of(PLAIN)
    if figure == FIGURES[2]:
        return tokens, seconds
    return (*sums_of(EAGLE), seconds, tokens)
