"""Text behind an image is the text of plain `generate`, and what the draft learns from a prompt with an image."""

import functools

import pytest
import torch
from conftest import use_options
from doubles import random_draft
from multimodal_targets import FAMILIES, IMAGE, VISION_START, image_prompts, multimodal_target
from promises import VOCAB_SIZE, with_and_without_draft
from target_dtype import closeness

from eagle_hf.drafting.true_rows import TrueRows
from eagle_hf.target.probe import can_verify_trees
from eagle_hf.versions import CACHE, cache_of


LENGTHS = (9, 4)  # text tokens behind the image, row by row
SMALL_TREE = {"num_assistant_tokens": 6, "draft_depth": 3, "draft_width": 2}

target_of = functools.lru_cache(maxsize=None)(multimodal_target)


def rope_deltas(target):
    deltas = getattr(target.model, "rope_deltas", None)
    return None if deltas is None else deltas.tolist()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "sampling", [{"do_sample": False}, {"do_sample": True, "top_k": 20}], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("lengths", [LENGTHS[:1], LENGTHS], ids=["single", "ragged"])
def test_text_behind_an_image_is_that_of_plain_generate(monkeypatch, name, sampling, lengths):
    target, inputs = target_of(name), image_prompts(name, lengths)
    plain, ours, plain_state, our_state = with_and_without_draft(
        monkeypatch, target, inputs, eos_token_id=None, **sampling
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(plain_state, our_state)
    assert ours.target_forwards < 20  # drafts were accepted


@pytest.mark.parametrize("name", FAMILIES)
def test_another_image_gives_another_text(name):
    """Or the tests here would pass without images."""
    target, inputs = target_of(name), image_prompts(name, LENGTHS)
    kwargs = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    text = target.generate(**inputs, **kwargs)
    assert not torch.equal(
        target.generate(**inputs | {"pixel_values": inputs["pixel_values"].flip(-1)}, **kwargs), text
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "head",
    [{}, {"eagle_version": 1}],
    ids=["eagle3", "eagle1"],
)
def test_heads_draft_behind_an_image(name, head):
    """Real heads, with the target's own embedding and `lm_head` where they have none, reading its decoder's layers."""
    target, inputs = target_of(name), image_prompts(name, LENGTHS)
    draft = use_options(random_draft(target, **head), **SMALL_TREE)
    kwargs = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    plain = target.generate(**inputs, **kwargs)
    deltas = rope_deltas(target)
    assert torch.equal(target.generate(**inputs, assistant_model=draft, **kwargs), plain)
    assert rope_deltas(target) == deltas


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "llava"])
def test_the_draft_learns_the_whole_prompt_the_image_included(monkeypatch, name):
    target, inputs = target_of(name), image_prompts(name, LENGTHS)
    learnt = {}
    real = TrueRows.read_prompt

    def read_prompt(self, features, tokens, positions, mask):
        learnt.update(features=features, tokens=tokens, positions=positions, mask=mask)
        real(self, features, tokens, positions, mask)

    monkeypatch.setattr(TrueRows, "read_prompt", read_prompt)
    draft = random_draft(target, feature_layer_ids=[0, 1, 3])  # the last one before the norm, where no one returns it
    output = target.generate(**inputs, assistant_model=draft, max_new_tokens=4, do_sample=False, eos_token_id=None)
    ids, real_columns = inputs["input_ids"], inputs["attention_mask"].bool()
    before_norm = []
    last_layer = target.model.language_model.layers[-1]
    hook = last_layer.register_forward_hook(lambda module, args, states: before_norm.append(states))
    states = target(**inputs, output_hidden_states=True).hidden_states
    hook.remove()
    expected = torch.cat([states[0], states[1], *before_norm], dim=-1)
    features = learnt["features"]
    features = features if isinstance(features, torch.Tensor) else torch.cat(list(features), dim=-1)
    assert features.shape[:2] == ids.shape
    features, expected = features[real_columns], expected[real_columns]
    torch.testing.assert_close(features, expected, **closeness(expected, 1e-4))
    assert torch.equal(learnt["tokens"], output[:, 1 : ids.shape[1] + 1])  # placeholders, as the prompt has them
    assert (learnt["tokens"] == IMAGE).any()
    assert torch.equal(learnt["positions"], (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0))


def test_a_placeholder_outside_the_vocabulary(monkeypatch):
    target = multimodal_target("gemma3", image_token_index=VOCAB_SIZE + 3)
    inputs = image_prompts("gemma3", LENGTHS)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, VOCAB_SIZE + 3)
    kwargs = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    plain = target.generate(**inputs, **kwargs)
    draft = use_options(random_draft(target), **SMALL_TREE)
    assert torch.equal(target.generate(**inputs, assistant_model=draft, **kwargs), plain)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "gemma3", "mistral3"])
@pytest.mark.parametrize("lengths", [LENGTHS[:1], LENGTHS], ids=["single", "ragged"])
def test_a_second_turn_goes_on_from_the_cache_that_holds_the_image(name, lengths):
    target, inputs = target_of(name), image_prompts(name, lengths)
    draft = use_options(random_draft(target), **SMALL_TREE)
    question = torch.randint(3, VISION_START - 2, (len(lengths), 5), generator=torch.Generator().manual_seed(5))
    kwargs = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    texts, deltas = [], []
    for assistant in (None, draft):
        first = target.generate(**inputs, assistant_model=assistant, **kwargs)
        ids = torch.cat([first.sequences, question], dim=1)
        new = ids.new_ones(len(ids), ids.shape[1] - inputs["input_ids"].shape[1])
        mask = torch.cat([inputs["attention_mask"], new], dim=1)
        second = target.generate(
            input_ids=ids, attention_mask=mask, **{CACHE: cache_of(first)}, assistant_model=assistant,
            **kwargs,
        )  # fmt: skip
        texts.append(second.sequences)
        deltas.append(rope_deltas(target))
    assert torch.equal(*texts)
    assert deltas[0] == deltas[1]


def test_probing_leaves_the_shift_of_an_earlier_image_alone():
    target = multimodal_target("qwen2_vl")
    target.model.rope_deltas = mine = torch.tensor([[-2]])
    forgetful = target.model.register_forward_pre_hook(lambda module, args: setattr(module, "rope_deltas", None))
    assert can_verify_trees(target)
    forgetful.remove()
    assert target.model.rope_deltas is mine
