"""
Exactness of verification, in three ways that can fail: algebraically over all outcomes, draw by draw against
`torch.multinomial`, and by negative controls: rules that are known to be wrong and must be caught.
"""

import itertools

import pytest
import torch

from eagle_hf import DraftTree
from eagle_hf.verification import accepted_path, choose_greedy, choose_sampled


VOCAB = 3
TREES = {
    "root": [],
    "chain": [[0, 1]],
    "two children": [[0], [2]],
    "bushy": [[0, 1], [0, 2], [1, 0]],
    "full": [[a, b] for a in range(VOCAB) for b in range(VOCAB)],
}


def target_distribution(prefix: tuple[int, ...]) -> torch.Tensor:
    """What the target would draw after a prefix, float64."""
    generator = torch.Generator().manual_seed(hash(prefix) % 1000)
    return torch.rand(VOCAB, generator=generator, dtype=torch.float64).softmax(0)


def walk_by_choices(tokens, parents, chosen):
    """Our rule: emit what the target chose at every node of the accepted path."""
    return [chosen[node] for node in accepted_path(tokens, parents, chosen)]


def always_accept(tokens, parents, chosen):
    """A wrong rule: the first child is accepted whatever the target chose."""
    emitted, node = [], 0
    while (child := next((n for n, p in enumerate(parents) if p == node), None)) is not None:
        emitted.append(tokens[child])
        node = child
    return [*emitted, chosen[node]]


def shifted_vocabulary(tokens, parents, chosen):
    """A wrong rule: drafts are compared in the draft vocabulary, but emitted as if it were the target's."""
    emitted = walk_by_choices(tokens, parents, chosen)
    return [*((token + 1) % VOCAB for token in emitted[:-1]), emitted[-1]]


def joint_distribution(paths, rule, length=3):
    """
    Exact distribution of the first `length` tokens emitted by repeated verification with the same tree of guesses, by
    enumerating what the target may choose at every node.
    """
    result: dict[tuple[int, ...], float] = {}

    def emit(prefix, probability):
        if len(prefix) >= length:
            result[prefix[:length]] = result.get(prefix[:length], 0.0) + probability
            return
        tree = DraftTree.from_paths(VOCAB, paths)
        tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
        contexts = [()]
        for node in range(1, len(tokens)):
            contexts.append((*contexts[parents[node]], tokens[node]))
        distributions = [target_distribution(prefix + context) for context in contexts]
        for chosen in itertools.product(range(VOCAB), repeat=len(tokens)):
            weight = probability
            for distribution, token in zip(distributions, chosen, strict=True):
                weight = weight * float(distribution[token])
            emit(prefix + tuple(rule(tokens, parents, chosen)), weight)

    emit((), 1.0)
    return result


def true_joint(length=3):
    result = {}
    for sequence in itertools.product(range(VOCAB), repeat=length):
        probability = 1.0
        for i, token in enumerate(sequence):
            probability *= float(target_distribution(sequence[:i])[token])
        result[sequence] = probability
    return result


def largest_error(got, expected):
    return max(abs(got.get(key, 0.0) - expected.get(key, 0.0)) for key in got | expected)


@pytest.mark.parametrize("name", ["root", "chain", "two children"])
def test_emitted_text_has_exactly_the_targets_distribution(name):
    assert largest_error(joint_distribution(TREES[name], walk_by_choices), true_joint()) <= 1e-12


@pytest.mark.parametrize("name", ["bushy", "full"])
def test_one_step_has_exactly_the_targets_distribution(name):
    """Larger trees, one verification: the first token, and the second where the step emitted two."""
    tree = DraftTree.from_paths(VOCAB, TREES[name])
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    # The walk visits a node's choice only if its ancestors led there: enumerate choices at visited nodes.
    emitted: dict[tuple[int, ...], float] = {}

    def walk(node, prefix, probability):
        children = {tokens[n]: n for n, p in enumerate(parents) if p == node}
        for token in range(VOCAB):
            weight = probability * float(target_distribution(prefix)[token])
            chosen = [VOCAB] * len(tokens)  # no child has this token
            for n, t in zip(path_to(node), prefix, strict=False):
                chosen[n] = t
            chosen[node] = token
            path = accepted_path(tokens, parents, chosen)
            if token in children:
                assert path[-1] == children[token]
                walk(children[token], (*prefix, token), weight)
            else:
                assert path[-1] == node
                emitted[(*prefix, token)] = emitted.get((*prefix, token), 0.0) + weight

    def path_to(node):
        path = []
        while node >= 0:
            path.append(node)
            node = parents[node]
        return path[::-1]

    walk(0, (), 1.0)
    assert abs(sum(emitted.values()) - 1) <= 1e-12
    for sequence, probability in emitted.items():
        expected = 1.0
        for i, token in enumerate(sequence):
            expected *= float(target_distribution(sequence[:i])[token])
        assert abs(probability - expected) <= 1e-12


@pytest.mark.parametrize("rule", [always_accept, shifted_vocabulary])
@pytest.mark.parametrize("name", ["chain", "two children"])
def test_wrong_rules_are_caught(rule, name):
    assert largest_error(joint_distribution(TREES[name], rule), true_joint()) > 1e-3


def test_a_node_with_deterministic_children_is_exact_under_recursive_rejection_too():
    """The authors' rule accepts child `x` with the probability that we choose it: p(x). (EAGLE-2; SpecInfer.)"""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        p = torch.rand(16, generator=generator, dtype=torch.float64).softmax(0)
        children = torch.randperm(16, generator=generator)[:4].tolist()
        out, reach, rest = torch.zeros(16, dtype=torch.float64), 1.0, p.clone()
        for child in children:
            out[child] += reach * rest[child]
            reach *= 1 - rest[child]
            rest[child] = 0
            rest /= rest.sum()
        out += reach * rest
        assert (out - p).abs().max() <= 1e-12
        assert all(abs(out[child] - p[child]) <= 1e-12 for child in children)


def test_the_p_over_q_rule_of_sampled_drafts_is_wrong_for_top_k_drafts():
    """A draft that always proposes its likeliest token must not be judged as if it had sampled from q."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(8, generator=generator, dtype=torch.float64).softmax(0)
    q = (8 * torch.rand(8, generator=generator, dtype=torch.float64)).softmax(0)
    proposed = int(q.argmax())
    accept = min(1.0, float(p[proposed] / q[proposed]))
    residual = (p - q).clamp(min=0)
    out = (1 - accept) * residual / residual.sum()
    out[proposed] += accept
    assert (out - p).abs().max() > 1e-2


@pytest.mark.parametrize(("batch", "vocab"), [(1, 7), (1, 4099), (3, 320), (5, 32000)])
def test_sampled_choices_are_those_of_multinomial_for_the_same_seed(batch, vocab):
    torch.manual_seed(3)
    scores = 3 * torch.randn(batch, vocab)
    torch.manual_seed(11)
    expected = [torch.multinomial(scores.softmax(-1), 1).squeeze(1) for _ in range(4)]
    expected_state = torch.get_rng_state()
    torch.manual_seed(11)
    got = [choose_sampled(scores[:, None], torch.empty(batch, vocab).exponential_()[:, None])[:, 0] for _ in range(4)]
    assert torch.equal(torch.stack(expected), torch.stack(got))
    assert torch.equal(expected_state, torch.get_rng_state())


def test_a_distribution_with_nan_chooses_nothing():
    scores = torch.zeros(1, 3, 5)
    scores[0, 1, 2] = torch.nan
    chosen = choose_sampled(scores, torch.ones(1, 3, 5))
    assert chosen[0, 1] == -1
    assert (chosen[0, [0, 2]] >= 0).all()


def test_greedy_takes_the_first_of_equals_as_argmax_does():
    assert choose_greedy(torch.tensor([[[1.0, 3.0, 3.0]]])).tolist() == [[1]]


def test_siblings_in_another_order_lead_to_the_same_text():
    chosen_after = {(): 2, (2,): 0, (2, 0): 1}
    texts = set()
    for order in itertools.permutations([[0], [1], [2, 0]]):
        nodes, tokens, parents = [()], [9], [-1]
        for path in order:
            for length in range(1, len(path) + 1):
                prefix = tuple(path[:length])
                nodes.append(prefix)
                tokens.append(prefix[-1])
                parents.append(nodes.index(prefix[:-1]))
        chosen = [chosen_after.get(prefix, 1) for prefix in nodes]
        texts.add(tuple(chosen[node] for node in accepted_path(tokens, parents, chosen)))
    assert texts == {(2, 0, 1)}
