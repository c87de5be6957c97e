"""Retrieved branches change how many tokens a step yields, and never which."""

import pytest
import torch
from architectures import VOCAB_SIZE, tiny_target
from chain_only import CHAIN_ONLY, build
from conftest import use_options
from doubles import random_draft


def repeating_prompts(lengths=(24,)):
    """Left-padded prompts that say everything twice."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        half = torch.randint(3, VOCAB_SIZE, (length // 2,), generator=generator)
        ids[row, -2 * len(half) :] = torch.cat([half, half])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def generate(target, inputs, retrieval, **options):
    """Output with a draft that knows nothing, so that only retrieved tokens are accepted, and the generator's state."""
    draft = None
    if retrieval is not None:
        draft = use_options(
            random_draft(target), num_assistant_tokens=3, draft_depth=2, draft_width=2, draft_retrieval=retrieval
        )
    torch.manual_seed(3)
    output = target.generate(**inputs, assistant_model=draft, return_dict_in_generate=True, **options)
    return output, torch.get_rng_state()


@pytest.mark.parametrize("lengths", [(24,), (24, 10, 18)], ids=["single", "ragged"])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.2},
        {"do_sample": False, "no_repeat_ngram_size": 9},
        {"do_sample": True, "temperature": 0.02, "repetition_penalty": 1.001},
    ],
    ids=["greedy", "sampled", "greedy-prefix", "sampled-prefix"],
)
def test_the_text_is_that_of_plain_generate_in_fewer_verifications(options, lengths):
    target, inputs = tiny_target("llama"), repeating_prompts(lengths)
    options = {"max_new_tokens": 48, "eos_token_id": None, "pad_token_id": 0} | options
    plain, plain_state = generate(target, inputs, None, **options)
    without, _ = generate(target, inputs, 0, **options)
    retrieved, state = generate(target, inputs, 8, **options)
    assert torch.equal(retrieved.sequences, plain.sequences)
    assert torch.equal(state, plain_state)
    verifications = [sum(map(len, output.acceptance_lengths)) for output in (retrieved, without)]
    assert verifications[0] < verifications[1]  # or this test would prove nothing


@pytest.mark.parametrize("do_sample", [False, True])
def test_windows_hold_retrieved_nodes(do_sample):
    target, inputs = tiny_target("gemma3-mixed"), repeating_prompts((24, 10))
    options = {"max_new_tokens": 40, "eos_token_id": None, "do_sample": do_sample, "top_k": 3}
    plain, plain_state = generate(target, inputs, None, **options)
    retrieved, state = generate(target, inputs, 8, **options)
    assert torch.equal(retrieved.sequences, plain.sequences)
    assert torch.equal(state, plain_state)


def test_rows_stop_at_their_own_end():
    target, inputs = tiny_target("llama"), repeating_prompts((24, 10, 18))
    options = {"max_new_tokens": 48, "do_sample": False, "pad_token_id": 0}
    free = target.generate(**inputs, eos_token_id=None, **options)[:, 24:]
    for eos in (int(free[0, 20]), int(free[1, 9]), int(free[2, 3])):
        plain, _ = generate(target, inputs, None, eos_token_id=eos, **options)
        retrieved, _ = generate(target, inputs, 8, eos_token_id=eos, **options)
        assert torch.equal(retrieved.sequences, plain.sequences)


@pytest.mark.parametrize("kind", ["auto", "static", "chain"])
def test_every_kind_of_tree_can_be_extended(kind):
    target, inputs = tiny_target("llama"), repeating_prompts()
    plain = target.generate(**inputs, max_new_tokens=32, do_sample=False)
    draft = use_options(random_draft(target), draft_tree=kind, draft_retrieval=6)
    assert torch.equal(target.generate(**inputs, max_new_tokens=32, do_sample=False, assistant_model=draft), plain)


@pytest.mark.parametrize("lengths", [(24,), (24, 24)], ids=["single", "batch"])
def test_targets_that_verify_chains_only_get_the_retrieved_chain(lengths):
    target, inputs = build("bloom", **CHAIN_ONLY["bloom"]), repeating_prompts(lengths)
    options = {"max_new_tokens": 48, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain, _ = generate(target, inputs, None, **options)
    retrieved, _ = generate(target, inputs, 8, **options)
    assert torch.equal(retrieved.sequences, plain.sequences)
    assert retrieved.target_forwards < 48
