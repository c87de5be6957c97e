"""Which draft tree is shown of a text."""

from types import SimpleNamespace

import pytest

from eagle_hf import DraftTree
from eagle_hf.cli.pair import Run


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
