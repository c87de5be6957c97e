"""The head runs in inference mode; nothing that anybody gets to see was made in it."""

import pytest
import torch
from architectures import tiny_target
from doubles import inference_tensors, random_draft
from torch import nn
from transformers import DynamicCache

from eagle_hf.versions import CACHE, cache_of


IDS = torch.tensor([[5, 9, 33, 2, 7, 41, 8, 60, 12, 3], [0, 0, 0, 14, 7, 4, 8, 61, 12, 5]])
OPTIONS = {"attention_mask": (IDS != 0).long(), "max_new_tokens": 12, "eos_token_id": None, "do_sample": False}
EVERYTHING = (
    "output_scores", "output_logits", "output_hidden_states", "output_attentions", "output_draft_trees",
    "return_dict_in_generate",
)  # fmt: skip


def generate(target, rows=2, **options):
    return target.generate(IDS[:rows], **OPTIONS | options, assistant_model=random_draft(target))


@pytest.mark.parametrize("name", ["llama", "gemma3-mixed"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_nothing_that_is_returned_was_made_in_it(name, rows, do_sample):
    target = tiny_target(name)
    target.set_attn_implementation("eager")  # returns attentions
    inputs = {"attention_mask": OPTIONS["attention_mask"][:rows], "do_sample": do_sample}
    output = generate(target, rows, **dict.fromkeys(EVERYTHING, True) | inputs)
    trees = [vars(tree) for tree, _ in output.draft_trees]
    assert trees
    assert not inference_tensors([dict(output), trees])
    assert not inference_tensors([vars(layer) for layer in cache_of(output).layers])
    assert not inference_tensors(target)


def test_a_cache_of_the_users_can_be_trained_through_and_written_to():
    target = tiny_target("gemma3-mixed")
    cache = DynamicCache(config=target.config)
    output = generate(target, 1, attention_mask=None, **{CACHE: cache})
    logits = target(output[:, -1:], **{CACHE: cache}).logits
    logits.sum().backward()
    assert target.get_input_embeddings().weight.grad is not None
    cache.layers[0].keys[..., :1, :] = 0


def test_what_hooks_see_meets_autograd():
    """Tokens that go in and states that come out: a probe may be trained on what hooks have kept."""
    target, kept = tiny_target("llama"), []
    hooks = [
        target.model.layers[1].register_forward_hook(lambda module, args, output: kept.append(output)),
        target.model.register_forward_pre_hook(
            lambda module, args, kwargs: kept.append(kwargs["input_ids"]), with_kwargs=True
        ),
    ]
    generate(target)
    for hook in hooks:
        hook.remove()
    assert not inference_tensors(kept)
    nn.Linear(32, 1)(kept[-1]).sum().backward()


def test_inference_mode_of_the_caller_stays():
    target = tiny_target("llama")
    plain = target.generate(IDS, **OPTIONS)
    with torch.inference_mode():
        assert torch.equal(generate(target), plain)


def test_inference_tensors_are_found_wherever_they_are():
    with torch.inference_mode():
        tensor = torch.ones(1)
    target = tiny_target("llama")
    assert not inference_tensors(target)
    assert inference_tensors([{"a": (tensor,)}]) == ["[0]['a'][0]"]
    target.model.register_buffer("kept", tensor)
    target.model.layers[0].kept = {"here": tensor}
    assert len(inference_tensors(target)) == 2
