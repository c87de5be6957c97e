"""
The head as a candidate generator of `transformers`: in its own decoding loop, with ours switched off, the text is that
of plain `generate`, what is accepted is what our loop accepts of a chain, and sampling is exact.
"""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
from architectures import tiny_target
from conftest import GOLDEN, golden_draft
from doubles import random_draft
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.utils import _speculative_sampling

import eagle_hf
from eagle_hf import EagleCandidateGenerator, EagleGenerateOutput
from eagle_hf.generation import seam
from eagle_hf.generation.chosen_chain import ChosenChain
from eagle_hf.versions import STATIC_WINDOWS_GO_BACK, hidden_states_argument


PROMPT = torch.tensor([[17, 104, 9, 33, 50]])
CALL = {"max_new_tokens": 24, "eos_token_id": None, "do_sample": False, "return_dict_in_generate": True}
SOURCES = Path(eagle_hf.__file__).parent
HEADS = ["A_eagle3", "A_eagle1", "A_eagle3_narrow"]  # 80 of 128 tokens; the target's lm_head; 128 tokens, narrower


@pytest.fixture
def stock():
    seam.uninstall()
    yield
    seam.install()


@pytest.fixture(scope="module")
def target():
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "targets" / "A").eval()


def in_stock_loop(target, draft, prompt=PROMPT, options=None, **kwargs):
    """What the loop of `transformers` writes, and how many tokens every verification added."""
    with EagleCandidateGenerator.assisting(target, draft, **(options or {})) as assistant:
        output = target.generate(prompt, assistant_model=assistant, **CALL | kwargs)
    assert not isinstance(output, EagleGenerateOutput)
    return output.sequences, assistant.acceptance_lengths


def in_our_loop(target, draft, prompt=PROMPT, options=None, **kwargs):
    seam.install()
    chain = {"draft_tree": "chain"} | (options or {})
    output = target.generate(prompt, assistant_model=draft, **chain, **CALL | kwargs)
    seam.uninstall()
    return output.sequences, output.acceptance_lengths[0]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("depth", [1, 4])
def test_greedy_text_is_the_same_and_as_much_is_accepted_as_of_our_own_chain(stock, target, name, depth):
    draft = golden_draft(name)
    plain = target.generate(PROMPT, **CALL).sequences
    text, lengths = in_stock_loop(target, draft, options={"draft_depth": depth})
    assert torch.equal(text, plain)
    ours, expected = in_our_loop(target, draft, options={"draft_depth": depth})
    assert torch.equal(ours, plain)
    assert lengths == expected
    assert max(lengths) > 1
    assert max(lengths) <= depth + 1


def test_thresholds_end_both_chains_at_the_same_place(stock, target):
    draft, options = golden_draft("A_eagle3"), {"draft_threshold": 0.3, "draft_depth": 4}
    text, lengths = in_stock_loop(target, draft, options=options)
    ours, expected = in_our_loop(target, draft, options=options)
    assert torch.equal(text, ours)
    assert lengths == expected != in_our_loop(target, draft, options={"draft_depth": 4})[1]


def test_an_end_of_text_inside_a_chain_ends_the_text(stock, target):
    draft = golden_draft("A_eagle1")
    new = target.generate(PROMPT, **CALL).sequences[0, 5:].tolist()
    for eos in sorted({new[3], new[6], new[9]}):
        plain = target.generate(PROMPT, **CALL | {"eos_token_id": eos}).sequences
        text, lengths = in_stock_loop(target, draft, eos_token_id=eos)
        assert torch.equal(text, plain)
        assert sum(lengths) == plain.shape[1] - 5 - 1


def test_processors_hold_for_drafts_too(stock, target):
    same = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "suppress_tokens": [7, 8]}
    text, lengths = in_stock_loop(target, golden_draft("A_eagle3"), **same)
    assert torch.equal(text, target.generate(PROMPT, **CALL | same).sequences)
    assert max(lengths) > 1


def test_left_padding_counts_for_nothing(stock, target):
    padded = {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]])}
    prompt = torch.cat([torch.zeros(1, 2, dtype=torch.long), PROMPT], dim=1)
    draft = golden_draft("A_eagle3")
    text, lengths = in_stock_loop(target, draft, prompt, **padded)
    assert torch.equal(text[:, 7:], target.generate(PROMPT, **CALL).sequences[:, 5:])
    assert lengths == in_stock_loop(target, draft)[1]


@pytest.mark.parametrize("own_lm_head", [True, False], ids=["own-lm-head", "borrowed-lm-head"])
@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize(
    "name", ["gemma3-mixed", *(pytest.param(n, marks=pytest.mark.sweep) for n in ("llama", "gpt2-learned-positions"))]
)
def test_any_head_and_target(stock, name, version, own_lm_head):
    target = tiny_target(name)
    draft = random_draft(target, version, draft_vocab_size=target.config.vocab_size if own_lm_head else None)
    text, _ = in_stock_loop(target, draft, PROMPT % 90 + 3)
    assert torch.equal(text, target.generate(PROMPT % 90 + 3, **CALL).sequences)


@pytest.mark.parametrize("do_sample", [False, True])
def test_heads_that_draft_in_parallel(stock, do_sample):
    target = tiny_target("llama")
    draft = random_draft(target, parallel_drafting=True, mask_token_id=4)
    prompt, options = PROMPT % 90 + 3, {"draft_depth": 4}
    text, lengths = in_stock_loop(target, draft, prompt, options, do_sample=do_sample)
    assert text.shape[1] == 29
    if not do_sample:
        ours, expected = in_our_loop(target, draft, prompt, options)
        assert torch.equal(text, ours)
        assert lengths == expected


def test_features_before_the_final_norm_are_read_by_hooks_that_go_with_the_call(stock):
    target = tiny_target("llama")
    draft = random_draft(target, feature_layer_ids=[1, 2, 3])
    text, _ = in_stock_loop(target, draft, PROMPT % 90 + 3)
    assert torch.equal(text, target.generate(PROMPT % 90 + 3, **CALL).sequences)
    hooks = [hook for module in target.modules() for hook in module._forward_hooks.values()]
    assert not [hook for hook in hooks if getattr(hook, "func", hook).__module__.startswith("eagle_hf")]


def test_hidden_states_that_were_asked_for_are_complete(stock, target):
    with EagleCandidateGenerator.assisting(target, golden_draft("A_eagle3")) as assistant:
        output = target.generate(PROMPT, assistant_model=assistant, output_hidden_states=True, **CALL)
    assert all(state is not None for state in output.hidden_states[0])


@pytest.mark.skipif(not STATIC_WINDOWS_GO_BACK, reason="the loop of transformers takes static caches since 5.24")
@pytest.mark.parametrize("name", HEADS[:2])
def test_static_caches(stock, target, name):
    text, lengths = in_stock_loop(target, golden_draft(name), cache_implementation="static")
    assert torch.equal(text, target.generate(PROMPT, **CALL).sequences)
    assert lengths == in_stock_loop(target, golden_draft(name))[1]


# ---------------------------------------------------------------------------- protocol


def test_one_class_calls_the_head():
    """Whatever is drafted, for whichever loop, is computed in one place."""
    callers = set()
    for folder in ("drafting", "generation", "target", "fast"):
        for path in (SOURCES / folder).rglob("*.py"):
            for part in ast.parse(path.read_text()).body:
                called = {ast.unparse(call.func) for call in ast.walk(part) if isinstance(call, ast.Call)}
                if any(re.search(r"\bdraft\.(step|forward)$|\bdraft$|\.compute_logits$", name) for name in called):
                    callers.add(part.name)
    assert callers == {"CompleteHead"}


def test_it_is_what_transformers_calls_a_candidate_generator():
    assert issubclass(EagleCandidateGenerator, CandidateGenerator)
    assert EagleCandidateGenerator.requires_model_outputs


def generator_of(target, draft, processors=None, **config):
    config = GenerationConfig(**{"max_length": 40, "do_sample": False} | config)
    options = {"draft_tree": "dynamic", "draft_depth": 3}
    return EagleCandidateGenerator(target, draft, config, LogitsProcessorList(processors or []), **options)


@torch.no_grad()
def step(generator, target, ids):
    """The candidates after a prompt, as the loop of `transformers` asks for them."""
    wanted = generator.model_kwargs_overrides
    assert generator.get_candidates(ids[:, :-1], is_first_iteration=True)[1] is None
    outputs = target(ids[:, :-1], use_cache=False, **wanted)
    kwargs = {"position_ids": torch.arange(ids.shape[1])[None], "attention_mask": None}
    return generator.get_candidates(
        ids, model_kwargs=kwargs, model_outputs=outputs, is_first_iteration=False, n_last_matches=0
    )


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_those_of_the_targets_vocabulary(target, name):
    draft = golden_draft(name)
    ids, logits = step(generator_of(target, draft), target, PROMPT)
    assert logits.shape == (1, 3, target.config.vocab_size)
    assert logits.dtype == torch.float32
    assert not logits.is_inference()
    assert not ids.is_inference()
    assert torch.equal(ids[:, :5], PROMPT)
    assert torch.equal(ids[0, 5:], logits[0].argmax(-1))
    unknown = torch.ones(target.config.vocab_size, dtype=torch.bool)
    unknown[draft.draft_to_target_ids] = False
    assert torch.equal(logits[0].isneginf(), unknown.expand(3, -1))


def test_it_asks_for_the_hidden_states_that_the_head_reads(target):
    draft = golden_draft("A_eagle3")
    wanted = generator_of(target, draft).model_kwargs_overrides["output_hidden_states"]
    assert wanted == hidden_states_argument(draft.config.resolve_feature_layer_ids(target.config.num_hidden_layers))


@pytest.mark.parametrize("length", [6, 7, 8])
def test_nothing_is_drafted_beyond_the_longest_text(target, length):
    ids, logits = step(generator_of(target, golden_draft("A_eagle3"), max_length=length), target, PROMPT)
    assert ids.shape[1] == length - 1
    assert (logits is None) == (length == 6)


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_broken_head_costs_speed_and_nothing_else(stock, target, do_sample):
    draft = golden_draft("A_eagle3")
    draft.lm_head.weight.data.fill_(torch.nan)
    text, lengths = in_stock_loop(target, draft, do_sample=do_sample)
    assert set(lengths) == {1}
    assert do_sample or torch.equal(text, target.generate(PROMPT, **CALL).sequences)


def test_processors_that_leave_nothing_of_the_draft_vocabulary_end_the_chain(stock, target):
    draft = golden_draft("A_eagle3")
    known = draft.draft_to_target_ids.tolist()
    text, lengths = in_stock_loop(target, draft, suppress_tokens=known, do_sample=True)
    assert not set(text[0, 5:].tolist()) & set(known)
    assert set(lengths) == {1}


def test_trees_come_from_the_same_drafter(target):
    draft, roots = golden_draft("A_eagle3"), PROMPT[:, -1]
    generator = generator_of(target, draft)
    chain, _ = step(generator, target, PROMPT)
    tree = generator.get_tree(roots, 3)
    assert tree.num_nodes > 4
    likeliest = [int(roots)]
    node = 0
    for _ in range(3):
        children = (tree.parents[0] == node).nonzero().flatten()
        node = int(children[tree.scores[0, children].argmax()])
        likeliest.append(int(tree.tokens[0, node]))
    assert likeliest == chain[0, 4:].tolist()
    assert torch.equal(tree.tokens, generator.get_tree(roots, 3).tokens)  # and leave nothing behind


@pytest.mark.parametrize("options", [{"draft_dept": 3}, {"draft_depth": 0}, {"depth": 3}], ids=str)
def test_wrong_options_are_refused(stock, target, options):
    with pytest.raises(ValueError, match="draft_depth|unknown"):
        in_stock_loop(target, golden_draft("A_eagle3"), options=options)


@pytest.mark.parametrize("asked", [{"use_mtp": True}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_other_drafts_beside_it_are_refused(stock, target, asked):
    with pytest.raises(ValueError, match="other drafts"):
        in_stock_loop(target, golden_draft("A_eagle3"), **asked)


# ---------------------------------------------------------------------------- sampling


def verified_by_transformers(monkeypatch, token, q_logits, p_logits):
    """
    What the loop of `transformers` does with one draft: the ratio up to which it accepts it, and the distribution from
    which it takes another token where it does not.
    """
    seen = {}

    def reject(ratio):
        seen["ratio"] = float(ratio)
        return torch.full_like(ratio, torch.inf)

    def take_first(probs, num_samples):
        seen["otherwise"] = probs[0].clone()
        return torch.zeros(1, 1, dtype=torch.long)

    candidates, new_logits = torch.tensor([[1, token]]), torch.stack([p_logits, p_logits], dim=1)
    is_done = [False] * (list(inspect.signature(_speculative_sampling).parameters)[4] != "assistant_ensemble_weight")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand_like", reject)
        patch.setattr(torch, "multinomial", take_first)
        _speculative_sampling(candidates, q_logits, 1, new_logits, *is_done)
    return min(seen["ratio"], 1.0), seen["otherwise"]


WARPERS = pytest.mark.parametrize(
    "warpers",
    [[], [TemperatureLogitsWarper(0.6)], [TemperatureLogitsWarper(1.5), TopKLogitsWarper(4)]],
    ids=["plain", "temperature", "temperature-top-k"],
)


@pytest.fixture(params=[True, False], ids=["reduced-vocabulary", "whole-vocabulary"])
def tiny_pair(request):
    target = tiny_target("llama")
    draft = random_draft(target, draft_vocab_size=24 if request.param else 96)
    if request.param:
        draft.set_draft_vocabulary(torch.arange(24) * 4)
    return target, draft


@WARPERS
def test_one_sampled_step_has_the_targets_distribution(tiny_pair, warpers, monkeypatch):
    """Over all drafts of a tiny vocabulary: the chance of each by the logits returned, times what becomes of it."""
    target, draft = tiny_pair
    prompt = PROMPT % 90 + 3
    with torch.no_grad():
        p_logits = target(prompt, use_cache=False).logits[:, -1].float()
    p_logits = LogitsProcessorList(warpers)(prompt, p_logits)
    ids, q_logits = step(generator_of(target, draft, warpers, do_sample=True), target, prompt)
    q_logits = q_logits[:, :1]
    q, reached = q_logits[0, 0].softmax(-1), torch.zeros(96)
    assert q[ids[0, 5]] > 0
    for token in q.nonzero().flatten().tolist():
        accepted, otherwise = verified_by_transformers(monkeypatch, token, q_logits, p_logits)
        reached[token] += q[token] * accepted
        if accepted < 1:
            reached += q[token] * (1 - accepted) * otherwise
    torch.testing.assert_close(reached, p_logits[0].softmax(-1), atol=1e-6, rtol=0)


@WARPERS
def test_drafts_are_drawn_from_the_logits_that_are_returned(tiny_pair, warpers):
    target, draft = tiny_pair
    generator = generator_of(target, draft, warpers, do_sample=True)
    vocab = draft.config.draft_vocab_size
    logits = torch.linspace(-2, 2, vocab)[torch.randperm(vocab, generator=torch.Generator().manual_seed(0))][None]
    torch.manual_seed(0)
    counts, num_draws = torch.zeros(96), 1000
    for _ in range(num_draws):
        chain = ChosenChain(generator._choice, PROMPT, vocab_size=96)
        counts[chain.choose(logits)] += 1
    _, scores = chain.candidates()
    whole = torch.full((1, 96), -torch.inf).index_copy_(1, draft.draft_to_target_ids, logits)
    torch.testing.assert_close(scores[0], LogitsProcessorList(warpers)(PROMPT, whole))
    expected = scores[0, 0].softmax(-1) * num_draws
    assert not counts[expected == 0].any()
    often = expected > 5
    chi2 = ((counts - expected)[often] ** 2 / expected[often]).sum()
    assert chi2 < often.sum() + 4 * (2 * often.sum()).sqrt()


@pytest.mark.parametrize("name", HEADS[:2])
def test_sampled_texts_take_drafts_and_stay_in_the_targets_vocabulary(stock, target, name):
    torch.manual_seed(0)
    text, lengths = in_stock_loop(target, golden_draft(name), do_sample=True, temperature=0.7)
    assert text.shape[1] == 29
    assert max(lengths) > 1


# ---------------------------------------------------------------------------- into the loop and out of it


def test_nothing_is_left_behind(stock, target):
    draft = golden_draft("A_eagle3")
    before = dict(vars(target))
    with EagleCandidateGenerator.assisting(target, draft) as assistant:
        assert "_get_candidate_generator" in vars(target)
        with pytest.raises(ValueError, match="batch_size"):
            target.generate(PROMPT.expand(2, -1), assistant_model=assistant, **CALL)
    assert vars(target) == before
    with EagleCandidateGenerator.assisting(target, draft), EagleCandidateGenerator.assisting(target, draft):
        pass
    assert vars(target) == before


def test_contexts_may_end_in_any_order_and_other_assistants_pass(stock, target):
    draft, text = golden_draft("A_eagle3"), target.generate(PROMPT, **CALL).sequences
    first, second = (EagleCandidateGenerator.assisting(target, draft) for _ in range(2))
    first.__enter__()
    assistant = second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(target.generate(PROMPT, assistant_model=assistant, **CALL).sequences, text)
    assert torch.equal(target.generate(PROMPT, assistant_model=target, **CALL).sequences, text)
    second.__exit__(None, None, None)
    assert "_get_candidate_generator" not in vars(target)


def test_it_goes_with_our_own_loop_installed_as_well(target):
    text, lengths = in_stock_loop(target, golden_draft("A_eagle3"))
    assert torch.equal(text, target.generate(PROMPT, **CALL).sequences)
    assert max(lengths) > 1
