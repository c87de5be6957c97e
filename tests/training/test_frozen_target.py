"""What a head learns from is what it reads when it drafts."""

import torch
from architectures import tiny_target
from doubles import random_draft

from eagle_hf.training import FrozenTarget


def read(target, ids, **fields):
    frozen = FrozenTarget(target, random_draft(target, **fields).config, torch.device("cpu"))
    return frozen, frozen.compute({"input_ids": ids})


def test_the_last_layer_is_read_before_the_final_norm_and_minus_one_after_it():
    target, ids = tiny_target("llama"), torch.tensor([[5, 9, 11, 7]])
    outputs = []
    hook = target.model.layers[-1].register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        states = target(ids, output_hidden_states=True).hidden_states
    hook.remove()
    before = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    frozen, (features, last, _) = read(target, ids, feature_layer_ids=[0, 1, 3])
    assert frozen.feature_layer_ids == [0, 1, 3]
    assert torch.equal(features, torch.cat([states[0], states[1], before], dim=-1))
    assert torch.equal(last, states[-1])
    assert not torch.allclose(before, states[-1])
    frozen, (features, _, _) = read(target, ids, eagle_version=1)
    assert frozen.feature_layer_ids == [-1]
    assert torch.equal(features, states[-1])


def test_its_lm_head_gives_its_logits_and_lets_gradients_through():
    target, ids = tiny_target("llama"), torch.tensor([[5, 9, 11]])
    frozen, (_, last, logits) = read(target, ids)
    last = last.clone().requires_grad_()
    again = frozen.lm_head(last)
    torch.testing.assert_close(again, logits)
    again.sum().backward()
    assert last.grad.abs().sum() > 0
    assert not frozen.embed_tokens(ids).requires_grad
