"""
How large the next tree should be: worth its time, by what steps took and what the draft's confidence was worth so far.

A step that adds more tokens takes longer. Measured on the steps of the running text, its time is taken to be

```text
seconds = plain + learn                             the head reads the features of accepted tokens
                + draft + level * levels            it grows a tree
                + node  * nodes                     the target verifies more nodes than the root
```

and a drafted token is worth the time that a token takes at present. So a node pays if its probability is at least
`node / seconds per token`, another level if the tokens it may add are worth more than `level`, and drafting at all if
the steps of late were faster than plain ones; if not, the head pauses, and tries again later. Where drafting about
breaks even, that shows late or never; so what a text may lose to drafts is bounded: three plain steps, and one percent
of those that draft nothing.

How probable a node is, the draft says by its confidence: probabilities of paths are close to the rates at which they
are accepted (EAGLE-2, section 3), up to an exponent, which is fitted to what is accepted. Greedy decoding accepts the
likeliest token more often than its probability says, sampling does not.

Nothing here changes the text: whatever is drafted, the target's own tokens are kept.
"""

import copy
import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .tree import DraftTree


# What a step did besides verifying the root: whether the head learned, whether it drafted, levels, nodes drafted.
Parts = tuple[int, int, int, int]


@dataclass
class FixedSizing:
    """
    Trees of the size that the options say.

    Args:
        threshold (`float`): Nodes below this probability are left out.
    """

    threshold: float = 0.0
    looks_up: ClassVar[bool] = True

    def begin_step(self) -> bool:
        """Drafts in every step."""
        return True

    def end_step(self, tokens: float, progress: float | None = None) -> None:
        """Learns nothing."""

    def drafted(self, scores: torch.Tensor, levels: int) -> None:
        """Learns nothing."""

    def verifies(self, tree: DraftTree) -> None:
        """Learns nothing."""

    @property
    def least_score(self) -> float | None:
        """Log-probability that a node must have; `None` where any will do."""
        return math.log(self.threshold) if self.threshold > 0 else None

    def wants_level(self, scores: torch.Tensor, level: int) -> bool:
        """
        Whether to go on with level `level`, given the log-probabilities of the nodes above, of shape `(batch_size,
        num_nodes)`. NaN is not unlikely: the level shows that the head is broken.
        """
        return self.least_score is None or not bool((scores < self.least_score).all())


@dataclass
class StepCosts:
    """
    Time of a step: what a plain one takes, and on top of it a linear function of what the step did, fitted to the
    latest steps (least squares, older steps fading). Until there are some, drafting is taken to cost what it does where
    the head is a few percent of its target.
    """

    # Share of a plain step: the head learns, drafts at all, per level, per node.
    _PRIOR = (0.1, 0.1, 0.06, 0.02)
    _SIZES = (1.0, 1.0, 4.0, 12.0)  # typical values of the same, which say how much the prior weighs
    _FADING = 0.97

    plain_steps: deque[float] = field(default_factory=lambda: deque(maxlen=7))  # seconds of the latest plain steps
    extra: list[float] = field(default_factory=list)
    _gram: np.ndarray = field(default_factory=lambda: np.zeros((4, 4)))  # faster than tensors at this size
    _moment: np.ndarray = field(default_factory=lambda: np.zeros(4))

    @property
    def plain(self) -> float:
        """Seconds of a plain step: of one that nothing else held up, which drafts would then seem to save."""
        return sorted(self.plain_steps)[(len(self.plain_steps) - 1) // 3]

    def observe(self, parts: Parts, seconds: float) -> None:
        """Learn from a step."""
        if not any(parts):
            self.plain_steps.append(seconds)
            if self._gram.any():
                return  # a plain step says nothing about the others, unless all that is known of them follows from it
        else:
            x = np.array(parts, dtype=float)
            self._gram = self._FADING * self._gram + np.outer(x, x)
            self._moment = self._FADING * self._moment + (seconds - self.plain) * x
        weights = np.square(self._SIZES)
        prior = self.plain * np.array(self._PRIOR)
        solution = np.linalg.solve(self._gram + np.diag(weights), self._moment + weights * prior).tolist()
        least = 0.002 * self.plain  # nothing is free, whatever noise says
        self.extra = [max(value, least) for value in solution]

    def predict(self, parts: Parts) -> float:
        """Seconds of a step."""
        return self.plain + sum(value * part for value, part in zip(self.extra, parts, strict=True))


@dataclass
class TreeSizing:
    """
    Sizes the trees of one `generate` call after another; see the module's text.

    Args:
        costs ([`StepCosts`]): What steps took so far.
        exponent (`float`): Rates at which paths are accepted are the draft's probabilities to this power.
        first_plain_steps (`int`):
            Plain steps that a pair begins with. 1 will do where the first one takes no longer than others.
    """

    _LONGEST_PAUSE = 128
    _PAUSE_GROWTH = 4
    _MEASURED_AGAIN = 16  # steps after which a plain one is due, where drafts save little
    _MOST_LOST = 3.0  # plain steps that drafts may cost a text in vain ...
    _SHARE_LOST = 0.01  # ... and this share of those that drafted nothing

    costs: StepCosts = field(default_factory=StepCosts)
    exponent: float = 1.0
    first_plain_steps: int = 2
    _num_fitted: int = 0  # steps that the exponent was fitted to, in all calls
    num_plain_steps: int = 0
    num_drafted_steps: int = 0
    num_nodes: int = 0  # of all drafted trees
    num_levels: int = 0
    _seconds: float = 0.0  # of the latest steps, older ones fading
    _tokens: float = 0.0
    _saved: float = 0.0  # seconds that a drafted step saved of late
    _spread: float = 0.0  # how far from that single steps were
    _pause: int = 3  # steps of the next pause
    _paused: int = 0  # steps of this pause still to come
    _since_plain: int = 0  # steps since the last plain one
    _balance: float = 0.0  # seconds that drafts saved in this text, and what they may lose on top
    is_measuring: bool = False  # whether the step has to be a plain one, so that its time is known
    _started: float = 0.0
    _parts: Parts | None = None
    _is_first: bool = True  # of a text
    _level_total: float = 0.0  # tokens that the level above adds
    _expected: float | None = None  # drafted tokens of this step that should be accepted, if nothing was looked up

    # ------------------------------------------------------------------ the size of a tree

    def begin_step(self) -> bool:
        """Whether to draft in this step. Must be followed by `end_step`, except at the end of a text."""
        self._started = time.perf_counter()
        self._parts, self._expected = (0, 0, 0, 0), None
        self.is_measuring = self._is_plain_due()
        self._since_plain += 1
        if self.is_measuring:
            self._is_first = False
            return False
        if self._paused:
            self._paused -= 1
            return False
        if self._has_lost_too_much():
            return False
        self._parts = (1, 0, 0, 0)
        return True

    @property
    def looks_up(self) -> bool:
        """Whether tokens may be looked up for this step; also in a pause, as they cost no forward of the head."""
        return not self.is_measuring and not self._has_lost_too_much()

    def _has_lost_too_much(self) -> bool:
        return self._balance < -self._MOST_LOST * self.costs.plain

    def _is_plain_due(self) -> bool:
        """
        Plain steps are measured anew in every text, as they take longer in longer ones; and again in it where drafts
        save so little that a machine of varying speed decides whether they do.
        """
        if self._is_first or len(self.costs.plain_steps) < self.first_plain_steps:
            return True
        return self._since_plain >= self._MEASURED_AGAIN and self._saved < 0.25 * self.costs.plain

    @property
    def seconds_per_token(self) -> float:
        """What a token takes at present, at most what it takes without drafts."""
        return min(self.costs.plain, self._seconds / self._tokens) if self._tokens else self.costs.plain

    @property
    def least_score(self) -> float:
        """Log-probability, as the draft sees it, that a node must have to pay."""
        share = min(self.costs.extra[3] / self.seconds_per_token, 0.9)
        return math.log(share) / self.exponent

    def wants_level(self, scores: torch.Tensor, level: int) -> bool:
        """
        Whether level `level` pays; level 1 is there already, and the question is whether to verify anything.

        Args:
            scores (`torch.Tensor` of shape `(batch_size, num_nodes)`): Log-probabilities of the nodes of the level
                above, or of level 1.
            level (`int`): The level, 1 being the children of the root.
        """
        rates = torch.exp(scores.float() * self.exponent)
        total = float(rates.sum()) / len(scores)  # tokens that these nodes add to a row
        if math.isnan(total):
            return True  # a broken head: the tree shows it
        _, draft, per_level, per_node = self.costs.extra
        # Levels fade at about the rate at which the last one did.
        fading = min(total if level <= 2 else total / max(self._level_total, 1e-9), 0.95)
        self._level_total = total
        if level == 1:
            return total * (1 + fading) * self.seconds_per_token > draft + per_node
        return total * fading * self.seconds_per_token > per_level + per_node

    # ------------------------------------------------------------------ what came of it

    def drafted(self, scores: torch.Tensor, levels: int) -> None:
        """Note the tree of this step: `scores` of its nodes, of shape `(batch_size, num_nodes)`, and its levels."""
        nodes = scores.shape[1] - 1
        if nodes:
            self._parts = (1, 1, levels, nodes)
            self._expected = float(torch.exp(scores[:, 1:].float() * self.exponent).sum()) / len(scores)

    def verifies(self, tree: DraftTree) -> None:
        """
        Note nodes of this step's tree that were not drafted but looked up. What is accepted of them says nothing about
        the draft's confidence.
        """
        if self._parts is not None and tree.num_nodes - 1 > self._parts[3]:
            self._expected = None
            self._parts = (*self._parts[:3], tree.num_nodes - 1)

    def end_step(self, tokens: float, progress: float | None = None) -> None:
        """
        Learn from the step, which took until now.

        Args:
            tokens (`float`): Tokens that it added to a row, on average.
            progress (`float`, *optional*):
                How far it brought the row that is furthest behind: all rows of a batch take part in every step until
                the last one has finished. `tokens` by default.
        """
        progress = tokens if progress is None else progress
        parts = self._parts
        if parts is None:
            return
        seconds = time.perf_counter() - self._started
        self._parts = None
        if self.costs.extra:
            seconds = min(seconds, 2 * self.costs.predict(parts))  # something else took the processor
        self.costs.observe(parts, seconds)
        if len(self.costs.plain_steps) >= self.first_plain_steps:  # the very first step may have compiled its graph
            self._seconds = 0.95 * self._seconds + seconds
            self._tokens = 0.95 * self._tokens + progress
        saved = progress * self.costs.plain - seconds
        if not parts[0]:
            self.num_plain_steps += 1
            if parts[3]:  # but nodes were looked up
                self._balance += saved
            else:
                self._since_plain = 0
                self._balance += self._SHARE_LOST * self.costs.plain
            return
        self.num_drafted_steps += 1
        self.num_levels += parts[2]
        self.num_nodes += parts[3]
        if self._expected is not None:
            error = (tokens - 1) - self._expected
            rate = max(0.02, 0.2 / (2 + self._num_fitted))  # the first steps of a pair say most
            self._num_fitted += 1
            self.exponent = min(max(self.exponent * math.exp(-rate * error), 0.2), 3.0)
        self._balance += saved
        self._judge(saved)

    def _judge(self, saved: float) -> None:
        """
        Pause where drafting has cost more than it saved, and clearly so: a few unlucky steps say little. Each pause is
        longer than the last; they get shorter again while drafting pays.
        """
        self._spread = self._spread or self.costs.plain  # what it will be is not known yet
        self._saved = 0.9 * self._saved + 0.1 * saved
        self._spread = 0.9 * self._spread + 0.1 * abs(saved - self._saved)
        if self._saved > 0:
            self._pause = max(self._pause // self._PAUSE_GROWTH, 3)
        elif self._saved < -0.3 * self._spread:
            self._paused = self._pause
            self._pause = min(self._PAUSE_GROWTH * self._pause, self._LONGEST_PAUSE)
            self._saved = -0.15 * self._spread  # the next try need not be as long as this one

    def report(self) -> str:
        """The choice and its reasons, in one sentence."""
        if not self.num_drafted_steps:
            return f"No drafts in {self.num_plain_steps} steps so far."
        plain = 1000 * self.costs.plain
        learn, draft, level, node = (1000 * value for value in self.costs.extra)
        rate, share = f"p^{self.exponent:.2f}", math.exp(self.least_score)
        return (
            f"{self.num_drafted_steps} of {self.num_drafted_steps + self.num_plain_steps} steps drafted, on average "
            f"{self.num_nodes / self.num_drafted_steps:.1f} nodes on {self.num_levels / self.num_drafted_steps:.1f} "
            f"levels: a plain step takes {plain:.2f} ms, a tree {learn + draft:.2f} ms and {level:.2f} ms per level, "
            f"verifying {node:.2f} ms per node; a path of probability p is accepted at a rate of {rate}, so that nodes "
            f"pay from {share:.3f} on."
        )


# By head and target, then by what else the costs depend on.
_KNOWN: WeakKeyDictionary[object, WeakKeyDictionary[object, dict[tuple, TreeSizing]]] = WeakKeyDictionary()


def known_sizing(draft: object, target: object, situation: tuple, warms_up: bool = True) -> TreeSizing:
    """
    What earlier calls have learned about a pair in the same situation, to go on with; a copy, since several calls may
    run at once.

    Args:
        draft ([`EagleDraftModel`]): The head.
        target ([`~transformers.PreTrainedModel`]): Its target.
        situation (`tuple`): What else costs and confidence depend on: device, dtype, batch size, sampling, compilation.
        warms_up (`bool`): Whether the first plain step does what later ones need not, such as compiling its graph.
    """
    known = _of_pair(draft, target).get(situation)
    sizing = TreeSizing(first_plain_steps=2 if warms_up else 1) if known is None else copy.deepcopy(known)
    # Costs and confidence hold in the next text too; whether drafting pays in it is seen anew.
    sizing._is_first, sizing._parts = True, None
    sizing._saved, sizing._balance, sizing._pause, sizing._paused = 0.0, 0.0, 3, 0
    sizing._since_plain = 0
    sizing.num_plain_steps = sizing.num_drafted_steps = sizing.num_nodes = sizing.num_levels = 0
    return sizing


def remember(draft: object, target: object, situation: tuple, sizing: TreeSizing) -> None:
    """Keep what a call has learned for the next one."""
    _of_pair(draft, target)[situation] = sizing


def _of_pair(draft: object, target: object) -> dict[tuple, TreeSizing]:
    return _KNOWN.setdefault(draft, WeakKeyDictionary()).setdefault(target, {})
