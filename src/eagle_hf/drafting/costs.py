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
