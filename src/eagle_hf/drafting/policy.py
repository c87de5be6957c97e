"""
Decides what a step drafts and verifies. A policy is asked three things: what to do in the next step ([`Policy.plan`]),
what of a tree is worth its time ([`Plan.wants_level`] and its like), and what came of it ([`Policy.observe`]).

Nothing here changes the text: whatever is drafted, the target's own tokens are kept.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..tree import DraftTree


@dataclass
class Plan:
    """
    Says what one step drafts and verifies. This one lets trees be as large as the options say.

    Args:
        threshold (`float`, defaults to 0.0): Nodes below this probability are left out.
        drafts (`bool`, defaults to `True`): Whether the head drafts.
        looks_up (`bool`, defaults to `True`): Whether tokens may be looked up in the text.
        started (`float`): When the step has begun, in seconds.
    """

    threshold: float = 0.0
    drafts: bool = True
    looks_up: bool = True
    started: float = field(default_factory=lambda: time.perf_counter())

    def restart_clock(self) -> None:
        """Lets the step begin now: what it did so far, later steps of the text need not do."""
        self.started = time.perf_counter()

    def wants_level(self, scores: torch.Tensor, level: int) -> bool:
        """
        Returns whether to grow a level. NaN is not unlikely: the level shows that the head is broken.

        Args:
            scores (`torch.Tensor` of shape `(batch_size, num_nodes)`): Log-probabilities of the nodes of the level
                above, or of level 1, which is there already.
            level (`int`): The level, 1 being the children of the root.
        """
        return self.threshold <= 0 or not bool((scores < math.log(self.threshold)).all())

    def num_worth(self, scores: torch.Tensor) -> int:
        """
        Returns how many nodes to verify, the root included, the same number in every row: those likelier than the
        threshold in the row with most of them.

        Args:
            scores (`torch.Tensor` of shape `(batch_size, num_nodes)`): Their log-probabilities; 0 for the root.
        """
        if self.threshold <= 0:
            return scores.shape[1]
        return with_broken_node(scores, int((scores >= math.log(self.threshold)).sum(dim=1).max()))

    def num_worth_looking_up(self, rates: Sequence[float], count: int) -> int:
        """
        Returns how many of `count` looked-up tokens to verify: all of them.

        Args:
            rates (`Sequence[float]`): For every row, the rate at which each token follows the one before, as in the
                text that was looked up.
            count (`int`): Tokens that could be verified.
        """
        return count


def with_broken_node(scores: torch.Tensor, num_worth: int) -> int:
    """
    Returns `num_worth`, or one node more than the root where no node is possible at all: it is verified so that a
    broken head can be seen.
    """
    return 2 if num_worth == 1 and bool(scores[:, 1:].isneginf().all()) else num_worth


class Policy(Protocol):
    """Plans the steps of a text."""

    def plan(self, max_depth: int) -> Plan:
        """
        Plans the next step.

        Args:
            max_depth (`int`): Levels that there is room for.
        """

    def observe(self, plan: Plan, drafted: DraftTree, num_nodes: int, counts: Sequence[int]) -> None:
        """
        Learns from a step, which took from its plan until now.

        Args:
            plan ([`Plan`]): Its plan.
            drafted ([`DraftTree`]): What the head has drafted.
            num_nodes (`int`): Nodes of every row that were verified, the root and looked-up ones included.
            counts (`Sequence[int]` of length `batch_size`): Tokens that it added to every row, 0 where a row had
                finished before.
        """


@dataclass(frozen=True)
class FixedSize:
    """
    Drafts in every step, trees of the size that the options say.

    Args:
        threshold (`float`, defaults to 0.0): Nodes below this probability are left out.
    """

    threshold: float = 0.0

    def plan(self, max_depth: int) -> Plan:
        """Implements [`Policy.plan`]."""
        return Plan(self.threshold, drafts=max_depth > 0)

    def observe(self, plan: Plan, drafted: DraftTree, num_nodes: int, counts: Sequence[int]) -> None:
        """Learns nothing."""
