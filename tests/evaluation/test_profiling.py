"""The parts of a step are all there, add up, and leave nothing behind."""

import pytest
import torch
from tiny_pair import tiny_pair

from eagle_hf import DraftOptions
from eagle_hf.evaluation import profiling
from eagle_hf.evaluation.profiling import CALLS, PARTS, profile
from eagle_hf.generation import opening


IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def pair():
    target, draft, _ = tiny_pair()
    return target, draft


@pytest.fixture(scope="module")
def profiled(pair):
    return profile(*pair, IDS, max_new_tokens=12, repeats=2)


def test_every_part_has_time_and_operators_and_they_add_up(profiled):
    text, facts = profiled
    (rows,) = facts["trees"].values()
    assert list(rows) == [*PARTS, "rest", "step"]
    for part in (*PARTS, "rest", "step"):
        assert f"\n{part}" in text
        assert rows[part]["ms"] > 0
    for unit in ("operators", "reads"):
        parts = sum(row[unit] for part, row in rows.items() if part != "step")
        assert parts == pytest.approx(rows["step"][unit], abs=0.2)
    assert min(rows[part]["operators"] for part in ("draft", "tree", "verify", "walk", "cache")) > 0
    assert facts["plain_operators_per_token"] > 50


def test_the_same_operators_are_counted_in_inference_mode(pair):
    """There PyTorch shows those that consist of others as they were called, and some that do nothing."""
    numbers = []
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, profiling.OperatorCount() as count:
            pair[0](IDS)
        numbers.append(count.number)
    assert numbers[0] == numbers[1] > 50


def test_a_step_reads_back_once_where_the_walk_does(pair, profiled, monkeypatch):
    """At all nodes at once, that is; along a path every token is read, where that is free."""
    along_path = next(iter(profiled[1]["trees"].values()))
    monkeypatch.setattr(opening, "reads_freely", lambda device: False)
    step = next(iter(profile(*pair, IDS, max_new_tokens=12, repeats=1)[1]["trees"].values()))
    assert step["walk"]["reads"] == 1 < along_path["walk"]["reads"]
    for reads in (step, along_path):
        assert reads["verify"]["reads"] == reads["cache"]["reads"] == 0


def test_a_larger_tree_launches_more(pair):
    trees = {
        name: DraftOptions(num_assistant_tokens=nodes, draft_depth=depth, draft_width=2).to_generation_config()
        for name, nodes, depth in (("small", 2, 1), ("large", 9, 4))
    }
    _, facts = profile(*pair, IDS, max_new_tokens=12, repeats=1, trees=trees)
    operators = [facts["trees"][name]["draft"]["operators"] for name in trees]
    assert operators[1] > operators[0]
    assert pair[1].generation_config.num_assistant_tokens == 5


def test_nothing_is_left_behind_after_a_failure(pair, monkeypatch):
    before = [getattr(owner, method) for _, owner, method in CALLS], torch.Tensor.tolist

    def broken(*args, **kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr(profiling, "timed", broken)
    with pytest.raises(RuntimeError, match="broken"):
        profile(*pair, IDS)
    assert ([getattr(owner, method) for _, owner, method in CALLS], torch.Tensor.tolist) == before
