"""Loading a pair, and which draft tree is shown of a text."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eagle_hf import DraftTree
from eagle_hf.cli.pair import Pair, Run


DEMO = Path(__file__).parents[2] / "hub_cards"
SHALLOW = DraftTree.from_paths(7, [[1, 2], [3]])
DEEP = DraftTree.from_paths(7, [[1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("steps", "max_depth", "shown"),
    [
        ([(SHALLOW, [[0, 1]]), (DEEP, [[0, 1, 2, 3]])], None, DEEP),
        ([(SHALLOW, [[0, 1]]), (DEEP, [[0, 1, 2, 3]])], 2, SHALLOW),
        ([(DEEP, [[0]])], 2, DEEP),  # rather a deep one than none
    ],
)
def test_the_tree_with_the_longest_accepted_path_is_shown(steps, max_depth, shown):
    run = Run(1, [5], 1.0, SimpleNamespace(draft_trees=steps, acceptance_lengths=[[1]]))
    tree, path = run.deepest_step(max_depth)
    assert tree is shown
    assert path in [paths[0] for _, paths in steps]


def test_without_trees_there_is_none_to_show():
    assert Run(1, [5], 1.0, None).deepest_step() is None


def test_a_head_is_brought_to_its_target_when_both_are_loaded():
    """How it drafts and how it is compiled depend on where it is; on a CPU the dtype shows that it was aligned."""
    pair = Pair.load(str(DEMO / "demo-llama-10m"), str(DEMO / "EAGLE3-demo-llama-10m"), dtype="float64")
    assert pair.target.dtype == pair.draft.dtype == torch.float64
    assert pair.draft.device == pair.target.device
