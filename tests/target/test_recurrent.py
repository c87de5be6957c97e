"""Targets with recurrent layers verify chains from a copy of their state, and read accepted tokens again."""

import copy
import functools

import pytest
import torch
from architecture_verdicts import PROMPTS, texts
from doubles import ScriptedChainDrafter, random_draft, scripted
from every_decoder import tiny_decoder
from transformers import DynamicCache

from eagle_hf.target.probe import can_verify_trees
from eagle_hf.target.recurrent import DeferredReplay
from eagle_hf.target.recurrent_target import RecurrentTarget
from eagle_hf.versions import CACHE, cache_of


TARGETS = pytest.mark.parametrize("name", ["qwen3_next", "mamba2", "falcon_h1", "nemotron_h"])
decoder_of = functools.lru_cache(maxsize=None)(tiny_decoder)


def generate(monkeypatch, target, rows=1, seed=0, hit_rate=0.8, **kwargs):
    """Outputs of plain `generate` and of `generate` with chains that are partly right."""
    inputs = {name: tensor[:rows] for name, tensor in PROMPTS.items()}
    kwargs = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True} | kwargs
    outputs = []
    for draft in (None, random_draft(target)):
        if draft is not None:
            truth = outputs[0].sequences[:, inputs["input_ids"].shape[1] :].tolist()
            scripted(monkeypatch, lambda truth=truth: ScriptedChainDrafter(truth, seed, hit_rate=hit_rate))
        torch.manual_seed(seed)
        outputs.append(target.generate(**inputs, assistant_model=draft, **kwargs))
    return outputs


def states(cache):
    """Every tensor of a cache."""
    found = []
    for layer in cache.layers:
        found += [getattr(layer, name) for name in ("keys", "values") if getattr(layer, name, None) is not None]
        for name in ("conv_states", "recurrent_states"):
            found += [state for state in getattr(layer, name, {}).values() if state is not None]
    return found


@TARGETS
@pytest.mark.parametrize("rows", [1, 2], ids=["single", "ragged"])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_text_and_generator_are_those_of_plain_generate(monkeypatch, name, rows, do_sample):
    target = decoder_of(name)
    for seed in range(2):
        plain, ours = generate(monkeypatch, target, rows, seed, do_sample=do_sample)
        assert torch.equal(plain.sequences, ours.sequences)
        assert ours.target_forwards < 30
        assert len({n for row in ours.acceptance_lengths for n in row}) > 2  # rejections and accepts


@TARGETS
@pytest.mark.parametrize("rows", [1, 2], ids=["single", "ragged"])
@pytest.mark.parametrize("hit_rate", [0.0, 0.6, 1.0], ids=["rejected", "mixed", "accepted"])
def test_returned_states_are_those_of_plain_generate(monkeypatch, name, rows, hit_rate):
    """Also for rows that end before the others: they read padding until the end, as in plain `generate`."""
    target = decoder_of(name)
    tokens = texts(target, "chains", rows=2, do_sample=False)[0][:, PROMPTS["input_ids"].shape[1] :]
    eos = next(token for token in tokens[0].tolist() if token not in tokens[1].tolist()[:6])
    plain, ours = generate(monkeypatch, target, rows, hit_rate=hit_rate, eos_token_id=eos)
    assert torch.equal(plain.sequences, ours.sequences)
    for expected, got in zip(states(cache_of(plain)), states(cache_of(ours)), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["qwen3_next", "falcon_h1"])
def test_a_second_turn_on_the_returned_cache(monkeypatch, name):
    target, sequences = decoder_of(name), []
    for output in generate(monkeypatch, target, max_new_tokens=9):
        monkeypatch.undo()
        ids = torch.cat([output.sequences, torch.tensor([[7, 9, 11]])], dim=1)
        for draft in (None, random_draft(target)):
            cache = copy.deepcopy(cache_of(output))
            sequences.append(
                target.generate(ids, **{CACHE: cache}, max_new_tokens=9, do_sample=False, assistant_model=draft)
            )
    assert all(torch.equal(sequence, sequences[0]) for sequence in sequences)


def test_the_draft_gets_the_features_of_every_token_once(monkeypatch):
    target, read = decoder_of("qwen3_next"), []

    class Recorder(ScriptedChainDrafter):
        def defer_prompt(self, states, *args):
            read.append(torch.cat(states, dim=-1))

        def read_accepted(self, features, tokens, counts):
            read.append(features)
            super().read_accepted(features, tokens, counts)

    plain, _ = generate(monkeypatch, target)
    truth = plain.sequences[:, 11:].tolist()
    scripted(monkeypatch, lambda: Recorder(truth, seed=0))
    target.generate(
        PROMPTS["input_ids"][:1], max_new_tokens=30, do_sample=False, eos_token_id=None,
        assistant_model=random_draft(target),
    )  # fmt: skip
    features = torch.cat(read, dim=1)[0]
    hidden_states = target(plain.sequences, output_hidden_states=True).hidden_states
    expected = torch.cat([hidden_states[i] for i in (0, 1, 2)], dim=-1)[0]
    torch.testing.assert_close(features, expected[: len(features)], atol=1e-4, rtol=1e-3)
    assert len(features) >= 36


def test_a_step_without_drafts_follows_where_many_tokens_wait(monkeypatch):
    lengths = []
    begin = DeferredReplay.begin

    def recorded(replay, tree):
        lengths.append((replay.num_pending, tree.num_nodes))
        return begin(replay, tree)

    monkeypatch.setattr(DeferredReplay, "begin", recorded)
    generate(monkeypatch, decoder_of("qwen3_next"), hit_rate=0.0, max_new_tokens=60)
    assert any(waiting >= DeferredReplay.MAX_PENDING for waiting, _ in lengths)
    assert all(num_nodes == 1 for waiting, num_nodes in lengths if waiting >= DeferredReplay.MAX_PENDING)
    assert max(waiting for waiting, _ in lengths) <= DeferredReplay.MAX_PENDING + 3


def test_a_state_that_is_not_brought_back_is_seen(monkeypatch):
    """The negative control: without the copy, rejected drafts stay in the state and the text differs."""
    target = decoder_of("qwen3_next")
    can_verify_trees(target)  # which would see it as well
    monkeypatch.setattr(DeferredReplay, "undo", lambda replay: None)
    with pytest.raises(AssertionError):  # raised by the scripted drafter, whose truth is plain `generate`'s text
        generate(monkeypatch, target)


@pytest.mark.parametrize("moment", ["verify", "keep", "catch_up"])
def test_an_exception_leaves_the_users_cache_at_a_token_boundary(monkeypatch, moment):
    target, prompt = decoder_of("qwen3_next"), PROMPTS["input_ids"][:1]
    truth = generate(monkeypatch, target)[0].sequences
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        outputs = original(*args, **kwargs)
        if moment == "catch_up" or len(calls) == 5:
            raise KeyboardInterrupt
        return outputs

    holder, name = (RecurrentTarget, moment) if moment != "catch_up" else (DeferredReplay, "caught_up")
    original = getattr(holder, name)
    monkeypatch.setattr(holder, name, interrupted)
    new = truth[0, prompt.shape[1] :].tolist()
    eos = max(new, key=new.index)  # the end comes while drafts are still made, so that tokens wait in the end
    scripted(monkeypatch, lambda: ScriptedChainDrafter([new], seed=2, hit_rate=0.5 if moment != "catch_up" else 0.0))
    cache = DynamicCache(config=target.config)
    with pytest.raises(KeyboardInterrupt):
        target.generate(
            prompt, **{CACHE: cache}, max_new_tokens=40, do_sample=False, eos_token_id=eos,
            assistant_model=random_draft(target),
        )  # fmt: skip
    monkeypatch.undo()
    read = cache.get_seq_length()
    assert prompt.shape[1] <= read < truth.shape[1]
    fresh = DynamicCache(config=target.config)
    target(truth[:, :read], **{CACHE: fresh}, use_cache=True)
    for expected, got in zip(states(fresh), states(cache), strict=True):
        torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-3)
