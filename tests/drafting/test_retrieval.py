"""Retrieval: the automaton against a search by hand, and paths that join a tree without spoiling it."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_hf import DraftTree
from eagle_hf.drafting.policy import Plan
from eagle_hf.drafting.retrieval import Retrieval, SuffixAutomaton, add_path


def longest_repeated_suffix(tokens: list[int]) -> int:
    """Length of the longest suffix that also ends earlier, by trying all."""
    total = len(tokens)
    for length in range(total - 1, 0, -1):
        if any(tokens[end - length : end] == tokens[total - length :] for end in range(length, total)):
            return length
    return 0


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4).flatmap(lambda vocab: st.lists(st.integers(0, vocab - 1), max_size=40)))
def test_the_longest_match_is_that_of_a_search_by_hand(tokens):
    automaton = SuffixAutomaton()
    for count, token in enumerate(tokens, start=1):
        automaton.extend([token])
        so_far = tokens[:count]
        length, end = automaton.match_length, automaton.match_end
        assert length == longest_repeated_suffix(so_far)
        assert end < count
        if length:
            assert so_far[end - length : end] == so_far[count - length :]
            extended = list(so_far)
            for i in range(6):  # copied one by one, as far as needed from what was just copied
                extended.append(extended[end + i])
            assert automaton.continuation(6) == extended[count:]
    assert automaton.tokens == tokens


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60), st.data())
def test_in_pieces_or_at_once_is_the_same(tokens, data):
    whole, pieces = SuffixAutomaton(), SuffixAutomaton()
    whole.extend(tokens)
    cut = data.draw(st.integers(0, len(tokens)))
    pieces.extend(tokens[:cut])
    pieces.extend(tokens[cut:])
    assert (pieces.match_length, pieces.match_end) == (whole.match_length, whole.match_end)
    assert len(pieces._next) == len(whole._next) <= max(2 * len(tokens), 1)  # the bound of Blumer et al.


def test_the_newest_occurrence_wins():
    text = SuffixAutomaton()
    text.extend([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3])
    assert (text.match_length, text.continuation(2)) == (3, [8, 1])


def test_a_token_costs_the_same_late_as_early():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (40_000,), generator=generator).tolist()
    automaton, seconds = SuffixAutomaton(), []
    for quarter in range(4):
        start = time.process_time()
        automaton.extend(tokens[10_000 * quarter : 10_000 * (quarter + 1)])
        seconds.append(time.process_time() - start)
    assert seconds[3] < 5 * seconds[0]  # it would be 7 times if the cost grew with the length


def trees_and_paths():
    @st.composite
    def draw(draw):
        shape = [-1]
        for node in range(1, draw(st.integers(1, 12))):
            shape.append(draw(st.integers(0, node - 1)))
        depths = [0]
        for parent in shape[1:]:
            depths.append(depths[parent] + 1)
        rows = []
        for _ in range(draw(st.integers(1, 3))):
            tokens, used = [9], set()
            for parent in shape[1:]:
                token = draw(st.integers(0, 30).filter(lambda t, p=parent, used=used: (p, t) not in used))
                used.add((parent, token))
                tokens.append(token)
            rows.append(tokens)
        count = draw(st.integers(1, 5))
        length = max(depths) + count
        paths = []
        for tokens in rows:  # half of the time along the tree
            path, node = [], 0
            while len(path) < length:
                children = [n for n, parent in enumerate(shape) if parent == node]
                if children and draw(st.booleans()):
                    node = draw(st.sampled_from(children))
                    path.append(tokens[node])
                else:
                    path += draw(st.lists(st.integers(0, 30), min_size=length - len(path), max_size=length - len(path)))
            paths.append(path)
        return rows, shape, depths, paths, count

    return draw()


def token_paths(tokens, parents) -> list[tuple[int, ...]]:
    """The path of every node, root excluded."""
    paths = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths


@settings(max_examples=60, deadline=None)
@given(trees_and_paths())
def test_a_path_joins_the_tree_without_duplicates(drawn):
    rows, shape, depths, paths, count = drawn
    batch = len(rows)
    scores = -torch.tensor([depths] * batch).float()
    tree = DraftTree(
        torch.tensor(rows), torch.tensor([shape] * batch), torch.tensor([depths] * batch), scores, max(depths)
    )
    grown = add_path(tree, torch.tensor(paths), count, torch.full((batch,), -0.5))
    assert grown.num_nodes == tree.num_nodes + count
    assert int(grown.depths.max()) <= grown.max_depth
    for name in ("tokens", "parents", "depths", "scores"):
        assert torch.equal(getattr(grown, name)[:, : tree.num_nodes], getattr(tree, name))
    for row in range(batch):
        tokens, parents = grown.tokens[row].tolist(), grown.parents[row].tolist()
        assert all(parent < node for node, parent in enumerate(parents))
        below = torch.tensor(parents[1:])
        assert (grown.depths[row, 1:] == grown.depths[row, below] + 1).all()
        assert (grown.scores[row, 1:] <= grown.scores[row, below]).all()
        before = token_paths(rows[row], shape)
        shared = max(n for n in range(len(paths[row]) + 1) if tuple(paths[row][:n]) in before)
        after = token_paths(tokens, parents)
        assert len(set(after)) == len(after)
        assert after[len(before) :] == [tuple(paths[row][:n]) for n in range(shared + 1, shared + count + 1)]


def test_nothing_is_added_where_nothing_repeats_itself():
    tree = DraftTree.from_paths(3, [[5, 6], [7]])
    retrieval = Retrieval(8, [[1, 2, 8, 9, 1, 2]])
    assert retrieval.extend(tree, [[3]], [0], 100, Plan()) is tree
    assert Retrieval(8, [[1, 2, 3, 9, 1, 2]]).extend(tree, [[3]], [0], 100, Plan()) is not tree


def test_the_length_limit_holds():
    for max_depth in range(1, 10):
        retrieval = Retrieval(8, [[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]])
        tree = retrieval.extend(DraftTree.from_paths(3, [[5]]), [[3]], [0], max_depth, Plan())
        assert int(tree.depths.max()) <= tree.max_depth <= max_depth
        assert tree.num_nodes == 2 + min(6, max_depth - 1)  # a match of 3 is trusted for 6 tokens


def test_rows_that_have_finished_do_not_count():
    tree = DraftTree.root_only(torch.tensor([3, 3]))
    prompts = [[1, 2, 3, 9, 1, 2], [1, 2, 4, 9, 5, 6]]
    assert Retrieval(8, prompts).extend(tree, [[3], [3]], [0, 1], 100, Plan()).num_nodes > 1
    assert Retrieval(8, prompts).extend(tree, [[3], [3]], [1], 100, Plan()) is tree


@pytest.mark.parametrize("replaces_tree", [False, True])
def test_a_chain_takes_the_place_of_the_tree_where_the_target_needs_chains(replaces_tree):
    tree = DraftTree.from_paths(3, [[5, 6]])
    retrieval = Retrieval(4, [[1, 2, 3, 9, 8, 7, 6, 1, 2]], replaces_tree)
    grown = retrieval.extend(tree, [[3]], [0], 100, Plan())
    if replaces_tree:
        assert grown.tokens.tolist() == [[3, 9, 8, 7, 6]]
        assert grown.parents.tolist() == [[-1, 0, 1, 2, 3]]
    else:
        assert grown.num_nodes == tree.num_nodes + 4
