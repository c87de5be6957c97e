"""Trees sized by what steps took: costs are found out, nodes and levels pay or do not, hopeless drafts pause."""

import math
import random

import pytest
import torch

from eagle_hf import DraftTree
from eagle_hf.drafting import auto_size, policy
from eagle_hf.drafting.auto_size import AutoPlan, AutoSize, Pauses, TextLedger, known_size, remember
from eagle_hf.drafting.costs import PairCosts, StepCosts
from eagle_hf.drafting.policy import Plan


PLAIN, LEARN, DRAFT, LEVEL, NODE = 0.010, 0.001, 0.002, 0.0008, 0.0002  # seconds


NOTHING = DraftTree.root_only(torch.tensor([3]))


def auto(batch_size=1, **pair):
    return AutoSize(PairCosts(StepCosts(batch_size), **pair))


def plan_with(costs, batch_size=1, **pair):
    """A plan whose steps take known times."""
    known = PairCosts(StepCosts(batch_size), **pair)
    known.costs.plain_steps.extend([PLAIN] * 3)
    known.costs.extra = costs
    return AutoPlan(pair=known)


def drafted_tree(scores, levels):
    """A tree whose nodes have these log-probabilities; nothing else of it counts."""
    zeros = torch.zeros_like(scores, dtype=torch.long)
    return DraftTree(zeros, zeros - 1, zeros, scores, max_depth=levels)


def first_drafted_plan(policy):
    """Lets plain steps pass until one drafts."""
    while not (plan := policy.plan(9)).drafts:
        policy.learn(plan, NOTHING, 1, 1.0)
    return plan


class Machine:
    """A clock, and a target with a draft: steps take what they take, drafted nodes are accepted at given rates."""

    def __init__(self, monkeypatch, accept, noise=0.0, seed=0):
        self.now, self.accept, self.noise, self.random = 0.0, accept, noise, random.Random(seed)
        for module in (auto_size, policy):
            monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

    def run(self, sizing, steps, confidence, width=3, depth=5):
        """The time that `steps` steps took, their tokens, and in how many the head ran."""
        start, tokens, learned = self.now, 0, 0
        for _ in range(steps):
            seconds, added, drafted = PLAIN, 1, NOTHING
            plan = sizing.plan(depth)
            if plan.drafts:
                learned += 1
                seconds += LEARN
                levels = 0
                scores = torch.full((1, width), math.log(confidence / width))
                all_scores = [torch.zeros(1, 1)]
                while levels < depth and plan.wants_level(scores, levels + 1):
                    levels += 1
                    all_scores.append(scores)
                    scores = scores + math.log(confidence)
                if levels:
                    scores = torch.cat(all_scores, dim=1)
                    drafted = drafted_tree(scores[:, : plan.num_worth(scores)], levels)
                    reached = -(-(drafted.num_nodes - 1) // width)
                    while added <= reached and self.random.random() < self.accept:
                        added += 1
                if nodes := drafted.num_nodes - 1:
                    seconds += DRAFT + LEVEL * levels + NODE * nodes
            self.now += seconds * (1 + self.noise * self.random.random())
            tokens += added
            sizing.learn(plan, drafted, drafted.num_nodes, added)
        return self.now - start, tokens, learned


def test_steps_that_compile_are_soon_forgotten(monkeypatch):
    """The first plain step and the first drafted one compile their graphs, which takes thousands of times as long."""
    machine, sizing, durations = Machine(monkeypatch, accept=0.8), auto(), {"plain": 40.0, "drafted": 30.0}
    learn = sizing.learn

    def learn_late(plan, *step):
        machine.now += durations.pop("drafted" if plan.drafts else "plain", 0)
        learn(plan, *step)

    monkeypatch.setattr(sizing, "learn", learn_late)
    machine.run(sizing, 20, confidence=0.8)
    assert not durations
    seconds, tokens, learned = machine.run(sizing, 100, confidence=0.8)
    assert learned == 100
    assert tokens / seconds > 1.5 / PLAIN
    assert sizing.pair.costs.extra == pytest.approx([LEARN, DRAFT, LEVEL, NODE], rel=0.5)
    assert sizing.pair.seconds_per_token == pytest.approx(seconds / tokens, rel=0.3)


def test_a_good_draft_is_used_in_every_step_and_pays(monkeypatch):
    seconds, tokens, learned = Machine(monkeypatch, accept=0.8, noise=0.2).run(auto(), 200, confidence=0.8)
    assert learned >= 195
    assert tokens / seconds > 1.5 / PLAIN


def test_a_hopeless_draft_that_is_sure_of_itself_costs_little(monkeypatch):
    seconds, tokens, learned = Machine(monkeypatch, accept=0.0, noise=0.2).run(auto(), 400, confidence=0.9)
    assert tokens == 400
    assert learned < 40
    assert seconds < 1.05 * 400 * PLAIN * 1.1  # the noise adds 10 % on average


def test_a_draft_that_knows_that_it_does_not_know_costs_little(monkeypatch):
    seconds, _, _ = Machine(monkeypatch, accept=0.05).run(auto(), 400, confidence=0.05)
    assert seconds < 1.05 * 400 * PLAIN


def test_drafting_starts_again_where_it_pays_again(monkeypatch):
    machine, sizing = Machine(monkeypatch, accept=0.0), auto()
    machine.run(sizing, 200, confidence=0.9)
    machine.accept = 0.9
    machine.run(sizing, 150, confidence=0.9)
    *_, learned = machine.run(sizing, 100, confidence=0.9)
    assert learned >= 90


@pytest.mark.parametrize("accept", [0.5, 0.9])
def test_the_exponent_makes_expected_tokens_those_that_are_accepted(monkeypatch, accept):
    sizing, machine = auto(), Machine(monkeypatch, accept)
    machine.run(sizing, 300, confidence=0.7)
    errors, expected = [], []
    fit, foresee = PairCosts.fit, PairCosts.expected
    monkeypatch.setattr(PairCosts, "fit", lambda self, error: (errors.append(error), fit(self, error)))
    monkeypatch.setattr(PairCosts, "expected", lambda *args: expected.append(foresee(*args)) or expected[-1])
    machine.run(sizing, 300, confidence=0.7)
    assert abs(sum(errors)) < 0.15 * sum(expected)


@pytest.mark.parametrize(("looked_up", "accepted"), [(False, 0), (False, 6), (True, 0), (True, 6)])
def test_confidence_is_learned_from_what_was_drafted_alone(looked_up, accepted):
    """Looked-up tokens are accepted by texts that repeat themselves, whatever the head thinks."""
    sizing, tree = auto(), drafted_tree(torch.tensor([[0.0, -1.0, -2.0]]), 2)
    plan = first_drafted_plan(sizing)
    sizing.learn(plan, tree, tree.num_nodes + looked_up, 1.0 + accepted)
    assert (sizing.pair.exponent == 1.0) is looked_up
    if not looked_up:
        assert (sizing.pair.exponent < 1.0) is (accepted > 0)


def test_the_first_steps_of_a_pair_teach_most():
    """All calls count: the second text goes on where the first one ended."""
    changes = []
    for num_fitted in (0, 3, 1000):
        sizing, tree = auto(num_fitted=num_fitted), drafted_tree(torch.tensor([[0.0, -1.0]]), 1)
        sizing.learn(first_drafted_plan(sizing), tree, 2, 1.0 + math.exp(-1) + 1)  # one token more than expected
        changes.append(-math.log(sizing.pair.exponent))
    assert changes == pytest.approx([0.1, 0.04, 0.02])


def test_a_node_pays_if_its_tokens_are_worth_its_time():
    plan = plan_with([LEARN, DRAFT, LEVEL, NODE], exponent=0.5)
    least = 2 * math.log(NODE / PLAIN)  # the rate is the square root of the probability
    assert plan.num_worth(torch.tensor([[0.0, least + 0.01, least - 0.01, 2 * least]])) == 2
    deep = torch.log(torch.tensor([[0.5, 0.2, 0.1]]))
    assert plan.wants_level(deep, 2)
    assert not plan.wants_level(deep - 8, 3)


def test_a_broken_head_is_shown():
    pair = PairCosts()
    pair.costs.observe((0, 0, 0, 0), PLAIN)
    assert AutoPlan(pair=pair).wants_level(torch.full((2, 3), math.nan), 1)
    assert Plan(0.1).wants_level(torch.full((2, 3), math.nan), 1)


def test_a_broken_tree_keeps_a_node_that_shows_it():
    """Where a graph has made NaN impossible already; improbable nodes are left out all the same."""
    pair = PairCosts()
    pair.costs.observe((0, 0, 0, 0), PLAIN)
    for plan in (AutoPlan(pair=pair), Plan(0.1)):
        assert plan.num_worth(torch.tensor([[0.0, -math.inf, -math.inf]])) == 2
        assert plan.num_worth(torch.tensor([[0.0, -20.0, -20.0]])) == 1
    assert Plan().num_worth(torch.tensor([[0.0, -math.inf, -math.inf]])) == 3


def test_the_report_names_its_reasons(monkeypatch):
    sizing = auto()
    assert "No drafts" in sizing.report().report()
    Machine(monkeypatch, accept=0.7).run(sizing, 100, confidence=0.7)
    report = sizing.report().report()
    for reason in (" of 100 steps drafted", "ms per level", "nodes pay"):
        assert reason in report


def test_a_call_goes_on_with_what_earlier_ones_learned_and_shares_nothing(monkeypatch):
    class Model:
        pass

    head, target, here = Model(), Model(), ("cpu", 1)
    first = known_size(head, target, here, auto())
    Machine(monkeypatch, accept=0.7).run(first, 50, confidence=0.7)
    remember(head, target, here, first)
    second = known_size(head, target, here, auto())
    assert second.pair.exponent == first.pair.exponent
    assert second.report().num_drafted_steps == 0
    assert not second.plan(9).drafts  # one plain step, to measure it in this text
    assert second.plan(9).drafts
    second.pair.costs.plain_steps.append(99.0)
    assert 99.0 not in first.pair.costs.plain_steps
    for elsewhere in ((head, target, ("cpu", 2)), (head, Model(), here), (Model(), target, here)):
        assert known_size(*elsewhere, auto()).pair.exponent == 1.0


def test_looked_up_nodes_make_a_step_no_plain_one():
    """Its time must not count as that of a plain step; while plain steps are measured, nothing is looked up."""
    sizing = auto()
    while not (plan := sizing.plan(9)).drafts:
        assert plan.is_measured
        assert not plan.looks_up
        sizing.learn(plan, NOTHING, 1, 1.0)
    sizing.learn(plan, NOTHING, 1, 1.0)
    measured = list(sizing.pair.costs.plain_steps)
    sizing.pauses.left = 1
    plan = sizing.plan(9)
    assert not plan.drafts
    assert not plan.is_measured
    since = sizing.text.since_plain
    assert plan.looks_up
    sizing.learn(plan, NOTHING, 4, 3.0)
    assert list(sizing.pair.costs.plain_steps) == measured
    assert sizing.text.since_plain == since > 0
    sizing.pauses.left = 1
    sizing.learn(sizing.plan(9), NOTHING, 1, 1.0)
    assert len(sizing.pair.costs.plain_steps) == len(measured) + 1


@pytest.mark.parametrize("seed", range(5))
def test_a_text_loses_little_where_drafts_about_break_even(monkeypatch, seed):
    """No single step shows it: a drafted one takes 1.5 plain ones and adds 1.3 tokens on average."""
    slow = {"LEARN": 0.002, "DRAFT": 0.002, "LEVEL": 0.0003, "NODE": 0.0001}
    for name, value in slow.items():
        monkeypatch.setattr(f"{__name__}.{name}", value)
    bounds = []
    for most_lost in (TextLedger.MOST_LOST, math.inf):
        monkeypatch.setattr(TextLedger, "MOST_LOST", most_lost)
        machine, sizing = Machine(monkeypatch, accept=0.25, seed=seed), auto(exponent=0.2)
        monkeypatch.setattr(Pauses, "judge", lambda *_, **__: None)  # that pauses are not what bounds it
        seconds, tokens, learned = machine.run(sizing, 400, confidence=0.9)
        assert learned > 5
        bounds.append(seconds - tokens * PLAIN)
    # Three steps, a hundredth of the others, and the one step that went beyond.
    assert bounds[0] < (3 + 0.01 * 400 + 1) * PLAIN
    assert bounds[1] > 2 * bounds[0]


def test_every_text_begins_with_the_same_to_lose(monkeypatch):
    class Model:
        pass

    head, target = Model(), Model()
    monkeypatch.setattr(TextLedger, "SHARE_LOST", 0.0)
    sizing = known_size(head, target, (), auto())
    sizing.text.balance = -99.0
    sizing.pair.costs.plain_steps.extend([PLAIN] * 3)
    sizing.text.is_first = False
    assert not sizing.plan(9).drafts
    remember(head, target, (), sizing)
    following = known_size(head, target, (), auto())
    plan = following.plan(9)
    assert not plan.drafts
    assert plan.is_measured
    following.learn(plan, NOTHING, 1, 1.0)
    assert following.plan(9).drafts


@pytest.mark.parametrize(("saved", "again"), [(0.1 * PLAIN, True), (0.5 * PLAIN, False)])
def test_plain_steps_are_measured_again_where_drafts_save_little(monkeypatch, saved, again):
    """The machine may have been slow when they were: drafts would seem to pay to the end of the text."""
    machine, sizing = Machine(monkeypatch, accept=0.9), auto()
    machine.run(sizing, 5, confidence=0.9)
    monkeypatch.setattr(Pauses, "judge", lambda *_, **__: None)
    sizing.pauses.saved, measured = saved, 0
    for _ in range(100):
        measured += sizing._is_plain_due()
        machine.run(sizing, 1, confidence=0.9)
    assert measured == (6 if again else 0)  # every seventeenth step


def test_one_failure_is_no_reason_to_pause(monkeypatch):
    """The first drafted step of a process, say; how far steps vary is not known then."""
    machine, sizing = Machine(monkeypatch, accept=0.0), auto()
    machine.run(sizing, sizing.first_plain_steps + 1, confidence=0.9)
    assert sizing.text.num_drafted_steps == 1
    assert sizing.plan(9).drafts


@pytest.mark.parametrize(("cost", "ends"), [(0.9 * PLAIN, True), (0.05 * PLAIN, False)])
def test_looking_up_ends_where_it_has_lost_too_much(monkeypatch, cost, ends):
    """In large batches, say, where a few rows repeat themselves and every row is verified with as many nodes."""
    machine, sizing = Machine(monkeypatch, accept=0.0), auto()
    sizing.pauses.left = 10**6
    tokens, num_looked_up = 0.0, 0
    for _ in range(200):
        plan = sizing.plan(9)
        num_looked_up += plan.looks_up
        machine.now += PLAIN + (cost if plan.looks_up else 0)
        tokens += (added := 1.1 if plan.looks_up else 1.0)
        sizing.learn(plan, NOTHING, 4 if plan.looks_up else 1, added)
    lost = machine.now - tokens * PLAIN
    assert (lost < (3 + 0.01 * 200 + 0.8) * PLAIN) or not ends
    assert (num_looked_up < 10) is ends
    assert num_looked_up > 1


def run_batch(monkeypatch, sizing, share, steps=100):
    """Drafts gain a row some tokens on average, and the row that is furthest behind `share` of them."""
    machine, start, progress = Machine(monkeypatch, accept=0.9), 0.0, []
    learn = sizing.learn

    def learn_share(plan, drafted, num_nodes, tokens):
        progress.append(1 + share * (tokens - 1))
        learn(plan, drafted, num_nodes, tokens, progress[-1])

    monkeypatch.setattr(sizing, "learn", learn_share)
    machine.run(sizing, steps, confidence=0.9)
    return (machine.now - start) / sum(progress)


def test_a_batch_whose_last_row_hardly_gains_drafts_little(monkeypatch):
    """Rows gain some tokens a step on average, but the text is finished when the slowest one is."""
    drafts, hardly = auto(4), auto(4)
    assert run_batch(monkeypatch, drafts, share=1.0) < 0.6 * PLAIN
    assert drafts.pair.progress_share == 1.0
    assert run_batch(monkeypatch, hardly, share=0.05) < 1.06 * PLAIN
    assert hardly.pair.progress_share < 0.3
    assert hardly.text.num_nodes < 0.1 * drafts.text.num_nodes


def test_a_batch_comes_forward_as_far_as_its_last_row(monkeypatch):
    """Two tokens a step on average are worth little if the same row gets one every time."""
    sizing, steps = auto(3), []
    monkeypatch.setattr(sizing, "learn", lambda plan, drafted, num_nodes, *step: steps.append(step))
    for counts in ([1, 2, 3], [4, 1, 1], [2, 1, 0], [0, 3, 0]):  # the third row finishes, and then the first
        sizing.observe(sizing.plan(9), NOTHING, 1, counts)
    assert steps == [(2.0, 1), (2.0, 2), (1.5, 1), (3.0, 3)]


def test_nodes_of_a_batch_pay_on_average():
    """One sure row does not make the others verify what they do not expect."""
    plan = plan_with([LEARN, DRAFT, LEVEL, 0.3 * PLAIN], batch_size=2)
    sure, unsure = [0.0, -0.01, -0.02, -0.03], [0.0, -1.0, -4.0, -5.0]
    assert plan.num_worth(torch.tensor([sure])) == 4
    assert plan.num_worth(torch.tensor([unsure])) == 2
    assert plan.num_worth(torch.tensor([sure, unsure])) == 4
    assert plan.num_worth(torch.tensor([sure, unsure, unsure, unsure])) == 2


@pytest.mark.parametrize(("batch_size", "drafts"), [(1, True), (4, False)])
def test_a_single_row_takes_a_chance_that_a_batch_does_not_take(batch_size, drafts):
    """One step's doubts say little of the next one, where looked-up tokens may come on top; those of many rows stay."""
    plan = plan_with([LEARN, 0.3 * PLAIN, 0.2 * PLAIN, 0.1 * PLAIN], batch_size)
    assert plan.wants_level(torch.tensor([[0.35, 0.02]]).log(), 1) is drafts
    assert plan.wants_level(torch.tensor([[0.95, 0.02]]).log(), 1)
    assert not plan.wants_level(torch.tensor([[0.1, 0.02]]).log(), 1)


def test_looked_up_tokens_of_a_batch_pay_or_are_left_out():
    plan = plan_with([LEARN, DRAFT, LEVEL, 0.3 * PLAIN], batch_size=4)
    assert plan.num_worth_looking_up([0.8] * 4, 8) == 5  # 0.8 ** 5 is the last above 0.3
    assert plan.num_worth_looking_up([0.8, 0.8, 0.0, 0.0], 8) == 2
    assert plan.num_worth_looking_up([0.8, 0.0, 0.0, 0.0], 8) == 0
    assert Plan().num_worth_looking_up([0.8, 0.0, 0.0, 0.0], 8) == 8
    plan.pair.costs.batch_size = 1
    assert plan.num_worth_looking_up([0.8], 8) == 8


@pytest.mark.parametrize(("batch_size", "pause"), [(1, 0), (16, 3)])
def test_a_batch_in_which_no_tree_pays_pauses_at_once(monkeypatch, batch_size, pause):
    """A single row may be unsure of one token and sure of the next; many rows are unsure together."""
    machine, sizing = Machine(monkeypatch, accept=0.0), auto(batch_size)
    machine.run(sizing, sizing.first_plain_steps + 1, confidence=1e-3)
    assert sizing.text.num_drafted_steps == 1
    assert sizing.text.num_nodes == 0
    assert sizing.pauses.left == pause
    assert sizing.plan(9).looks_up is (batch_size == 1)


def test_a_head_is_not_tried_again_in_every_batch_of_a_size_that_does_not_pay(monkeypatch):
    """Whether it does depends on the number of rows more than on the text, unlike for a single row."""
    head, target = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for rows, begins_anew in ((1, True), (16, False)):
        machine, sizing = Machine(monkeypatch, accept=0.0), known_size(head, target, (rows,), auto(rows))
        for _ in range(200):
            machine.run(sizing, 0 if sizing.pauses.left else 1, confidence=0.9)
        assert sizing.pauses.left
        remember(head, target, (rows,), sizing)
        following = known_size(head, target, (rows,), auto(rows))
        machine.run(following, 1, confidence=0.9)  # a plain one
        assert following.plan(9).drafts is begins_anew


def test_what_is_done_once_for_a_text_is_no_cost_of_a_step(monkeypatch):
    """The prompt is read in the first step that drafts."""
    machine, sizing = Machine(monkeypatch, accept=0.9), auto()
    machine.run(sizing, sizing.first_plain_steps, confidence=0.9)
    plan = sizing.plan(9)
    assert plan.drafts
    machine.now += 100 * PLAIN
    plan.restart_clock()
    machine.now += PLAIN + LEARN
    sizing.learn(plan, NOTHING, 1, 1.0)
    assert sizing.text.balance > -0.2 * PLAIN
    assert sizing.pair.costs.extra[0] < 0.2 * PLAIN


def test_a_step_without_room_for_a_draft_teaches_nothing():
    sizing = auto()
    plan = sizing.plan(0)
    assert not plan.drafts
    assert not plan.looks_up
    sizing.observe(plan, NOTHING, 1, [1])
    assert not sizing.pair.costs.plain_steps
    assert sizing.text.is_first
