"""
A head without an `lm_head` of its own is, in everything it does, its twin that has the target's as its own: in
drafting, compiled drafting, inspection and training.
"""

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft
from transformers import CompileConfig

from eagle_hf import DraftOptions
from eagle_hf.fast.compiled_head import choose_drafter
from eagle_hf.inspection.acceptance import accepted_counts, write_answer
from eagle_hf.training import feature_regression_loss, training_time_test_loss


HEADS = {
    "eagle-1": {"eagle_version": 1},
    "eagle-3": {},
    "eagle-3, normed output": {"norm_output": True},
    "p-eagle": {"parallel_drafting": True, "mask_token_id": 5},
}


@pytest.fixture
def target():
    return tiny_target("llama")


def twins(target, **config):
    """A head that borrows the target's `lm_head`, and one that has it as its own."""
    borrowing = random_draft(target, **config, draft_vocab_size=None)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for name, parameter in borrowing.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.5)  # or norming would change little
    owning = random_draft(target, **config, draft_vocab_size=target.config.vocab_size)
    owning.load_state_dict(borrowing.state_dict() | {"lm_head.weight": target.lm_head.weight.detach()})
    return borrowing, owning


def random_features(draft, length=12):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, length, draft.config.num_features * 32, generator=generator)
    return features, torch.randint(3, 90, (1, length), generator=generator)


def drafted(draft, target, compiled, **options):
    """Tokens and scores of a tree."""
    drafter = choose_drafter(
        draft, DraftOptions(**options), target.get_input_embeddings(), target.get_output_embeddings(),
        CompileConfig(backend="eager", mode="default") if compiled else None, 64,
    )  # fmt: skip
    features, tokens = random_features(draft)
    drafter.read_prompt([features], tokens, torch.arange(12)[None], None)
    tree = drafter.grow(tokens[:, -1], 4)
    assert tree.num_nodes > 2
    return tree.tokens.tolist(), tree.scores


@pytest.mark.parametrize(("head", "compiled"), [*((head, False) for head in HEADS), ("eagle-3", True)])
def test_drafting(target, head, compiled):
    options = {"num_assistant_tokens": 8, "draft_depth": 4, "draft_width": 3}
    is_chain = "parallel_drafting" in HEADS[head]
    pair = [drafted(draft, target, compiled, **options) for draft in twins(target, **HEADS[head])]
    assert pair[0][0] == pair[1][0]
    torch.testing.assert_close(pair[0][1], pair[1][1])
    assert is_chain == (len(pair[0][0][0]) == 5)


def test_drafts_are_those_of_a_plain_forward(target):
    """And not those of the raw state, which an EAGLE-3 head does not score."""
    draft, _ = twins(target)
    features, tokens = random_features(draft)
    with torch.no_grad():
        output = draft(draft.project_features(features), target.model.embed_tokens(tokens))
        assert output.logits is None
        state = output.last_hidden_state[:, -1]
        right, wrong = (target.lm_head(each).topk(3).indices[0].tolist() for each in (draft.norm(state), state))
    (drafts,), _ = drafted(draft, target, False, num_assistant_tokens=3, draft_depth=1, draft_width=3)
    assert drafts[1:] == right != wrong


@pytest.mark.parametrize("head", HEADS)
def test_inspection(target, head, monkeypatch):
    answer = write_answer(target, torch.tensor([[5, 17, 40, 8]]), 12)
    drafts = []
    for draft in twins(target, **HEADS[head]):
        monkeypatch.setattr(draft, "to_target_ids", lambda ids: drafts.append(ids) or ids)
        accepted_counts(target, draft, answer, depth=2)
    of_borrowing, of_owning = torch.cat(drafts).chunk(2)
    assert torch.equal(of_borrowing, of_owning)
    assert len(of_owning.unique()) > 1


@pytest.mark.parametrize("head", ["eagle-3", "eagle-3, normed output"])
def test_training_time_test(target, head):
    borrowing, owning = twins(target, **HEADS[head])
    features, tokens = random_features(borrowing)
    logits = target(tokens).logits.detach()
    losses = [
        training_time_test_loss(
            draft, features, tokens, logits, torch.ones_like(tokens), target.model.embed_tokens, num_steps=3,
            lm_head=target.lm_head,
        ).loss
        for draft in (borrowing, owning)
    ]  # fmt: skip
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(borrowing.fc.weight.grad, owning.fc.weight.grad)
    if head == "eagle-3":
        torch.testing.assert_close(borrowing.norm.weight.grad, owning.norm.weight.grad)


def test_feature_regression(target):
    borrowing, owning = twins(target, **HEADS["eagle-1"])
    features, tokens = random_features(borrowing)
    modules = {"embed_tokens": target.model.embed_tokens, "lm_head": target.lm_head}
    losses = [
        feature_regression_loss(draft, features, tokens, torch.ones_like(tokens), **modules, num_steps=2).loss
        for draft in (borrowing, owning)
    ]
    torch.testing.assert_close(*losses)
