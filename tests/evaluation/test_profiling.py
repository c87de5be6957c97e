"""The parts of a step are all there, add up, and leave nothing behind."""

import pytest
import torch
from tiny_pair import tiny_pair

from eagle_hf import DraftOptions
from eagle_hf.evaluation import profiling
from eagle_hf.evaluation.profiling import CALLS, PARTS, profile
from eagle_hf.generation.choosing import PathSelector


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


def test_a_step_reads_back_only_where_the_walk_does(pair, profiled, monkeypatch):
    """
    Once, where all nodes are chosen at in one go; on a CPU a single row reads every tree, if there is one, and then
    token by token.
    """
    target, draft = pair
    monkeypatch.setattr(draft.generation_config, "output_draft_trees", True)
    output = target.generate(
        IDS, assistant_model=draft, max_new_tokens=12, do_sample=False, eos_token_id=None, return_dict_in_generate=True
    )
    lengths, num_drafted = output.acceptance_lengths[0], sum(tree.num_nodes > 1 for tree, _ in output.draft_trees)
    assert 0 < num_drafted < len(lengths)  # the last token needs no draft
    path = next(iter(profiled[1]["trees"].values()))
    monkeypatch.setattr(PathSelector, "DEVICES", ())
    nodes = next(iter(profile(*pair, IDS, max_new_tokens=12, repeats=1)[1]["trees"].values()))
    assert nodes["walk"]["reads"] == 1
    assert path["walk"]["reads"] == pytest.approx((sum(lengths) + num_drafted) / len(lengths), abs=0.01)
    assert path["verify"]["reads"] == nodes["verify"]["reads"] == 0


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
