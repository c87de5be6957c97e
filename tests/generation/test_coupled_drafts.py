"""Sampled text drafted with its own random numbers: the same text, the same generator, more of it accepted."""

import functools
from pathlib import Path

import pytest
import torch
from conftest import use_options
from doubles import random_draft
from promises import PROMPT_LENGTHS, left_padded_prompts, target_of
from transformers import AutoModelForCausalLM

from eagle_hf import EagleDraftModel
from eagle_hf.generation import opening
from eagle_hf.generation.choosing import NodeChooser
from eagle_hf.generation.token_chooser import TokenChooser


CARDS = Path(__file__).parents[2] / "hub_cards"


@functools.cache
def demo_pair():
    target = AutoModelForCausalLM.from_pretrained(CARDS / "demo-llama-10m")
    return target, EagleDraftModel.from_pretrained(CARDS / "EAGLE3-demo-llama-10m")


PROMPT = torch.tensor([[1, 520, 884, 300, 17, 2090, 411]])


def sampled(target, draft, seed, inputs=None, **options):
    torch.manual_seed(seed)
    inputs = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)} if inputs is None else inputs
    settings = {"max_new_tokens": 48, "do_sample": True, "top_k": 0, "eos_token_id": None, **options}
    output = target.generate(**inputs, **settings, assistant_model=draft, return_dict_in_generate=True)
    return output, torch.get_rng_state()


def accepted(target, draft, is_coupled, **options):
    """Drafted tokens that were accepted, over some seeds; the text is that of plain `generate` every time."""
    total = 0
    for seed in range(4):
        use_options(draft, num_assistant_tokens=12, draft_depth=4, draft_width=3, draft_coupling=is_coupled)
        plain, plain_state = sampled(target, None, seed, **options)
        ours, state = sampled(target, draft, seed, **options)
        assert torch.equal(plain.sequences, ours.sequences)
        assert torch.equal(plain_state, state)
        total += sum(n - 1 for row in ours.acceptance_lengths for n in row)
    return total


@pytest.mark.parametrize(
    ("options", "factor"),
    [({}, 1.3), ({"temperature": 0.8}, 1.05), ({"top_p": 0.9}, 1.1), ({"repetition_penalty": 1.05}, 1.2)],
    ids=["as it is", "colder", "nucleus", "token by token"],
)
@pytest.mark.parametrize("chooser", ["path", "nodes"])
def test_more_is_accepted_of_the_same_text(monkeypatch, options, factor, chooser):
    if chooser == "nodes":
        monkeypatch.setattr(opening, "reads_freely", lambda device: False)
    target, draft = demo_pair()
    assert accepted(target, draft, True, **options) > factor * accepted(target, draft, False, **options)


def test_rows_of_a_batch_have_noise_of_their_own():
    target, draft = demo_pair()
    ids = torch.cat([PROMPT, PROMPT.roll(2)]).repeat(2, 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert accepted(target, draft, True, inputs=inputs) > 1.15 * accepted(target, draft, False, inputs=inputs)


def test_noise_of_another_column_is_worth_nothing(monkeypatch):
    """Negative control: what is gained comes from the noise being the right one."""
    target, draft = demo_pair()
    right = accepted(target, draft, True)
    ahead = NodeChooser.noise_ahead
    monkeypatch.setattr(
        NodeChooser, "noise_ahead", lambda self, n: tuple(x.roll(1, -1) if x.dim() else x for x in ahead(self, n))
    )
    assert accepted(target, draft, True) < 0.7 * right


@pytest.mark.parametrize("kind", ["dynamic", "auto", "static", "chain"])
@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
@pytest.mark.parametrize("penalty", [None, 1.2], ids=["all nodes", "token by token"])
def test_every_kind_of_tree_can_be_coupled(kind, lengths, penalty):
    target, inputs = target_of("llama"), left_padded_prompts(lengths)
    draft = use_options(random_draft(target), draft_tree=kind, num_assistant_tokens=6, draft_depth=3, draft_width=2)
    options = {"inputs": inputs, "eos_token_id": 5, "repetition_penalty": penalty, "max_new_tokens": 24}
    for seed in range(2):
        plain, plain_state = sampled(target, None, seed, **options)
        ours, state = sampled(target, draft, seed, **options)
        assert torch.equal(plain.sequences, ours.sequences)
        assert torch.equal(plain_state, state)


@pytest.mark.parametrize("kind", ["dynamic", "auto", "static", "chain"])
def test_parallel_heads_draft_chains_whatever_the_options_say(kind):
    """Deeper than the static tree of the defaults, whose levels are not theirs."""
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS)
    draft = random_draft(target, parallel_drafting=True, mask_token_id=4)
    use_options(draft, draft_tree=kind, draft_depth=8, num_assistant_tokens=8)
    plain, plain_state = sampled(target, None, 0, inputs)
    ours, state = sampled(target, draft, 0, inputs)
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(plain_state, state)


def test_looking_ahead_leaves_the_generator_where_it_was(monkeypatch):
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS)
    ahead, calls = TokenChooser.noise_ahead, []

    def watched(self, num_tokens):
        before = torch.get_rng_state()
        noise = ahead(self, num_tokens)
        calls.append(torch.equal(before, torch.get_rng_state()))
        return noise

    monkeypatch.setattr(TokenChooser, "noise_ahead", watched)
    sampled(target, random_draft(target), 0, inputs=inputs, repetition_penalty=1.2)
    assert calls
    assert all(calls)


def test_greedy_drafts_have_no_noise(monkeypatch):
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS)
    monkeypatch.setattr("eagle_hf.drafting.coupling.for_vocabulary", lambda *args: pytest.fail("noise"))
    for penalty in (None, 1.2):
        target.generate(
            **inputs,
            assistant_model=random_draft(target),
            do_sample=False,
            repetition_penalty=penalty,
            max_new_tokens=5,
        )
