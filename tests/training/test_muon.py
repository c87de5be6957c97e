"""Muon and AdamW each get their own parameters, and go on where they stopped."""

import copy

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft

from eagle_hf.training import MuonAndAdamW


NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")


def make(head):
    return MuonAndAdamW(head, muon_learning_rate=0.02, learning_rate=0.01)


def step(head, optimizer, seed):
    torch.manual_seed(seed)
    for parameter in head.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


@NEEDS_MUON
def test_matrices_inside_the_head_go_to_muon_and_all_else_to_adamw():
    head = random_draft(tiny_target("llama"), own_embed_tokens=True)
    head.embed_tokens.requires_grad_(False)
    muon, adamw = ({id(p) for group in part.param_groups for p in group["params"]} for part in make(head).parts)
    named = dict(head.named_parameters())
    assert id(named["fc.weight"]) in muon
    assert id(named["layers.0.mlp.up_proj.weight"]) in muon
    assert id(named["lm_head.weight"]) in adamw
    assert id(named["norm.weight"]) in adamw
    assert id(named["embed_tokens.weight"]) not in muon | adamw
    assert muon | adamw == {id(p) for name, p in named.items() if name != "embed_tokens.weight"}
    assert not muon & adamw


@NEEDS_MUON
def test_a_loaded_optimizer_goes_on_as_if_it_had_not_stopped():
    head = random_draft(tiny_target("llama"))
    optimizer = make(head)
    step(head, optimizer, 0)
    other = copy.deepcopy(head)
    loaded = make(other)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(head, optimizer, 1)
    step(other, loaded, 1)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), other.parameters(), strict=True))


def test_a_pytorch_without_muon_is_refused(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ImportError, match="needs a PyTorch that has `torch.optim.Muon`"):
        make(random_draft(tiny_target("llama")))
