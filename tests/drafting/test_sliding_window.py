"""Heads whose layers attend within a window."""

import pytest
import torch
from doubles import random_draft
from layouts import tiny_llama
from transformers import CompileConfig

from eagle_hf.draft_options import DraftOptions
from eagle_hf.fast.compiled_head import choose_drafter


def inputs(draft, batch=1, length=12):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, length, 3 * 64, generator=generator)
    return features, torch.randint(512, (batch, length), generator=generator)


@torch.no_grad()
def outputs(draft, target, features, tokens, mask=None, **kwargs):
    embeds = target.get_input_embeddings()(tokens)
    return draft(draft.project_features(features), embeds, mask, **kwargs)


@pytest.mark.parametrize("layers", [None, [1]])
def test_rows_see_no_further_than_the_window(layers):
    """Against explicit masks, layer by layer where only some have a window."""
    target = tiny_llama().float()
    windowed = random_draft(target, num_hidden_layers=2, sliding_window=4, sliding_window_layers=layers)
    plain = random_draft(target, num_hidden_layers=2)
    features, tokens = inputs(windowed)
    near = torch.ones(12, 12, dtype=torch.bool).tril().triu(-3)[None, None]
    got = outputs(windowed, target, features, tokens).last_hidden_state
    if layers is None:
        expected = outputs(plain, target, features, tokens, near).last_hidden_state
    else:
        first, second = plain.layers
        plain.layers = plain.layers[:1]
        hidden = outputs(plain, target, features, tokens).last_hidden_state
        with torch.no_grad():
            rotary = plain.rotary(torch.arange(12)[None])
            expected = second(hidden, hidden, rotary, near, None)
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got, outputs(random_draft(target, num_hidden_layers=2), target, features, tokens)[0])


def test_a_cache_changes_nothing():
    target = tiny_llama().float()
    draft = random_draft(target, sliding_window=4)
    features, tokens = inputs(draft)
    whole = outputs(draft, target, features, tokens).last_hidden_state
    first = outputs(draft, target, features[:, :7], tokens[:, :7], use_cache=True)
    rest = outputs(draft, target, features[:, 7:], tokens[:, 7:], cache=first.cache)
    torch.testing.assert_close(torch.cat([first[0], rest[0]], dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("counts", [[3], [3, 1]])
def test_drafting_keeps_to_the_window(counts):
    """The state that trees grow from, after a prompt and accepted tokens, is that of one forward over everything."""
    target = tiny_llama().float()
    draft = random_draft(target, sliding_window=4)
    features, tokens = inputs(draft, batch=len(counts))
    drafter = choose_drafter(
        draft, DraftOptions(draft_depth=2), target.get_input_embeddings(), target.get_output_embeddings()
    )
    positions = torch.arange(9)[None].expand(len(counts), -1)
    drafter.read_prompt([features[:, :9]], tokens[:, :9], positions, None)
    drafter.read_accepted(features[:, 9:], tokens[:, 9:], counts)
    drafter.grow(tokens[:, -1], max_depth=1)
    for row, count in enumerate(counts):
        one = slice(row, row + 1)
        expected = outputs(draft, target, features[one, : 9 + count], tokens[one, : 9 + count]).last_hidden_state
        torch.testing.assert_close(drafter._rows.last_hidden[one], expected[:, -1:], rtol=1e-4, atol=1e-4)
    assert drafter.grow(tokens[:, -1], max_depth=2).num_nodes > 1


@torch.no_grad()
def plain_scores(draft, target, features, tokens, path):
    """Log-probabilities of the tokens of a path, summed up, from plain forwards over all rows, one guess at a time."""
    hidden, total, scores = draft.project_features(features), 0.0, []
    tokens = torch.cat([tokens, torch.tensor([path[:-1]], dtype=torch.long)], dim=1)
    for token in path:
        num_rows = hidden.shape[1]
        output = draft(hidden, target.get_input_embeddings()(tokens[:, :num_rows]))
        total += float(output.logits[0, -1].log_softmax(-1)[token])
        scores.append(total)
        hidden = torch.cat([hidden, output.last_hidden_state[:, -1:]], dim=1)
    return scores


TREES = {
    "chain": {"draft_tree": "chain", "num_assistant_tokens": 5, "draft_depth": 5},
    "dynamic": {"num_assistant_tokens": 16, "draft_depth": 5, "draft_width": 3},
    "static": {"draft_tree": "static"},
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("window", [3, 6])
@pytest.mark.parametrize("counts", [[3], [3, 1]], ids=["", "ragged"])
@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])  # not yet: these heads run as they are
def test_guesses_see_what_they_would_see_in_a_plain_forward(tree, window, counts, compiled):
    """Every path of every tree: a guess sees one true row less for every level, and no more of its own path either."""
    target = tiny_llama().float()
    draft = random_draft(target, sliding_window=window, num_hidden_layers=2)
    features, tokens = inputs(draft, batch=len(counts))
    drafter = choose_drafter(
        draft, DraftOptions(**TREES[tree]), target.get_input_embeddings(), target.get_output_embeddings(),
        CompileConfig() if compiled else None, 64,
    )  # fmt: skip
    drafter.read_prompt([features[:, :9]], tokens[:, :9], torch.arange(9)[None].expand(len(counts), -1), None)
    drafter.read_accepted(features[:, 9:], tokens[:, 9:], counts)
    roots = torch.stack([tokens[row, 8 + count] for row, count in enumerate(counts)])
    grown = drafter.grow(roots, max_depth=5)
    assert grown.max_depth >= 4
    for row, count in enumerate(counts):
        seen = features[row : row + 1, : 9 + count], tokens[row : row + 1, : 9 + count]
        for leaf in set(range(1, grown.num_nodes)) - set(grown.parents[row].tolist()):
            nodes, node = [], leaf
            while node > 0:
                nodes.insert(0, node)
                node = int(grown.parents[row, node])
            expected = plain_scores(draft, target, *seen, grown.tokens[row, nodes].tolist())
            torch.testing.assert_close(grown.scores[row, nodes], torch.tensor(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_placeholders_of_parallel_chains_see_what_they_would_see_in_a_plain_forward():
    target = tiny_llama().float()
    draft = random_draft(target, sliding_window=4, parallel_drafting=True, mask_token_id=5)
    features, tokens = inputs(draft)
    drafter = choose_drafter(
        draft, DraftOptions(draft_tree="chain", draft_depth=5), target.get_input_embeddings(), None
    )
    drafter.read_prompt([features], tokens, torch.arange(12)[None], None)
    grown = drafter.grow(tokens[:, -1], max_depth=5)
    placeholders = draft.project_features(draft.mask_hidden).expand(1, 4, -1)
    hidden = torch.cat([draft.project_features(features), placeholders], dim=1)
    embeds = target.get_input_embeddings()(torch.cat([tokens, torch.full((1, 4), 5)], dim=1))
    logits = draft(hidden, embeds).logits[0, 11:]
    assert grown.tokens[0, 1:].tolist() == logits.argmax(-1).tolist()
    expected = logits.log_softmax(-1).max(-1).values.cumsum(0)
    torch.testing.assert_close(grown.scores[0, 1:], expected, rtol=1e-4, atol=1e-4)


def test_the_text_is_that_of_plain_generate():
    target = tiny_llama()
    draft = random_draft(target, sliding_window=4, num_hidden_layers=2, sliding_window_layers=[0])
    prompt = torch.tensor([[17, 204, 51, 130, 9, 8, 7], [0, 0, 33, 8, 250, 3, 5]])
    options = {"attention_mask": (prompt > 0).long(), "max_new_tokens": 20, "do_sample": False}
    plain, eagle = (target.generate(prompt, assistant_model=assistant, **options) for assistant in (None, draft))
    assert torch.equal(plain, eagle)


@torch.no_grad()
def guesses_by_hand(draft, target, features, tokens, path):
    """Scores of the token behind each guess on a path: one forward over everything for each, with no cache or mask."""
    hidden, scores = draft.project_features(features), []
    for token in [*path, None]:
        output = draft(hidden, target.get_input_embeddings()(tokens).to(hidden.dtype))
        scores.append(output.logits[0, -1].log_softmax(-1))
        if token is not None:
            hidden = torch.cat([hidden, output.last_hidden_state[:, -1:]], dim=1)
            tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    return scores


@pytest.mark.parametrize("tree", ["chain", "dynamic"])
@pytest.mark.parametrize("window", [3, 5, 8])
def test_guesses_lose_what_they_stand_behind(tree, window):
    """Every path of a tree, also one longer than the window, is scored as in training: row by row within the window."""
    target = tiny_llama().float()
    draft = random_draft(target, sliding_window=window, num_hidden_layers=2)
    features, tokens = inputs(draft)
    options = DraftOptions(draft_tree=tree, draft_depth=6, draft_width=3, num_assistant_tokens=16)
    drafter = choose_drafter(draft, options, target.get_input_embeddings(), target.get_output_embeddings())
    drafter.read_prompt([features], tokens, torch.arange(12)[None], None)
    grown = drafter.grow(tokens[:, -1], max_depth=6)
    parents, drafted = grown.parents[0].tolist(), grown.tokens[0].tolist()
    assert grown.num_nodes > (12 if tree == "dynamic" else 6)
    for node in range(1, len(drafted)):
        path, at = [], node
        while at > 0:
            path.insert(0, drafted[at])
            at = parents[at]
        scores = guesses_by_hand(draft, target, features, tokens, path[:-1])
        expected = sum(float(score[token]) for score, token in zip(scores, path, strict=True))
        assert abs(float(grown.scores[0, node]) - expected) < 1e-3
