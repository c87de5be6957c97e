"""Heads whose layers attend within a window."""

import pytest
import torch
from doubles import random_draft
from layouts import tiny_llama

from eagle_hf.draft_options import DraftOptions
from eagle_hf.drafting import Drafter


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
    target = tiny_llama()
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
    target = tiny_llama()
    draft = random_draft(target, sliding_window=4)
    features, tokens = inputs(draft)
    whole = outputs(draft, target, features, tokens).last_hidden_state
    first = outputs(draft, target, features[:, :7], tokens[:, :7], use_cache=True)
    rest = outputs(draft, target, features[:, 7:], tokens[:, 7:], cache=first.cache)
    torch.testing.assert_close(torch.cat([first[0], rest[0]], dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("counts", [[3], [3, 1]])
def test_drafting_keeps_to_the_window(counts):
    """The state that trees grow from, after a prompt and accepted tokens, is that of one forward over everything."""
    target = tiny_llama()
    draft = random_draft(target, sliding_window=4)
    features, tokens = inputs(draft, batch=len(counts))
    drafter = Drafter(draft, DraftOptions(draft_depth=2), target.get_input_embeddings(), target.get_output_embeddings())
    positions = torch.arange(9)[None].expand(len(counts), -1)
    drafter.read_prompt(features[:, :9], tokens[:, :9], positions, None)
    drafter.read_accepted(features[:, 9:], tokens[:, 9:], counts)
    drafter.grow(tokens[:, -1], max_depth=1)
    for row, count in enumerate(counts):
        one = slice(row, row + 1)
        expected = outputs(draft, target, features[one, : 9 + count], tokens[one, : 9 + count]).last_hidden_state
        torch.testing.assert_close(drafter._last_hidden[one], expected[:, -1:], rtol=1e-4, atol=1e-4)
    assert drafter.grow(tokens[:, -1], max_depth=2).num_nodes > 1


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
        output = draft(hidden, target.get_input_embeddings()(tokens))
        scores.append(output.logits[0, -1].log_softmax(-1))
        if token is not None:
            hidden = torch.cat([hidden, output.last_hidden_state[:, -1:]], dim=1)
            tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    return scores


@pytest.mark.parametrize("tree", ["chain", "dynamic"])
@pytest.mark.parametrize("window", [3, 5, 8])
def test_guesses_lose_what_they_stand_behind(tree, window):
    """Every path of a tree, also one longer than the window, is scored as in training: row by row within the window."""
    target = tiny_llama()
    draft = random_draft(target, sliding_window=window, num_hidden_layers=2)
    features, tokens = inputs(draft)
    options = DraftOptions(draft_tree=tree, draft_depth=6, draft_width=3, num_assistant_tokens=16)
    drafter = Drafter(draft, options, target.get_input_embeddings(), target.get_output_embeddings())
    drafter.read_prompt(features, tokens, torch.arange(12)[None], None)
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
