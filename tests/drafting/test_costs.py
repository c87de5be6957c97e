"""What steps take: found out from their times, supposed where nothing is known."""

import random

import pytest

from eagle_hf.drafting.costs import StepCosts


PLAIN, LEARN, DRAFT, LEVEL, NODE = 0.010, 0.001, 0.002, 0.0008, 0.0002  # seconds


def test_costs_are_those_of_the_machine():
    costs, randomness = StepCosts(), random.Random(0)
    for _ in range(3):
        costs.observe((0, 0, 0, 0), PLAIN)
    for _ in range(200):
        drafts = randomness.random() < 0.8
        levels, nodes = (randomness.randint(1, 6), randomness.randint(1, 20)) if drafts else (0, 0)
        seconds = PLAIN + LEARN + (DRAFT + LEVEL * levels + NODE * nodes if drafts else 0)
        costs.observe((1, int(drafts), levels, nodes), seconds)
    assert costs.plain == PLAIN
    assert costs.extra == pytest.approx([LEARN, DRAFT, LEVEL, NODE], rel=0.15)
    assert costs.predict((1, 1, 4, 10)) == pytest.approx(PLAIN + LEARN + DRAFT + 4 * LEVEL + 10 * NODE, rel=0.02)


@pytest.mark.parametrize(("others", "slow"), [(1, 2), (4, 3)])
def test_plain_steps_that_something_held_up_do_not_count(others, slow):
    """Drafts would seem to save what they do not, and no plain step would be left to show it."""
    costs = StepCosts()
    for seconds in [PLAIN] * others + [3 * PLAIN] * slow:
        costs.observe((0, 0, 0, 0), seconds)
    assert costs.plain == PLAIN


def test_what_is_not_known_of_a_batch_costs_more_than_of_a_row():
    """So that the first trees of a batch, which cost most, are small."""
    rows, batch = StepCosts(), StepCosts(16)
    for costs in (rows, batch):
        costs.observe((0, 0, 0, 0), PLAIN)
    assert batch.extra == pytest.approx([4 * value for value in rows.extra])
