"""Trees sized by what steps took: costs are found out, nodes and levels pay or do not, hopeless drafts pause."""

import math
import random

import pytest
import torch

from eagle_hf import DraftTree
from eagle_hf.drafting import auto_size as tree_sizing
from eagle_hf.drafting.auto_size import FixedSizing, TreeSizing, known_sizing, remember
from eagle_hf.drafting.costs import StepCosts


PLAIN, LEARN, DRAFT, LEVEL, NODE = 0.010, 0.001, 0.002, 0.0008, 0.0002  # seconds


class Machine:
    """A clock, and a target with a draft: steps take what they take, drafted nodes are accepted at given rates."""

    def __init__(self, monkeypatch, accept, noise=0.0, seed=0):
        self.now, self.accept, self.noise, self.random = 0.0, accept, noise, random.Random(seed)
        monkeypatch.setattr(tree_sizing.time, "perf_counter", lambda: self.now)

    def run(self, sizing, steps, confidence, width=3, depth=5):
        """The time that `steps` steps took, their tokens, and in how many the head ran."""
        start, tokens, learned = self.now, 0, 0
        for _ in range(steps):
            seconds, added = PLAIN, 1
            if sizing.begin_step():
                learned += 1
                seconds += LEARN
                levels, nodes = 0, 0
                scores = torch.full((1, width), math.log(confidence / width))
                all_scores = [torch.zeros(1, 1)]
                while levels < depth and sizing.wants_level(scores, levels + 1):
                    levels += 1
                    all_scores.append(scores)
                    scores = scores + math.log(confidence)
                if levels:
                    tree = torch.cat(all_scores, dim=1)
                    tree = tree[:, : sizing.num_worth(tree)]
                    nodes = tree.shape[1] - 1
                    sizing.drafted(tree, levels)
                    reached = -(-nodes // width)
                    while added <= reached and self.random.random() < self.accept:
                        added += 1
                if nodes:
                    seconds += DRAFT + LEVEL * levels + NODE * nodes
            self.now += seconds * (1 + self.noise * self.random.random())
            tokens += added
            sizing.end_step(added)
        return self.now - start, tokens, learned


def test_steps_that_compile_are_soon_forgotten(monkeypatch):
    """The first plain step and the first drafted one compile their graphs, which takes thousands of times as long."""
    machine, sizing, durations = Machine(monkeypatch, accept=0.8), TreeSizing(), {"plain": 40.0, "drafted": 30.0}
    end_step = sizing.end_step

    def end_late(tokens):
        machine.now += durations.pop("drafted" if sizing._parts and any(sizing._parts) else "plain", 0)
        end_step(tokens)

    monkeypatch.setattr(sizing, "end_step", end_late)
    machine.run(sizing, 20, confidence=0.8)
    assert not durations
    seconds, tokens, learned = machine.run(sizing, 100, confidence=0.8)
    assert learned == 100
    assert tokens / seconds > 1.5 / PLAIN
    assert sizing.costs.extra == pytest.approx([LEARN, DRAFT, LEVEL, NODE], rel=0.5)
    assert sizing.seconds_per_token == pytest.approx(seconds / tokens, rel=0.3)


def test_a_good_draft_is_used_in_every_step_and_pays(monkeypatch):
    seconds, tokens, learned = Machine(monkeypatch, accept=0.8, noise=0.2).run(TreeSizing(), 200, confidence=0.8)
    assert learned >= 195
    assert tokens / seconds > 1.5 / PLAIN


def test_a_hopeless_draft_that_is_sure_of_itself_costs_little(monkeypatch):
    seconds, tokens, learned = Machine(monkeypatch, accept=0.0, noise=0.2).run(TreeSizing(), 400, confidence=0.9)
    assert tokens == 400
    assert learned < 40
    assert seconds < 1.05 * 400 * PLAIN * 1.1  # the noise adds 10 % on average


def test_a_draft_that_knows_that_it_does_not_know_costs_little(monkeypatch):
    seconds, _, _ = Machine(monkeypatch, accept=0.05).run(TreeSizing(), 400, confidence=0.05)
    assert seconds < 1.05 * 400 * PLAIN


def test_drafting_starts_again_where_it_pays_again(monkeypatch):
    machine, sizing = Machine(monkeypatch, accept=0.0), TreeSizing()
    machine.run(sizing, 200, confidence=0.9)
    machine.accept = 0.9
    machine.run(sizing, 150, confidence=0.9)
    *_, learned = machine.run(sizing, 100, confidence=0.9)
    assert learned >= 90


@pytest.mark.parametrize("accept", [0.5, 0.9])
def test_the_exponent_makes_expected_tokens_those_that_are_accepted(monkeypatch, accept):
    sizing, machine = TreeSizing(), Machine(monkeypatch, accept)
    machine.run(sizing, 300, confidence=0.7)
    expected = tokens = 0.0
    for _ in range(300):
        before = sizing.num_drafted_steps
        _, new, _ = machine.run(sizing, 1, confidence=0.7)
        if sizing.num_drafted_steps > before:
            expected, tokens = expected + sizing._expected, tokens + new - 1
    assert expected == pytest.approx(tokens, rel=0.15)


@pytest.mark.parametrize(("looked_up", "accepted"), [(False, 0), (False, 6), (True, 0), (True, 6)])
def test_confidence_is_learned_from_what_was_drafted_alone(looked_up, accepted):
    """Looked-up tokens are accepted by texts that repeat themselves, whatever the head thinks."""
    sizing, tree = TreeSizing(), DraftTree.from_paths(3, [[5, 6, 7]])
    while not sizing.begin_step():
        sizing.end_step(1.0)
    sizing.drafted(torch.tensor([[0.0, -1.0, -2.0]]), 2)
    if looked_up:
        sizing.verifies(tree)
    sizing.end_step(1.0 + accepted)
    assert (sizing.exponent == 1.0) is looked_up
    if not looked_up:
        assert (sizing.exponent < 1.0) is (accepted > 0)


def test_the_first_steps_of_a_pair_teach_most():
    """All calls count: the second text goes on where the first one ended."""
    changes = []
    for num_fitted in (0, 3, 1000):
        sizing = TreeSizing(_num_fitted=num_fitted)
        while not sizing.begin_step():
            sizing.end_step(1.0)
        sizing.drafted(torch.tensor([[0.0, -1.0]]), 1)
        sizing.end_step(1.0 + math.exp(-1) + 1)  # one token more than expected
        changes.append(-math.log(sizing.exponent))
    assert changes == pytest.approx([0.1, 0.04, 0.02])


def test_a_node_pays_if_its_tokens_are_worth_its_time():
    sizing = TreeSizing(exponent=0.5)
    sizing.costs.plain_steps.extend([PLAIN] * 3)
    sizing.costs.extra = [LEARN, DRAFT, LEVEL, NODE]
    least = 2 * math.log(NODE / PLAIN)  # the rate is the square root of the probability
    assert sizing.num_worth(torch.tensor([[0.0, least + 0.01, least - 0.01, 2 * least]])) == 2
    deep = torch.log(torch.tensor([[0.5, 0.2, 0.1]]))
    assert sizing.wants_level(deep, 2)
    assert not sizing.wants_level(deep - 8, 3)


def test_a_broken_head_is_shown():
    sizing = TreeSizing()
    sizing.costs.observe((0, 0, 0, 0), PLAIN)
    assert sizing.wants_level(torch.full((2, 3), math.nan), 1)
    assert FixedSizing(0.1).wants_level(torch.full((2, 3), math.nan), 1)


def test_a_broken_tree_keeps_a_node_that_shows_it():
    """Where a graph has made NaN impossible already; improbable nodes are left out all the same."""
    auto = TreeSizing()
    auto.costs.observe((0, 0, 0, 0), PLAIN)
    for sizing in (auto, FixedSizing(0.1)):
        assert sizing.num_worth(torch.tensor([[0.0, -math.inf, -math.inf]])) == 2
        assert sizing.num_worth(torch.tensor([[0.0, -20.0, -20.0]])) == 1
    assert FixedSizing().num_worth(torch.tensor([[0.0, -math.inf, -math.inf]])) == 3


def test_the_report_names_its_reasons(monkeypatch):
    sizing = TreeSizing()
    assert "No drafts" in sizing.report()
    Machine(monkeypatch, accept=0.7).run(sizing, 100, confidence=0.7)
    report = sizing.report()
    for reason in (" of 100 steps drafted", "ms per level", "nodes pay"):
        assert reason in report


def test_a_call_goes_on_with_what_earlier_ones_learned_and_shares_nothing(monkeypatch):
    class Model:
        pass

    head, target, here = Model(), Model(), ("cpu", 1)
    first = known_sizing(head, target, here, TreeSizing())
    Machine(monkeypatch, accept=0.7).run(first, 50, confidence=0.7)
    remember(head, target, here, first)
    second = known_sizing(head, target, here, TreeSizing())
    assert second.exponent == first.exponent
    assert second.num_drafted_steps == 0
    assert not second.begin_step()  # one plain step, to measure it in this text
    assert second.begin_step()
    second.costs.plain_steps.append(99.0)
    assert 99.0 not in first.costs.plain_steps
    for elsewhere in ((head, target, ("cpu", 2)), (head, Model(), here), (Model(), target, here)):
        assert known_sizing(*elsewhere, TreeSizing()).exponent == 1.0


def test_looked_up_nodes_make_a_step_no_plain_one():
    """Its time must not count as that of a plain step; while plain steps are measured, nothing is looked up."""
    sizing, tree = TreeSizing(), DraftTree.from_paths(3, [[5, 6, 7]])
    while not sizing.begin_step():
        assert sizing.is_measuring
        assert not sizing.looks_up
        sizing.end_step(1.0)
    sizing.end_step(1.0)
    measured = list(sizing.costs.plain_steps)
    sizing._paused = 1
    assert not sizing.begin_step()
    assert not sizing.is_measuring
    since = sizing._since_plain
    assert sizing.looks_up
    sizing.verifies(tree)
    sizing.end_step(3.0)
    assert list(sizing.costs.plain_steps) == measured
    assert sizing._since_plain == since > 0
    sizing._paused = 1
    sizing.begin_step()
    sizing.verifies(DraftTree.root_only(torch.tensor([3])))
    sizing.end_step(1.0)
    assert len(sizing.costs.plain_steps) == len(measured) + 1


@pytest.mark.parametrize("seed", range(5))
def test_a_text_loses_little_where_drafts_about_break_even(monkeypatch, seed):
    """No single step shows it: a drafted one takes 1.5 plain ones and adds 1.3 tokens on average."""
    slow = {"LEARN": 0.002, "DRAFT": 0.002, "LEVEL": 0.0003, "NODE": 0.0001}
    for name, value in slow.items():
        monkeypatch.setattr(f"{__name__}.{name}", value)
    bounds = []
    for most_lost in (TreeSizing._MOST_LOST, math.inf):
        monkeypatch.setattr(TreeSizing, "_MOST_LOST", most_lost)
        machine, sizing = Machine(monkeypatch, accept=0.25, seed=seed), TreeSizing(exponent=0.2)
        monkeypatch.setattr(sizing, "_judge", lambda *_, **__: None)  # that pauses are not what bounds it
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
    monkeypatch.setattr(TreeSizing, "_SHARE_LOST", 0.0)
    sizing = known_sizing(head, target, (), TreeSizing())
    sizing._balance = -99.0
    sizing.costs.plain_steps.extend([PLAIN] * 3)
    sizing._is_first = False
    assert not sizing.begin_step()
    remember(head, target, (), sizing)
    following = known_sizing(head, target, (), TreeSizing())
    assert not following.begin_step()
    assert following.is_measuring
    following.end_step(1.0)
    assert following.begin_step()


@pytest.mark.parametrize(("saved", "again"), [(0.1 * PLAIN, True), (0.5 * PLAIN, False)])
def test_plain_steps_are_measured_again_where_drafts_save_little(monkeypatch, saved, again):
    """The machine may have been slow when they were: drafts would seem to pay to the end of the text."""
    machine, sizing = Machine(monkeypatch, accept=0.9), TreeSizing()
    machine.run(sizing, 5, confidence=0.9)
    monkeypatch.setattr(sizing, "_judge", lambda *_, **__: None)
    sizing._saved, measured = saved, 0
    for _ in range(100):
        measured += sizing._is_plain_due()
        machine.run(sizing, 1, confidence=0.9)
    assert measured == (6 if again else 0)  # every seventeenth step


def test_one_failure_is_no_reason_to_pause(monkeypatch):
    """The first drafted step of a process, say; how far steps vary is not known then."""
    machine, sizing = Machine(monkeypatch, accept=0.0), TreeSizing()
    machine.run(sizing, sizing.first_plain_steps + 1, confidence=0.9)
    assert sizing.num_drafted_steps == 1
    assert sizing.begin_step()


@pytest.mark.parametrize(("cost", "ends"), [(0.9 * PLAIN, True), (0.05 * PLAIN, False)])
def test_looking_up_ends_where_it_has_lost_too_much(monkeypatch, cost, ends):
    """In large batches, say, where a few rows repeat themselves and every row is verified with as many nodes."""
    machine, sizing, tree = Machine(monkeypatch, accept=0.0), TreeSizing(), DraftTree.from_paths(3, [[5, 6, 7]])
    sizing._paused = 10**6
    tokens, num_looked_up = 0.0, 0
    for _ in range(200):
        sizing.begin_step()
        looks_up = sizing.looks_up
        if looks_up:
            num_looked_up += 1
            sizing.verifies(tree)
        machine.now += PLAIN + (cost if looks_up else 0)
        tokens += (added := 1.1 if looks_up else 1.0)
        sizing.end_step(added)
    lost = machine.now - tokens * PLAIN
    assert (lost < (3 + 0.01 * 200 + 0.8) * PLAIN) or not ends
    assert (num_looked_up < 10) is ends
    assert num_looked_up > 1


def run_batch(monkeypatch, sizing, share, steps=100):
    """Drafts gain a row some tokens on average, and the row that is furthest behind `share` of them."""
    machine, start, progress = Machine(monkeypatch, accept=0.9), 0.0, []
    end_step = sizing.end_step

    def end(tokens):
        progress.append(1 + share * (tokens - 1))
        end_step(tokens, progress[-1])

    monkeypatch.setattr(sizing, "end_step", end)
    machine.run(sizing, steps, confidence=0.9)
    return (machine.now - start) / sum(progress)


def test_a_batch_whose_last_row_hardly_gains_drafts_little(monkeypatch):
    """Rows gain some tokens a step on average, but the text is finished when the slowest one is."""
    drafts, hardly = TreeSizing(StepCosts(4)), TreeSizing(StepCosts(4))
    assert run_batch(monkeypatch, drafts, share=1.0) < 0.6 * PLAIN
    assert drafts.progress_share == 1.0
    assert run_batch(monkeypatch, hardly, share=0.05) < 1.06 * PLAIN
    assert hardly.progress_share < 0.3
    assert hardly.num_nodes < 0.1 * drafts.num_nodes


def test_nodes_of_a_batch_pay_on_average():
    """One sure row does not make the others verify what they do not expect."""
    sizing = TreeSizing(StepCosts(2))
    sizing.costs.plain_steps.extend([PLAIN] * 3)
    sizing.costs.extra = [LEARN, DRAFT, LEVEL, 0.3 * PLAIN]
    sure, unsure = [0.0, -0.01, -0.02, -0.03], [0.0, -1.0, -4.0, -5.0]
    assert sizing.num_worth(torch.tensor([sure])) == 4
    assert sizing.num_worth(torch.tensor([unsure])) == 2
    assert sizing.num_worth(torch.tensor([sure, unsure])) == 4
    assert sizing.num_worth(torch.tensor([sure, unsure, unsure, unsure])) == 2


@pytest.mark.parametrize(("batch_size", "drafts"), [(1, True), (4, False)])
def test_a_single_row_takes_a_chance_that_a_batch_does_not_take(batch_size, drafts):
    """One step's doubts say little of the next one, where looked-up tokens may come on top; those of many rows stay."""
    sizing = TreeSizing(StepCosts(batch_size))
    sizing.costs.plain_steps.extend([PLAIN] * 3)
    sizing.costs.extra = [LEARN, 0.3 * PLAIN, 0.2 * PLAIN, 0.1 * PLAIN]
    assert sizing.wants_level(torch.tensor([[0.35, 0.02]]).log(), 1) is drafts
    assert sizing.wants_level(torch.tensor([[0.95, 0.02]]).log(), 1)
    assert not sizing.wants_level(torch.tensor([[0.1, 0.02]]).log(), 1)


def test_looked_up_tokens_of_a_batch_pay_or_are_left_out():
    sizing = TreeSizing(StepCosts(4))
    sizing.costs.plain_steps.extend([PLAIN] * 3)
    sizing.costs.extra = [LEARN, DRAFT, LEVEL, 0.3 * PLAIN]
    assert sizing.num_worth_looking_up([0.8] * 4, 8) == 5  # 0.8 ** 5 is the last above 0.3
    assert sizing.num_worth_looking_up([0.8, 0.8, 0.0, 0.0], 8) == 2
    assert sizing.num_worth_looking_up([0.8, 0.0, 0.0, 0.0], 8) == 0
    assert FixedSizing().num_worth_looking_up([0.8, 0.0, 0.0, 0.0], 8) == 8
    sizing.costs.batch_size = 1
    assert sizing.num_worth_looking_up([0.8], 8) == 8


@pytest.mark.parametrize(("batch_size", "pause"), [(1, 0), (16, 3)])
def test_a_batch_in_which_no_tree_pays_pauses_at_once(monkeypatch, batch_size, pause):
    """A single row may be unsure of one token and sure of the next; many rows are unsure together."""
    machine, sizing = Machine(monkeypatch, accept=0.0), TreeSizing(StepCosts(batch_size))
    machine.run(sizing, sizing.first_plain_steps + 1, confidence=1e-3)
    assert sizing.num_drafted_steps == 1
    assert sizing.num_nodes == 0
    assert sizing._paused == pause
    sizing.begin_step()
    assert sizing.looks_up is (batch_size == 1)


def test_a_head_is_not_tried_again_in_every_batch_of_a_size_that_does_not_pay(monkeypatch):
    """Whether it does depends on the number of rows more than on the text, unlike for a single row."""
    head, target = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for rows, begins_anew in ((1, True), (16, False)):
        machine, sizing = (
            Machine(monkeypatch, accept=0.0),
            known_sizing(head, target, (rows,), TreeSizing(StepCosts(rows))),
        )
        for _ in range(200):
            machine.run(sizing, 0 if sizing._paused else 1, confidence=0.9)
        assert sizing._paused
        remember(head, target, (rows,), sizing)
        following = known_sizing(head, target, (rows,), TreeSizing(StepCosts(rows)))
        machine.run(following, 1, confidence=0.9)  # a plain one
        assert following.begin_step() is begins_anew


def test_what_is_done_once_for_a_text_is_no_cost_of_a_step(monkeypatch):
    """The prompt is read in the first step that drafts."""
    machine, sizing = Machine(monkeypatch, accept=0.9), TreeSizing()
    machine.run(sizing, sizing.first_plain_steps, confidence=0.9)
    assert sizing.begin_step()
    machine.now += 100 * PLAIN
    sizing.restart_clock()
    machine.now += PLAIN + LEARN
    sizing.end_step(1.0)
    assert sizing._balance > -0.2 * PLAIN
    assert sizing.costs.extra[0] < 0.2 * PLAIN
