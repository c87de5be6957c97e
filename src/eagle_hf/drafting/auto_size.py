"""
Sizes the next tree from measured step times and from how well the draft's confidence has predicted acceptance.

A step that adds more tokens takes longer, by so much a level and a node ([`StepCosts`]), and a drafted token is worth
the time that a token takes at present. So a node pays if its probability is at least `node / seconds per token`,
another level if the tokens it may add are worth more than `level`, and drafting at all if recent steps were faster than
plain ones; if not, the head pauses, and tries again later. Near break-even a loss drowns in timing noise, so the total
loss per text is capped: three plain steps, plus 1 % of every step that drafts nothing.

In a batch, nodes pay by their rate averaged over rows, and a token is worth what it brings forward the row that is
furthest behind: the others wait for it in the end.

The draft's confidence says how probable a node is: probabilities of paths are close to the rates at which they are
accepted (EAGLE-2, section 3), up to an exponent, which is fitted to what is accepted. Greedy decoding accepts the
likeliest token more often than its probability says, sampling does not.

What is known has three lifetimes:

```text
PairCosts   a head with its target: step times, exponent              kept from call to call
Pauses      whether drafting pays                                     kept in batches, whose size decides it
TextLedger  what this text has won and lost, when it was measured     begins anew with every text
```
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch

from ..tree import DraftTree
from .costs import PairCosts, Parts
from .policy import Plan, with_broken_node


@dataclass
class Pauses:
    """
    Decides when the head pauses: where drafting has cost more than it saved, and clearly so; a few unlucky steps say
    little. Each pause is longer than the last; they get shorter again while drafting pays.
    """

    LONGEST = 128
    GROWTH = 4

    spread: float = 0.0  # how far single steps are from `saved`, in seconds
    saved: float = 0.0  # seconds that a drafted step saved of late
    next_length: int = 3  # steps of the next pause
    left: int = 0  # steps of this pause still to come

    def judge(self, saved: float, plain: float, is_hopeless: bool) -> None:
        """
        Learns from a drafted step.

        Args:
            saved (`float`): Seconds that it saved.
            plain (`float`): Seconds of a plain step.
            is_hopeless (`bool`): Whether no tree paid in a batch, which tells at once: what rows expect on average
                varies little.
        """
        self.spread = self.spread or plain  # what it will be is not known yet
        self.saved = 0.9 * self.saved + 0.1 * saved
        self.spread = 0.9 * self.spread + 0.1 * abs(saved - self.saved)
        if self.saved > 0:
            self.next_length = max(self.next_length // self.GROWTH, 3)
        elif self.saved < -0.3 * self.spread or is_hopeless:
            self.left = self.next_length
            self.next_length = min(self.GROWTH * self.next_length, self.LONGEST)
            self.saved = -0.15 * self.spread  # the next try need not be as long as this one


@dataclass
class TextLedger:
    """Knows what drafts have won and lost in a text, and what it has done so far."""

    MOST_LOST = 3.0  # plain steps that drafts may cost a text ...
    SHARE_LOST = 0.01  # ... and this share of those that drafted nothing

    balance: float = 0.0  # seconds that drafts saved, and what they may lose on top
    since_plain: int = 0  # steps since the last plain one
    is_first: bool = True
    num_accepted: list[int] = field(default_factory=list)  # new tokens of every row
    num_plain_steps: int = 0
    num_drafted_steps: int = 0
    num_nodes: int = 0  # of all drafted trees
    num_levels: int = 0


@dataclass
class AutoPlan(Plan):
    """
    Plans a step by what its tokens are worth.

    Args:
        pair ([`PairCosts`]): What is known.
        is_measured (`bool`): Whether the step is a plain one so that its time becomes known.
    """

    pair: PairCosts = field(default_factory=PairCosts)
    is_measured: bool = False
    is_observed: bool = True
    _level_total: float = 0.0  # tokens that the level above adds

    def num_worth(self, scores: torch.Tensor) -> int:
        """Returns how many nodes pay; see [`Plan.num_worth`]."""
        return with_broken_node(scores, int((self.pair.rates(scores) >= self.pair.least_rate).sum()))

    def num_worth_looking_up(self, rates: Sequence[float], count: int) -> int:
        """
        Returns how many looked-up tokens pay; see [`Plan.num_worth_looking_up`]. In a batch, what a few rows repeat is
        verified in all of them; a single row keeps all: that it goes on repeating itself is likelier than a rate by its
        past length says.
        """
        if self.pair.costs.batch_size == 1:
            return count
        for position in range(count):
            if sum(rate ** (position + 1) for rate in rates) < self.pair.least_rate * len(rates):
                return position
        return count

    def wants_level(self, scores: torch.Tensor, level: int) -> bool:
        """
        Returns whether a level pays; see [`Plan.wants_level`]. Of level 1, which is there already, the question is
        whether to verify anything.
        """
        pair, rates = self.pair, self.pair.rates(scores)
        total = float(rates.sum())  # tokens that these nodes add to a row
        if math.isnan(total):
            return True  # a broken head: the tree shows it
        _, draft, per_level, per_node = pair.costs.extra
        # Levels fade at about the rate at which the last one did.
        fading = min(total if level <= 2 else total / max(self._level_total, 1e-9), 0.95)
        self._level_total = total
        if level > 1:
            return total * fading * pair.seconds_saved_per_token > per_level + per_node
        if pair.costs.batch_size == 1:  # takes the chance: how sure of one token a head is says little of the next ones
            return total * (1 + fading) * pair.seconds_saved_per_token > draft + per_node
        # Nodes may be left out; levels below add what this one does, but for the fading, as long as they pay.
        gain = float((rates * pair.seconds_saved_per_token - per_node).clamp(min=0).sum())
        saved = -draft
        while gain > per_level:
            saved += gain - per_level
            gain *= fading
        return saved > 0


class AutoSize:
    """
    Plans trees that are worth their time, see the module's text.

    Args:
        pair ([`PairCosts`]): What is known about head and target.
        first_plain_steps (`int`, defaults to 2):
            Plain steps that a pair begins with. 1 will do where the first one takes no longer than others, because
            nothing is compiled or loaded in it.
        pauses ([`Pauses`], *optional*): What is known about whether drafting pays.
    """

    MEASURED_AGAIN = 16  # steps after which a plain one is due, where drafts save little

    def __init__(self, pair: PairCosts, first_plain_steps: int = 2, pauses: Pauses | None = None):
        self.pair, self.first_plain_steps = pair, first_plain_steps
        self.pauses = Pauses() if pauses is None else pauses
        self.text = TextLedger()

    def plan(self, max_depth: int) -> AutoPlan:
        """Implements [`Policy.plan`]."""
        if max_depth < 1:
            return AutoPlan(drafts=False, looks_up=False, pair=self.pair, is_observed=False)
        text, batch_size = self.text, self.pair.costs.batch_size
        is_measured = self._is_plain_due()
        text.since_plain += 1
        if is_measured:
            text.is_first = False
            return AutoPlan(drafts=False, looks_up=False, pair=self.pair, is_measured=True)
        pauses, may_lose = self.pauses.left > 0, not self._has_lost_too_much()
        if pauses:
            self.pauses.left -= 1
        drafts = may_lose and not pauses
        # A single row also looks up in a pause, as that costs no forward of the head. In a batch that pauses, a few
        # rows would come forward, and all would pay for it.
        return AutoPlan(drafts=drafts, looks_up=may_lose and (drafts or batch_size == 1), pair=self.pair)

    def _has_lost_too_much(self) -> bool:
        balance = self.text.balance
        return balance < 0 and balance < -self.text.MOST_LOST * self.pair.costs.plain  # unknown before any step

    def _is_plain_due(self) -> bool:
        """
        Returns whether to measure a plain step: anew in every text, as they take longer in longer ones; and again in it
        where drafts save so little that a machine of varying speed decides whether they do.
        """
        costs = self.pair.costs
        if self.text.is_first or len(costs.plain_steps) < self.first_plain_steps:
            return True
        return self.text.since_plain >= self.MEASURED_AGAIN and self.pauses.saved < 0.25 * costs.plain

    def observe(self, plan: Plan, drafted: DraftTree, num_nodes: int, counts: Sequence[int]) -> None:
        """Implements [`Policy.observe`]."""
        before = self.text.num_accepted or [0] * len(counts)
        after = self.text.num_accepted = [n + count for n, count in zip(before, counts, strict=True)]
        rows = [row for row, count in enumerate(counts) if count]  # none had finished before
        if rows and isinstance(plan, AutoPlan) and plan.is_observed:
            progress = min(after[row] for row in rows) - min(before[row] for row in rows)
            self.learn(plan, drafted, num_nodes, sum(counts) / len(rows), progress)

    def learn(
        self, plan: AutoPlan, drafted: DraftTree, num_nodes: int, tokens: float, progress: float | None = None
    ) -> None:
        """
        Learns from a step; see [`Policy.observe`].

        Args:
            plan, drafted, num_nodes: Its plan, what was drafted, and the nodes that were verified.
            tokens (`float`): Tokens that it added to a row, on average.
            progress (`float`, *optional*): How far it brought the row that is furthest behind: all rows of a batch take
                part in every step until the last one has finished. `tokens` by default.
        """
        seconds, pair, text, costs = time.perf_counter() - plan.started, self.pair, self.text, self.pair.costs
        progress = tokens if progress is None else progress
        has_tree = drafted.num_nodes > 1
        parts: Parts = (int(plan.drafts), int(has_tree), drafted.max_depth if has_tree else 0, num_nodes - 1)
        if costs.extra:
            seconds = min(seconds, 2 * costs.predict(parts))  # something else took the processor
        costs.observe(parts, seconds)
        if len(costs.plain_steps) >= self.first_plain_steps:  # the very first step may have compiled its graph
            pair.seconds = 0.95 * pair.seconds + seconds
            pair.tokens = 0.95 * pair.tokens + progress
        saved = progress * costs.plain - seconds
        if not plan.drafts:
            text.num_plain_steps += 1
            if parts[3]:  # but nodes were looked up
                text.balance += saved
            else:
                text.since_plain = 0
                text.balance += text.SHARE_LOST * costs.plain
            return
        text.num_drafted_steps += 1
        text.num_levels += parts[2]
        text.num_nodes += parts[3]
        if has_tree and drafted.num_nodes == num_nodes:  # what looked-up nodes bring says nothing about confidence
            pair.fit((tokens - 1) - pair.expected(drafted))
        if parts[3]:
            pair.gained = 0.95 * pair.gained + tokens - 1
            pair.progressed = 0.95 * pair.progressed + progress - 1
        text.balance += saved
        self.pauses.judge(saved, costs.plain, is_hopeless=not parts[3] and costs.batch_size > 1)

    def report(self) -> "TreeSizing":
        """Returns what was done in this text, and why."""
        text, reasons = self.text, ""
        if text.num_drafted_steps:
            pair, plain = self.pair, 1000 * self.pair.costs.plain
            learn, draft, level, node = (1000 * value for value in pair.costs.extra)
            rate, share = f"p^{pair.exponent:.2f}", pair.least_rate ** (1 / pair.exponent)
            reasons = (
                f"a plain step takes {plain:.2f} ms, a tree {learn + draft:.2f} ms and {level:.2f} ms per level, "
                f"verifying {node:.2f} ms per node; a path of probability p is accepted at a rate of {rate}, so that "
                f"nodes pay from {share:.3f} on"
            )
        return TreeSizing(text.num_plain_steps, text.num_drafted_steps, text.num_nodes, text.num_levels, reasons)


@dataclass(frozen=True)
class TreeSizing:
    """
    Reports how the trees of a text were sized.

    Args:
        num_plain_steps (`int`): Steps without a draft.
        num_drafted_steps (`int`): Steps with one.
        num_nodes (`int`): Nodes of all drafts.
        num_levels (`int`): Levels of all drafts.
        reasons (`str`): What steps take and bring.
    """

    num_plain_steps: int
    num_drafted_steps: int
    num_nodes: int
    num_levels: int
    reasons: str

    def report(self) -> str:
        """Returns the choice and its reasons in one sentence."""
        if not self.num_drafted_steps:
            return f"No drafts in {self.num_plain_steps} steps so far."
        return (
            f"{self.num_drafted_steps} of {self.num_drafted_steps + self.num_plain_steps} steps drafted, on average "
            f"{self.num_nodes / self.num_drafted_steps:.1f} nodes on {self.num_levels / self.num_drafted_steps:.1f} "
            f"levels: {self.reasons}."
        )


# By head and target, then by what else the costs depend on.
_KNOWN: WeakKeyDictionary[object, WeakKeyDictionary[object, dict[tuple, AutoSize]]] = WeakKeyDictionary()


def known_size(draft: object, target: object, situation: tuple, unknown: AutoSize) -> AutoSize:
    """
    Returns a policy for a new text that goes on with what earlier calls have learned about a pair in the same
    situation; with copies, since several calls may run at once. Costs and confidence hold in the next text too. Whether
    drafting pays in it is seen anew, except in batches, where the number of rows decides it.

    Args:
        draft ([`EagleDraftModel`]): The head.
        target ([`~transformers.PreTrainedModel`]): Its target.
        situation (`tuple`): What else costs and confidence depend on: device, dtype, batch size, sampling, compilation.
        unknown ([`AutoSize`]): What to begin with where nothing is known.
    """
    known = _of_pair(draft, target).get(situation, unknown)
    is_single = known.pair.costs.batch_size == 1
    pauses = Pauses(spread=known.pauses.spread) if is_single else replace(known.pauses)
    return AutoSize(copy.deepcopy(known.pair), known.first_plain_steps, pauses)


def remember(draft: object, target: object, situation: tuple, policy: AutoSize) -> None:
    """Keeps what a call has learned for the next one."""
    _of_pair(draft, target)[situation] = policy


def _of_pair(draft: object, target: object) -> dict[tuple, AutoSize]:
    return _KNOWN.setdefault(draft, WeakKeyDictionary()).setdefault(target, {})


def forget_sizes(model: object) -> None:
    """Drops what was learned about a head with all targets, or a target with all heads."""
    _KNOWN.pop(model, None)
    for targets in list(_KNOWN.values()):
        targets.pop(model, None)
