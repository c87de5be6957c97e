"""Trees sized by measurement change how fast a text comes, never the text."""

import pytest
import torch
from conftest import use_options
from doubles import random_draft
from every_decoder import tiny_decoder
from promises import PROMPT_LENGTHS, left_padded_prompts, target_of

from eagle_hf import EagleDraftModel


@pytest.mark.parametrize("name", ["llama", "gemma3-mixed", "deepseek-v3-mla"])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
def test_the_text_is_that_of_plain_generate(name, do_sample, lengths):
    target, inputs = target_of(name), left_padded_prompts(lengths)
    draft = use_options(random_draft(target), draft_tree="auto", num_assistant_tokens=8, draft_depth=4, draft_width=3)
    for seed in range(2):  # the second call starts with what the first has learned
        torch.manual_seed(seed)
        plain = target.generate(**inputs, max_new_tokens=30, do_sample=do_sample, eos_token_id=5)
        plain_state = torch.get_rng_state()
        torch.manual_seed(seed)
        ours = target.generate(
            **inputs, max_new_tokens=30, do_sample=do_sample, eos_token_id=5, assistant_model=draft,
            return_dict_in_generate=True,
        )  # fmt: skip
        assert torch.equal(plain, ours.sequences)
        assert torch.equal(plain_state, torch.get_rng_state())
        assert "steps" in ours.tree_sizing.report()


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 4])
@pytest.mark.parametrize("looked_up", [0, 4])
@pytest.mark.parametrize("name", ["llama", "bloom"])
@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
def test_a_first_call_of_few_tokens_knows_no_costs(name, lengths, looked_up, max_new_tokens):
    target, inputs = tiny_decoder(name), left_padded_prompts(lengths)
    settings = {**inputs, "max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": None}
    draft = use_options(random_draft(target), draft_tree="auto", draft_retrieval=looked_up)
    plain = target.generate(**settings)
    for _ in range(2):
        ours = target.generate(**settings, assistant_model=draft, return_dict_in_generate=True)
        assert torch.equal(plain, ours.sequences)
        assert "No drafts" in ours.tree_sizing.report() or ours.tree_sizing.num_drafted_steps


@pytest.mark.parametrize("name", ["bloom", "qwen3_next"])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_targets_of_chains_get_chains_of_automatic_size(name, do_sample):
    target, inputs = tiny_decoder(name), left_padded_prompts(PROMPT_LENGTHS[:1])
    draft = use_options(random_draft(target), draft_tree="auto", draft_depth=3, output_draft_trees=True)
    settings = {**inputs, "max_new_tokens": 24, "do_sample": do_sample, "eos_token_id": None}
    torch.manual_seed(0)
    plain = target.generate(**settings)
    torch.manual_seed(0)
    ours = target.generate(**settings, assistant_model=draft, return_dict_in_generate=True)
    assert torch.equal(plain, ours.sequences)
    assert ours.tree_sizing.num_plain_steps >= 2  # it measures, as with trees
    for tree, _ in ours.draft_trees:
        assert torch.equal(tree.parents[0], torch.arange(tree.num_nodes) - 1)


def test_a_broken_head_never_changes_the_text():
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS)
    draft = use_options(random_draft(target), draft_tree="auto")
    with torch.no_grad():
        draft.lm_head.weight.fill_(torch.nan)
    settings = {**inputs, "max_new_tokens": 30, "do_sample": False}
    assert torch.equal(target.generate(**settings), target.generate(**settings, assistant_model=draft))


@pytest.mark.parametrize(("kind", "is_sized"), [(None, True), ("auto", True), ("dynamic", False)])
def test_a_head_that_nobody_chose_a_tree_for_is_sized_on_a_cpu(kind, is_sized, tmp_path):
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS[:1])
    head = EagleDraftModel(random_draft(target).config)
    assert head.generation_config.draft_tree is None
    head.generation_config.draft_tree = kind
    head.save_pretrained(tmp_path)
    head = EagleDraftModel.from_pretrained(tmp_path)
    settings = {**inputs, "max_new_tokens": 12, "do_sample": False}
    ours = target.generate(**settings, assistant_model=head, return_dict_in_generate=True)
    assert torch.equal(target.generate(**settings), ours.sequences)
    assert (ours.tree_sizing is not None) is is_sized
