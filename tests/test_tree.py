"""Properties of draft trees, over random parent arrays."""

from dataclasses import astuple, replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_hf import DraftTree


T, F = True, False


@st.composite
def parent_arrays(draw, max_nodes=40):
    num_nodes = draw(st.integers(1, max_nodes))
    return [-1] + [draw(st.integers(0, node - 1)) for node in range(1, num_nodes)]


def tree_of(parents: list[list[int]]) -> DraftTree:
    depths = []
    for row in parents:
        depths.append([0])
        for parent in row[1:]:
            depths[-1].append(depths[-1][parent] + 1)
    tokens = torch.arange(len(parents[0])).expand(len(parents), -1)
    return DraftTree(
        tokens, torch.tensor(parents), torch.tensor(depths), torch.zeros(tokens.shape), max(max(row) for row in depths)
    )


@settings(deadline=None, max_examples=200)
@given(parent_arrays())
def test_a_node_sees_its_ancestors_and_itself_and_nothing_else(parents):
    tree = tree_of([parents])
    mask = tree.ancestor_mask()[0]
    for node in range(len(parents)):
        expected, ancestor = set(), node
        while ancestor >= 0:
            expected.add(ancestor)
            ancestor = parents[ancestor]
        assert set(mask[node].nonzero().flatten().tolist()) == expected
        assert int(mask[node].sum()) == int(tree.depths[0, node]) + 1


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.data())
def test_rows_of_a_batch_do_not_see_each_other(num_nodes, data):
    rows = [[-1] + [data.draw(st.integers(0, node - 1)) for node in range(1, num_nodes)] for _ in range(3)]
    together = tree_of(rows).ancestor_mask()
    for row, mask in zip(rows, together, strict=True):
        assert torch.equal(mask, tree_of([row]).ancestor_mask()[0])


def test_the_mask_of_the_documented_tree():
    tree = tree_of([[-1, 0, 0, 1, 1, 2]])
    assert tree.ancestor_mask()[0].tolist() == [
        [T, F, F, F, F, F],
        [T, T, F, F, F, F],
        [T, F, T, F, F, F],
        [T, T, F, T, F, F],
        [T, T, F, F, T, F],
        [T, F, T, F, F, T],
    ]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=8))
def test_paths_round_trip(paths):
    tree = DraftTree.from_paths(9, paths)
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    read_back = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        read_back.append((*read_back[parent], token))
    assert set(read_back) == {tuple(path[:length]) for path in paths for length in range(len(path) + 1)} | {()}
    assert len(read_back) == len(set(read_back))
    assert all(parent < node for node, parent in enumerate(parents))
    assert tree.depths[0].tolist() == [len(path) for path in read_back]


def test_root_only_is_a_plain_decoding_step():
    tree = DraftTree.root_only(torch.tensor([5, 6]))
    assert tree.tokens.tolist() == [[5], [6]]
    assert tree.parents.tolist() == [[-1], [-1]]
    assert tree.ancestor_mask().tolist() == [[[T]], [[T]]]


def with_scores(parents: list[int], steps: list[float]) -> DraftTree:
    """A tree whose nodes are less likely than their parents by `steps`."""
    tree, scores = tree_of([parents]), [0.0]
    for parent, step in zip(parents[1:], steps, strict=False):
        scores.append(scores[parent] - step)
    return replace(tree, scores=torch.tensor([scores]))


@settings(deadline=None, max_examples=100)
@given(parent_arrays(max_nodes=20), st.lists(st.integers(0, 3).map(float), min_size=19, max_size=19), st.integers(1, 8))
def test_the_likelier_nodes_are_a_tree_with_the_same_paths(parents, steps, num_nodes):
    tree = with_scores(parents, steps)
    kept = tree.likeliest(num_nodes)
    nodes = kept.tokens[0].tolist()  # here a node's token is its number
    by_score = sorted(range(tree.num_nodes), key=lambda node: (-float(tree.scores[0, node]), node))
    assert nodes == sorted(by_score[:num_nodes])
    for index, node in enumerate(nodes):
        assert kept.depths[0, index] == tree.depths[0, node]
        assert (nodes[kept.parents[0, index]] if index else -1) == parents[node]
    assert kept.max_depth >= int(kept.depths.max())


def test_rows_keep_likely_nodes_of_their_own():
    one = with_scores([-1, 0, 0, 1, 1], [1.0, 2.0, 1.0, 3.0])
    other = with_scores([-1, 0, 0, 1, 2], [5.0, 1.0, 1.0, 1.0])
    tree = DraftTree(*(torch.cat(pair) for pair in zip(astuple(one)[:4], astuple(other)[:4], strict=True)), max_depth=2)
    kept = tree.likeliest(4)
    assert kept.tokens.tolist() == [[0, 1, 2, 3], [0, 1, 2, 4]]
    assert kept.parents.tolist() == [[-1, 0, 0, 1], [-1, 0, 0, 2]]
