"""
The promise: with a draft the text is the one that plain `generate` writes. Greedy token for token, sampling seed for
seed, for every architecture, batch size and way of finishing. The drafts are scripted, so that accepts, rejections and
second branches all occur (asserted below).
"""

import pytest
import torch
from architectures import ARCHITECTURES, VOCAB_SIZE
from doubles import ScriptedDrafter, random_draft, scripted
from promises import NEW_TOKENS, PROMPT_LENGTHS, an_eos_token, left_padded_prompts, target_of, with_and_without_draft

from eagle_hf.generation import opening
from eagle_hf.versions import cache_of


@pytest.fixture(params=["path", "nodes"])
def single_rows(request, monkeypatch):
    """How single rows are walked: along their path, as on a CPU, and at all nodes at once, as elsewhere."""
    if request.param == "nodes":
        monkeypatch.setattr(opening, "reads_freely", lambda device: False)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "sampling", [{"do_sample": False}, {"do_sample": True, "top_k": 20}], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
def test_output_and_generator_are_those_of_plain_generate(monkeypatch, name, sampling, lengths):
    target, inputs = target_of(name), left_padded_prompts(lengths)
    plain, ours, plain_state, our_state = with_and_without_draft(
        monkeypatch, target, inputs, eos_token_id=an_eos_token(target, inputs, **sampling), **sampling
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(plain_state, our_state)
    assert ours.target_forwards < plain.sequences.shape[1] - inputs["input_ids"].shape[1]  # drafts were accepted


@pytest.mark.parametrize(
    "name", ["llama", "gemma3-mixed", "mistral-sliding", "deepseek-v3-mla", "gpt2-learned-positions"]
)
@pytest.mark.parametrize("seed", range(5))
def test_many_random_trees_and_seeds(monkeypatch, name, seed):
    target, inputs = target_of(name), left_padded_prompts(PROMPT_LENGTHS[seed % 2 :])
    plain, ours, plain_state, our_state = with_and_without_draft(
        monkeypatch, target, inputs, seed=seed, drafter_seed=seed, eos_token_id=None, do_sample=True, top_p=0.9
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(plain_state, our_state)
    assert {1, 2, 3} <= {n for row in ours.acceptance_lengths for n in row}  # rejections and accepts


@pytest.mark.usefixtures("single_rows")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sampling", [{}, {"top_k": 12, "temperature": 0.8}], ids=["plain", "processed"])
def test_single_rows_are_sampled_seed_for_seed(monkeypatch, seed, sampling):
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS[:1])
    eos = an_eos_token(target, inputs, do_sample=True, **sampling)
    plain, ours, plain_state, our_state = with_and_without_draft(
        monkeypatch, target, inputs, seed=seed, drafter_seed=seed, eos_token_id=eos, do_sample=True, **sampling
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(plain_state, our_state)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 7])
@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
def test_length_is_exact_however_few_tokens_are_wanted(monkeypatch, max_new_tokens, lengths):
    target, inputs = target_of("llama"), left_padded_prompts(lengths)
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, do_sample=False, eos_token_id=None, max_new_tokens=max_new_tokens
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert all(sum(row) == max_new_tokens - 1 for row in ours.acceptance_lengths)


@pytest.mark.usefixtures("single_rows")
@pytest.mark.parametrize("position", range(NEW_TOKENS))
def test_end_of_sequence_inside_an_accepted_block_ends_the_text(monkeypatch, position):
    target, inputs = target_of("mistral-sliding"), left_padded_prompts(PROMPT_LENGTHS[:1])
    tokens = target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    eos = int(tokens[0, inputs["input_ids"].shape[1] + position])
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, do_sample=False, eos_token_id=[eos, 2], drafter_seed=position
    )
    assert torch.equal(plain.sequences, ours.sequences)


def test_num_return_sequences(monkeypatch):
    target, inputs = target_of("qwen3"), left_padded_prompts((7,))
    inputs = {name: tensor.repeat_interleave(3, 0) for name, tensor in inputs.items()}
    plain, ours, *states = with_and_without_draft(monkeypatch, target, inputs, do_sample=True, eos_token_id=None)
    single = {name: tensor[:1] for name, tensor in inputs.items()}
    torch.manual_seed(0)
    returned = target.generate(
        **single, max_new_tokens=NEW_TOKENS, do_sample=True, eos_token_id=None, num_return_sequences=3,
        assistant_model=random_draft(target),
    )  # fmt: skip
    assert torch.equal(returned, plain.sequences)
    assert torch.equal(ours.sequences, plain.sequences)
    assert torch.equal(*states)


PROCESSORS = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 12},
    {"bad_words_ids": [[5], [7, 8]]},
    {"exponential_decay_length_penalty": (4, 1.2)},
    {"sequence_bias": {(5,): 3.0, (6, 7): -2.0}},
    {"guidance_scale": 1.5},
    {"suppress_tokens": [4, 9]},
]
WARPERS = [  # for sampling only
    {"temperature": 0.7, "top_k": 12, "top_p": 0.8},
    {"min_p": 0.05, "renormalize_logits": True},
    {"typical_p": 0.7},
    {"epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.02, "remove_invalid_values": True},
]
PROCESSED_CALLS = [
    *({**processors, "do_sample": do_sample} for processors in PROCESSORS for do_sample in (False, True)),
    *({**warpers, "do_sample": True} for warpers in WARPERS),
]


@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
@pytest.mark.parametrize(
    "options", PROCESSED_CALLS, ids=lambda options: f"{next(iter(options))}-{options['do_sample']}"
)
def test_logits_processors_see_what_they_would_have_seen(monkeypatch, options, lengths):
    target, inputs = target_of("llama"), left_padded_prompts(lengths)
    plain, ours, *states = with_and_without_draft(
        monkeypatch, target, inputs, eos_token_id=an_eos_token(target, inputs, do_sample=False), **options
    )
    assert torch.equal(plain.sequences, ours.sequences)
    assert torch.equal(*states)


def test_prefix_allowed_tokens_fn_gets_its_batch_row(monkeypatch):
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS)

    def allowed(batch_id, ids):
        return [t for t in range(3, VOCAB_SIZE) if (t + int(ids[-1]) + batch_id) % 3]

    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, do_sample=False, eos_token_id=None, prefix_allowed_tokens_fn=allowed
    )
    assert torch.equal(plain.sequences, ours.sequences)


@pytest.mark.usefixtures("single_rows")
@pytest.mark.parametrize("lengths", [PROMPT_LENGTHS[:1], PROMPT_LENGTHS], ids=["single", "ragged"])
@pytest.mark.parametrize("penalty", [None, 1.2], ids=["all-nodes", "token-by-token"])
def test_scores_and_logits_are_those_of_plain_generate(monkeypatch, lengths, penalty):
    target, inputs = target_of("qwen2-mixed"), left_padded_prompts(lengths)
    plain, ours, *_ = with_and_without_draft(
        monkeypatch, target, inputs, do_sample=True, top_k=8, eos_token_id=None, output_scores=True, output_logits=True,
        repetition_penalty=penalty,
    )  # fmt: skip
    assert len(plain.scores) == len(ours.scores) == len(ours.logits) == NEW_TOKENS
    for name in ("scores", "logits"):
        for expected, got in zip(getattr(plain, name), getattr(ours, name), strict=True):
            torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3-mixed", "deepseek-v2-mla"])
@pytest.mark.parametrize("penalty", [None, 1.2], ids=["all-nodes", "token-by-token"])
def test_returned_cache_is_that_of_plain_generate(monkeypatch, name, penalty):
    """Rows end at different times; what the cache holds of each row equals what plain `generate` leaves there."""
    target, inputs = target_of(name), left_padded_prompts(PROMPT_LENGTHS)
    eos = an_eos_token(target, inputs, do_sample=False, repetition_penalty=penalty)
    for seed in range(3):
        plain, ours, *_ = with_and_without_draft(
            monkeypatch,
            target,
            inputs,
            do_sample=False,
            eos_token_id=eos,
            repetition_penalty=penalty,
            drafter_seed=seed,
        )
        assert torch.equal(plain.sequences, ours.sequences)
        caches = cache_of(plain), cache_of(ours)
        assert caches[0].get_seq_length() == caches[1].get_seq_length() == plain.sequences.shape[1] - 1
        real = torch.cat([inputs["attention_mask"], (plain.sequences != 0)[:, inputs["input_ids"].shape[1] :]], 1)[
            :, :-1
        ]
        for expected, got in zip(*(cache.layers for cache in caches), strict=True):
            assert got.keys.shape == expected.keys.shape
            columns = real[:, -got.keys.shape[2] :].bool()[:, None, :, None]
            for states in ("keys", "values"):
                difference = (getattr(got, states) - getattr(expected, states)).abs() * columns
                assert difference.max() < 2e-4
            assert getattr(got, "record_past", False) is False


def test_text_is_exact_beyond_the_authors_trees_too(monkeypatch):
    """A single long path and a bush of one level are trees as well."""
    target, inputs = target_of("llama"), left_padded_prompts(PROMPT_LENGTHS)
    plain = target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    truth = plain[:, inputs["input_ids"].shape[1] :].tolist()
    for num_nodes, depth in ((12, 12), (12, 1), (2, 1)):
        scripted(monkeypatch, lambda n=num_nodes, d=depth: ScriptedDrafter(truth, 0, num_nodes=n, max_depth=d))
        ours = target.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            assistant_model=random_draft(target),
        )
        assert torch.equal(plain, ours)
