"""Holds what was measured with a head, and with which versions: what a card shows as results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import huggingface_hub
import torch
import transformers

from ..versions import __version__


@dataclass(frozen=True)
class TaskResult:
    """
    Holds what was measured on one task.

    Args:
        task (`str`): Its name, such as `"MT-Bench"`.
        acceptance_length (`float`): Tokens per verification, the one that the target adds included.
        num_prompts (`int`): How many prompts.
        temperature (`float`, *optional*, defaults to 0.0): 0 is greedy.
        acceptance_by_depth (`Sequence[float]`, *optional*):
            Share of verifications that accept at least 1, 2, ... drafted tokens.
        plain_tokens_per_second, eagle_tokens_per_second, speedup (`float`, *optional*):
            Without and with the head on the same hardware, and what a run was faster by (a median, if there were
            several: it need not be the ratio of the others).
        dataset (`str`, *optional*): Data set on the Hub, such as `"openai/gsm8k"`.
        speedup_quartiles (`tuple[float, float]`, *optional*): Quartiles of the speedup over several runs.

    Raises:
        `ValueError`: if a figure is impossible.
    """

    task: str
    acceptance_length: float
    num_prompts: int
    temperature: float = 0.0
    acceptance_by_depth: Sequence[float] = ()
    plain_tokens_per_second: float | None = None
    eagle_tokens_per_second: float | None = None
    speedup: float | None = None
    dataset: str | None = None
    speedup_quartiles: tuple[float, float] | None = None

    def __post_init__(self):
        if not self.acceptance_length >= 1:
            raise ValueError(
                f"`acceptance_length` of {self.task} is {self.acceptance_length}, but every verification gives at "
                "least one token: it counts the target's own token as well."
            )
        shares = list(self.acceptance_by_depth)
        if any(not 0 <= share <= 1 for share in shares) or shares != sorted(shares, reverse=True):
            raise ValueError(
                f"`acceptance_by_depth` of {self.task} is {shares}, expected shares from 0 to 1 that do not grow: a "
                "token is accepted only after those before it."
            )
        if self.num_prompts < 1:
            raise ValueError(f"`num_prompts` of {self.task} is {self.num_prompts}: nothing was measured.")


@dataclass(frozen=True)
class Measurements:
    """
    A benchmark: what a card shows as results.

    Args:
        results (`Sequence[TaskResult]`): One per task and temperature.
        command (`str`): Measures them again.
        hardware (`str`): What they were measured on.
        dtype (`str`): Dtype of target and head.
        versions (`Mapping[str, str]`, *optional*): Defaults to those in use.
        tokens_compared (`int`, *optional*): New tokens that were compared with plain `generate` and equal to it.
        notes (`str`, *optional*): Anything else that a reader has to know: repeats, lengths, selection of prompts.

    Raises:
        `ValueError`: if there are no results, or it is not said how to get them.
    """

    results: Sequence[TaskResult]
    command: str
    hardware: str
    dtype: str
    versions: Mapping[str, str] = field(default_factory=lambda: current_versions())
    tokens_compared: int | None = None
    notes: str | None = None

    def __post_init__(self):
        if not self.results or not self.command or not self.hardware:
            raise ValueError("Measurements need results, the command that measures them, and the hardware.")


def current_versions() -> dict[str, str]:
    """Returns the versions of the packages that a result depends on."""
    return {
        "eagle_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "huggingface_hub": huggingface_hub.__version__,
    }
