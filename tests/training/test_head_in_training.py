"""What training wraps is the head: its parameters and their names, its files, its record and its mode."""

import copy

import torch
from architectures import tiny_target
from doubles import random_draft

from eagle_hf import EagleDraftModel
from eagle_hf.training.head_in_training import HeadInTraining


def pair():
    head = random_draft(tiny_target("llama"), num_hidden_layers=2)
    return head, HeadInTraining(head)


def test_it_is_made_of_the_heads_own_parameters_under_their_names():
    head, trained = pair()
    assert {name: id(each) for name, each in head.named_parameters()} == {
        name: id(each) for name, each in trained.named_parameters()
    }
    assert list(head.state_dict()) == list(trained.state_dict())
    trained.to(torch.float64)
    assert head.dtype == torch.float64


def test_only_training_knows_an_objective():
    head, trained = pair()
    seen = []
    assert trained(objective=lambda draft: seen.append(draft) or 7) == 7
    assert seen == [trained]
    inputs = torch.randn(1, 3, head.config.hidden_size), torch.randn(1, 3, head.config.hidden_size)
    assert torch.equal(trained(*inputs).logits, head(*inputs).logits)
    assert "objective" not in EagleDraftModel.forward.__code__.co_varnames


def test_it_is_saved_as_the_head(tmp_path):
    head, trained = pair()
    trained.save_pretrained(tmp_path)
    loaded = EagleDraftModel.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["EagleDraftModel"]
    assert all(torch.equal(each, head.state_dict()[name]) for name, each in loaded.state_dict().items())


def test_mode_and_record_are_those_of_the_head():
    head, trained = pair()
    for mode in (True, False):
        trained.train(mode)
        assert {each.training for each in [trained, *head.modules()]} == {mode}
    trained._training_record = "{}"
    assert head._training_record == "{}"


def test_a_copy_is_one_of_another_head():
    head, trained = pair()
    other = copy.deepcopy(trained)
    assert all(a is b for a, b in zip(other.parameters(), other.head.parameters(), strict=True))
    assert not {*map(id, other.parameters())} & {*map(id, head.parameters())}
