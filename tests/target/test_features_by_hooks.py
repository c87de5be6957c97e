"""Features read from a target's layers are the hidden states that the target returns."""

import pytest
import torch
from architectures import ARCHITECTURES, VOCAB_SIZE, tiny_target
from doubles import random_draft
from torch import nn
from transformers import LlamaModel

from eagle_hf.target.features import FeatureReader, layers_in_order
from eagle_hf.target.probe import can_verify_trees


IDS = torch.tensor([[5, 9, 33, 2, 7, 41]])
PROMPT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 8, "do_sample": False}


def probed(name: str = "llama") -> nn.Module:
    target = tiny_target(name)
    can_verify_trees(target)
    return target


@torch.no_grad()
def direct_states(target, ids):
    reader = FeatureReader(target, random_draft(target, feature_layer_ids=ids).config)
    reader.hook_layers()
    with reader:
        outputs = target(IDS % VOCAB_SIZE, output_hidden_states=reader.output_hidden_states)
        return reader.states(outputs.hidden_states), reader.output_hidden_states


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_give_the_states_that_the_target_returns(name):
    target = probed(name)
    if not layers_in_order(target):
        pytest.skip("reads hidden states as the target returns them")
    states, asked_for = direct_states(target, [1, 2])
    assert asked_for is False
    with torch.no_grad():
        expected = target(IDS % VOCAB_SIZE, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], expected[1])
    assert torch.equal(states[1], expected[2])


def test_most_targets_are_read_directly():
    names = ["llama", "mistral-sliding", "mixtral-moe", "qwen2-mixed", "qwen3", "qwen3-moe", "gemma2-softcap"]
    assert all(len(layers_in_order(probed(name))) == 3 for name in names)


def test_a_target_that_was_not_probed_is_not_read_directly():
    assert layers_in_order(tiny_target("llama")) == []


@pytest.mark.parametrize("ids", [[0, 1, 2], [1, 2, -1]])
def test_what_is_no_output_of_an_inner_layer_is_asked_for(ids):
    target = probed()
    states, asked_for = direct_states(target, ids)
    assert asked_for is True or len(asked_for) == len(ids)  # all: asking for one costs as much
    with torch.no_grad():
        expected = target(IDS, output_hidden_states=True).hidden_states
    assert all(torch.equal(state, expected[i]) for state, i in zip(states, ids, strict=True))


def test_no_hooks_are_left_on_the_target():
    target = tiny_target("llama")
    target.generate(**PROMPT, assistant_model=random_draft(target, feature_layer_ids=[1, 2]))
    assert not any(module._forward_hooks for module in target.modules())


def test_an_interrupted_call_leaves_no_hooks_either():
    class Interrupting:
        def put(self, value):
            raise KeyboardInterrupt

        def end(self):
            raise AssertionError

    target = probed()
    with pytest.raises(KeyboardInterrupt):
        target.generate(**PROMPT, streamer=Interrupting(), assistant_model=random_draft(target))
    assert not any(module._forward_hooks for module in target.modules())


class SwappedLlama(LlamaModel):
    """A decoder that runs its second layer first."""

    def forward(self, *args, **kwargs):
        layers = self.layers
        self.layers = nn.ModuleList([layers[1], layers[0], layers[2]])
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.layers = layers


def test_layers_that_run_in_another_order_are_not_read():
    target = tiny_target("llama")
    target.model.__class__ = SwappedLlama
    can_verify_trees(target)
    assert layers_in_order(target) == []


def test_layers_of_other_classes_are_not_read():
    target = tiny_target("llama")

    class Other(nn.Module):
        pass

    target.model._can_record_outputs = {"hidden_states": Other}
    can_verify_trees(target)
    assert layers_in_order(target) == []


@pytest.mark.parametrize("compile_it", [
    lambda target: setattr(target, "forward", target.forward),
    lambda target: setattr(target.model.layers[1], "_compiled_call_impl", target.model.layers[1]._call_impl),
], ids=["forward replaced", "a layer compiled"])  # fmt: skip
def test_a_target_that_was_compiled_since_is_asked_for_its_states(compile_it):
    target = probed()
    draft = random_draft(target, feature_layer_ids=[1, 2])
    plain = target.generate(**PROMPT)
    compile_it(target)
    assert layers_in_order(target) == []
    assert torch.equal(target.generate(**PROMPT, assistant_model=draft), plain)


def test_a_layer_that_does_not_run_is_named():
    target = probed()
    reader = FeatureReader(target, random_draft(target, feature_layer_ids=[1, 2]).config)
    reader.hook_layers()
    with reader, pytest.raises(RuntimeError, match=r"outputs \[1, 2\] of the target's layers"):
        reader.states(None)
