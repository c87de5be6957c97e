"""
How large the next tree should be: worth its time, by what steps took and what the draft's confidence was worth so far.

A step that adds more tokens takes longer, by so much a level and a node ([`StepCosts`]), and a drafted token is worth
the time that a token takes at present. So a node pays if its probability is at least `node / seconds per token`,
another level if the tokens it may add are worth more than `level`, and drafting at all if the steps of late were faster
than plain ones; if not, the head pauses, and tries again later. Where drafting about breaks even, that shows late or
never; so what a text may lose to drafts is bounded: three plain steps, and one percent of those that draft nothing.

In a batch, nodes pay by their rate averaged over rows, and a token is worth what it brings forward the row that is
furthest behind: the others wait for it in the end.

How probable a node is, the draft says by its confidence: probabilities of paths are close to the rates at which they
are accepted (EAGLE-2, section 3), up to an exponent, which is fitted to what is accepted. Greedy decoding accepts the
likeliest token more often than its probability says, sampling does not.

Nothing here changes the text: whatever is drafted, the target's own tokens are kept.
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch

from ..tree import DraftTree
from .costs import Parts, StepCosts


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

    def restart_clock(self) -> None:
        """Learns nothing."""

    def end_step(self, tokens: float, progress: float | None = None) -> None:
        """Learns nothing."""

    def drafted(self, scores: torch.Tensor, levels: int) -> None:
        """Learns nothing."""

    def verifies(self, tree: DraftTree) -> None:
        """Learns nothing."""

    def num_worth(self, scores: torch.Tensor) -> int:
        """
        How many nodes to verify, given log-probabilities of shape `(batch_size, num_nodes)`: those likelier than the
        threshold in the row with most of them.
        """
        if self.threshold <= 0:
            return scores.shape[1]
        return _shown_if_broken(scores, int((scores >= math.log(self.threshold)).sum(dim=1).max()))

    def num_worth_looking_up(self, rates: Sequence[float], count: int) -> int:
        """All `count` tokens."""
        return count

    def wants_level(self, scores: torch.Tensor, level: int) -> bool:
        """
        Whether to go on with level `level`, given the log-probabilities of the nodes above, of shape `(batch_size,
        num_nodes)`. NaN is not unlikely: the level shows that the head is broken.
        """
        return self.threshold <= 0 or not bool((scores < math.log(self.threshold)).all())


def _shown_if_broken(scores: torch.Tensor, num_worth: int) -> int:
    """A head that is broken, so that no node is possible, has to be seen: one node more than the root."""
    return 2 if num_worth == 1 and bool(scores[:, 1:].isneginf().all()) else num_worth


@dataclass
class TreeSizing:
    """
    Sizes the trees of one `generate` call after another; see the module's text.

    Args:
        costs ([`StepCosts`]): What steps took so far.
        exponent (`float`): Rates at which paths are accepted are the draft's probabilities to this power.
        first_plain_steps (`int`):
            Plain steps that a pair begins with. 1 will do where the first one takes no longer than others, because
            nothing is compiled or loaded in it.
    """

    _LONGEST_PAUSE = 128
    _PAUSE_GROWTH = 4
    _MEASURED_AGAIN = 16  # steps after which a plain one is due, where drafts save little
    _MOST_LOST = 3.0  # plain steps that drafts may cost a text in vain ...
    _SHARE_LOST = 0.01  # ... and this share of those that drafted nothing
    _PRIOR_GAIN = 2.0  # tokens of a draft after which as much is known of `progress_share` as was supposed

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
    _gained: float = 0.0  # tokens that drafts added to a row on average, older ones fading
    _progressed: float = 0.0  # and to the row that is furthest behind
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

    def restart_clock(self) -> None:
        """Let this step begin now: what it did so far, later steps of the text need not do."""
        self._started = time.perf_counter()

    @property
    def looks_up(self) -> bool:
        """
        Whether tokens may be looked up for this step; of a single row also in a pause, as they cost no forward of the
        head. In a batch that pauses, a few rows would come forward, and all would pay for it.
        """
        if self.costs.batch_size > 1 and self._parts is not None and not self._parts[0]:
            return False
        return not self.is_measuring and not self._has_lost_too_much()

    def _has_lost_too_much(self) -> bool:
        return self._balance < 0 and self._balance < -self._MOST_LOST * self.costs.plain  # unknown before any step

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
    def progress_share(self) -> float:
        """
        How much of what drafts add to a row on average brings the one forward that is furthest behind: the others wait
        for it in the end. 1 for a single row.
        """
        return min((self._progressed + self._PRIOR_GAIN) / (self._gained + self._PRIOR_GAIN), 1.0)

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
        Rates at which the likeliest, the second likeliest ... node of every row is accepted, averaged over rows.

        Args:
            scores (`torch.Tensor` of shape `(batch_size, num_nodes)`): Log-probabilities, as the draft sees them.

        Returns:
            `torch.Tensor` of shape `(num_nodes,)`; of a single row as its nodes stand
        """
        rates = torch.exp(scores.float() * self.exponent)
        return rates[0] if len(rates) == 1 else rates.sort(dim=1, descending=True).values.mean(dim=0)

    def num_worth(self, scores: torch.Tensor) -> int:
        """
        How many nodes pay, the root included, the same number in every row.

        Args:
            scores (`torch.Tensor` of shape `(batch_size, num_nodes)`): Their log-probabilities; 0 for the root.
        """
        return _shown_if_broken(scores, int((self.rates(scores) >= self.least_rate).sum()))

    def num_worth_looking_up(self, rates: Sequence[float], count: int) -> int:
        """
        How many of `count` looked-up tokens pay. In a batch, what a few rows repeat is verified in all of them; a
        single row keeps all: that it goes on repeating itself is likelier than a rate by its past length says.

        Args:
            rates (`Sequence[float]`): For every row, the rate at which each token follows the one before, as in the
                text that was looked up.
            count (`int`): Tokens that could be verified.
        """
        if self.costs.batch_size == 1:
            return count
        for position in range(count):
            if sum(rate ** (position + 1) for rate in rates) < self.least_rate * len(rates):
                return position
        return count

    def wants_level(self, scores: torch.Tensor, level: int) -> bool:
        """
        Whether level `level` pays; level 1 is there already, and the question is whether to verify anything.

        Args:
            scores (`torch.Tensor` of shape `(batch_size, num_nodes)`): Log-probabilities of the nodes of the level
                above, or of level 1.
            level (`int`): The level, 1 being the children of the root.
        """
        rates = self.rates(scores)
        total = float(rates.sum())  # tokens that these nodes add to a row
        if math.isnan(total):
            return True  # a broken head: the tree shows it
        _, draft, per_level, per_node = self.costs.extra
        # Levels fade at about the rate at which the last one did.
        fading = min(total if level <= 2 else total / max(self._level_total, 1e-9), 0.95)
        self._level_total = total
        if level > 1:
            return total * fading * self.seconds_saved_per_token > per_level + per_node
        if self.costs.batch_size == 1:  # takes the chance: how sure of one token a head is says little of the next ones
            return total * (1 + fading) * self.seconds_saved_per_token > draft + per_node
        # Nodes may be left out; levels below add what this one does, but for the fading, as long as they pay.
        gain = float((rates * self.seconds_saved_per_token - per_node).clamp(min=0).sum())
        saved = -draft
        while gain > per_level:
            saved += gain - per_level
            gain *= fading
        return saved > 0

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
        if parts[3]:
            self._gained = 0.95 * self._gained + tokens - 1
            self._progressed = 0.95 * self._progressed + progress - 1
        self._balance += saved
        self._judge(saved, drafts_nothing=not parts[3])

    def _judge(self, saved: float, drafts_nothing: bool) -> None:
        """
        Pause where drafting has cost more than it saved, and clearly so: a few unlucky steps say little. Each pause is
        longer than the last; they get shorter again while drafting pays. A batch in which no tree pays tells at once,
        as what rows expect on average varies little.
        """
        self._spread = self._spread or self.costs.plain  # what it will be is not known yet
        self._saved = 0.9 * self._saved + 0.1 * saved
        self._spread = 0.9 * self._spread + 0.1 * abs(saved - self._saved)
        if self._saved > 0:
            self._pause = max(self._pause // self._PAUSE_GROWTH, 3)
        elif self._saved < -0.3 * self._spread or (drafts_nothing and self.costs.batch_size > 1):
            self._paused = self._pause
            self._pause = min(self._PAUSE_GROWTH * self._pause, self._LONGEST_PAUSE)
            self._saved = -0.15 * self._spread  # the next try need not be as long as this one

    def report(self) -> str:
        """The choice and its reasons, in one sentence."""
        if not self.num_drafted_steps:
            return f"No drafts in {self.num_plain_steps} steps so far."
        plain = 1000 * self.costs.plain
        learn, draft, level, node = (1000 * value for value in self.costs.extra)
        rate, share = f"p^{self.exponent:.2f}", self.least_rate ** (1 / self.exponent)
        return (
            f"{self.num_drafted_steps} of {self.num_drafted_steps + self.num_plain_steps} steps drafted, on average "
            f"{self.num_nodes / self.num_drafted_steps:.1f} nodes on {self.num_levels / self.num_drafted_steps:.1f} "
            f"levels: a plain step takes {plain:.2f} ms, a tree {learn + draft:.2f} ms and {level:.2f} ms per level, "
            f"verifying {node:.2f} ms per node; a path of probability p is accepted at a rate of {rate}, so that nodes "
            f"pay from {share:.3f} on."
        )


# By head and target, then by what else the costs depend on.
_KNOWN: WeakKeyDictionary[object, WeakKeyDictionary[object, dict[tuple, TreeSizing]]] = WeakKeyDictionary()


def known_sizing(draft: object, target: object, situation: tuple, unknown: TreeSizing) -> TreeSizing:
    """
    What earlier calls have learned about a pair in the same situation, to go on with; a copy, since several calls may
    run at once.

    Args:
        draft ([`EagleDraftModel`]): The head.
        target ([`~transformers.PreTrainedModel`]): Its target.
        situation (`tuple`): What else costs and confidence depend on: device, dtype, batch size, sampling, compilation.
        unknown ([`TreeSizing`]): What to begin with where nothing is known.
    """
    sizing = copy.deepcopy(_of_pair(draft, target).get(situation, unknown))
    # Costs and confidence hold in the next text too; whether drafting pays in it is seen anew, except in batches, where
    # the number of rows decides it.
    sizing._is_first, sizing._parts = True, None
    sizing._balance, sizing._since_plain = 0.0, 0
    if sizing.costs.batch_size == 1:
        sizing._saved, sizing._pause, sizing._paused = 0.0, 3, 0
    sizing.num_plain_steps = sizing.num_drafted_steps = sizing.num_nodes = sizing.num_levels = 0
    return sizing


def remember(draft: object, target: object, situation: tuple, sizing: TreeSizing) -> None:
    """Keep what a call has learned for the next one."""
    _of_pair(draft, target)[situation] = sizing


def _of_pair(draft: object, target: object) -> dict[tuple, TreeSizing]:
    return _KNOWN.setdefault(draft, WeakKeyDictionary()).setdefault(target, {})


def forget_sizings(model: object) -> None:
    """Drops what was learned about a head with all targets, or a target with all heads."""
    _KNOWN.pop(model, None)
    for targets in list(_KNOWN.values()):
        targets.pop(model, None)
