"""
Estimates what a step takes from the steps of the running text: a step that adds more tokens takes longer.

```text
seconds = plain + learn                             the head reads the features of accepted tokens
                + draft + level * levels            it grows a tree
                + node  * nodes                     the target verifies more nodes than the root
```
"""

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch

from ..tree import DraftTree


# What a step did besides verifying the root: whether the head learned, whether it drafted, levels, nodes verified.
Parts = tuple[int, int, int, int]


@dataclass
class StepCosts:
    """
    Time of a step: what a plain one takes, and on top of it a linear function of what the step did, fitted to the
    latest steps (least squares, older steps fading). Until there are some, drafting is taken to cost what it does where
    the head is a few percent of its target, and more in a batch, whose plain steps make little of the processor.

    Args:
        batch_size (`int`): Rows of the batch.
    """

    # Share of a plain step of one row: the head learns, drafts at all, per level, per node.
    _PRIOR = np.array([0.1, 0.1, 0.06, 0.02])
    _WEIGHTS = np.square([1.0, 1.0, 4.0, 12.0])  # of the prior: typical values of the same
    _FADING = 0.97

    batch_size: int = 1
    plain_steps: deque[float] = field(default_factory=lambda: deque(maxlen=7))  # seconds of the latest plain steps
    extra: list[float] = field(default_factory=list)
    _has_drafted: bool = False  # any step so far
    _gram: np.ndarray = field(default_factory=lambda: np.zeros((4, 4)))  # faster than tensors at this size
    _moment: np.ndarray = field(default_factory=lambda: np.zeros(4))

    @property
    def plain(self) -> float:
        """Seconds of a plain step: of one that nothing else held up, which drafts would then seem to save."""
        return sorted(self.plain_steps)[(len(self.plain_steps) - 1) // 3]

    def observe(self, parts: Parts, seconds: float) -> None:
        """Learns from a step."""
        if not any(parts):
            self.plain_steps.append(seconds)
            if self._has_drafted:
                return  # a plain step says nothing about the others, unless all that is known of them follows from it
        else:
            self._has_drafted = True
            x = np.array(parts, dtype=float)
            self._gram = self._FADING * self._gram + np.outer(x, x)
            self._moment = self._FADING * self._moment + (seconds - self.plain) * x
        prior = self.plain * math.sqrt(self.batch_size) * self._PRIOR
        solution = prior.tolist()
        if self._has_drafted:
            moment = self._moment + self._WEIGHTS * prior
            solution = np.linalg.solve(self._gram + np.diag(self._WEIGHTS), moment).tolist()
        least = 0.002 * self.plain  # nothing is free, whatever noise says
        self.extra = [max(value, least) for value in solution]

    def predict(self, parts: Parts) -> float:
        """Returns the seconds of a step."""
        return self.plain + sum(value * part for value, part in zip(self.extra, parts, strict=True))


PRIOR_GAIN = 2.0  # tokens of a draft after which as much is known of `progress_share` as was supposed


@dataclass
class PairCosts:
    """
    Knows what steps of a pair take and bring.

    Args:
        costs ([`StepCosts`]): What steps took so far.
        exponent (`float`, defaults to 1.0): Rates at which paths are accepted are the draft's probabilities to this
            power.
    """

    costs: StepCosts = field(default_factory=StepCosts)
    exponent: float = 1.0
    num_fitted: int = 0  # steps that the exponent was fitted to, in all calls
    seconds: float = 0.0  # of the latest steps, older ones fading
    tokens: float = 0.0
    gained: float = 0.0  # tokens that drafts added to a row on average, older ones fading
    progressed: float = 0.0  # and to the row that is furthest behind

    @property
    def seconds_per_token(self) -> float:
        """What a token takes at present, at most what it takes without drafts."""
        return min(self.costs.plain, self.seconds / self.tokens) if self.tokens else self.costs.plain

    @property
    def progress_share(self) -> float:
        """
        How much of what drafts add to a row on average brings the one forward that is furthest behind: the others wait
        for it in the end. 1 for a single row.
        """
        return min((self.progressed + PRIOR_GAIN) / (self.gained + PRIOR_GAIN), 1.0)

    @property
    def seconds_saved_per_token(self) -> float:
        """What a token more in every row, on average, is worth."""
        return self.progress_share * self.seconds_per_token

    @property
    def least_rate(self) -> float:
        """Rate at which a node must be accepted, averaged over rows, to pay."""
        return min(self.costs.extra[3] / self.seconds_saved_per_token, 0.9)

    def rates(self, scores: torch.Tensor) -> torch.Tensor:
        """
        Returns the rates at which the likeliest, the second likeliest ... node of every row is accepted, averaged over
        rows.

        Args:
            scores (`torch.Tensor` of shape `(batch_size, num_nodes)`): Log-probabilities, as the draft sees them.

        Returns:
            `torch.Tensor` of shape `(num_nodes,)`; of a single row as its nodes stand
        """
        rates = torch.exp(scores.float() * self.exponent)
        return rates[0] if len(rates) == 1 else rates.sort(dim=1, descending=True).values.mean(dim=0)

    def expected(self, tree: DraftTree) -> float:
        """Returns how many drafted tokens of a tree should be accepted, averaged over rows."""
        return float(torch.exp(tree.scores[:, 1:].float() * self.exponent).sum()) / len(tree.scores)

    def fit(self, error: float) -> None:
        """Fits the exponent to a step with `error` more accepted tokens than expected."""
        rate = max(0.02, 0.2 / (2 + self.num_fitted))  # the first steps of a pair say most
        self.num_fitted += 1
        self.exponent = min(max(self.exponent * math.exp(-rate * error), 0.2), 3.0)
