"""
A slice of `make lossless`, and what it is worth: broken on purpose, each part of the machinery is found out by the same
calls.
"""

import random

import lossless_cases
import pytest
import torch
from architectures import tiny_target
from lossless_cases import Call, Tree, draw_call, draw_tree, run_call

from eagle_hf import kv_cache
from eagle_hf.generation import inference_mode, layer_records, noise, probe, selection, sequences, target
from eagle_hf.tree import DraftTree


CALLS = 48


@pytest.mark.parametrize("first", range(0, CALLS, 8))
def test_a_slice_of_the_benchmark(first):
    for index in range(first, first + 8):
        rng = random.Random(f"0-{index}")  # as `benchmarks/lossless.py` draws them
        call, trees = draw_call(rng), [draw_tree(rng) for _ in range(4)]
        for tree, outcome in zip(trees, run_call(call, trees), strict=True):
            assert not outcome.mismatch or outcome.is_near_tie, (outcome, call, tree)


def test_calls_differ_and_are_the_same_again():
    calls = [repr(draw_call(random.Random(f"0-{index}"))) for index in range(400)]
    assert len(set(calls)) == 400
    assert calls[7] == repr(draw_call(random.Random("0-7")))
    text = " ".join(calls)
    for word in ("top_p", "guidance_scale", "synthid", "embeds", "second_turn", "streamer", "output_attentions"):
        assert word in text


def test_a_plain_step_in_a_static_cache_sees_no_node_of_an_earlier_tree():
    """What `make lossless` has found: the last step needs no tree, and had no mask."""
    call = Call("falcon-multi-query", (12,), 612090, "static_cache", {
        "max_new_tokens": 15, "do_sample": False, "output_hidden_states": True,
    }, eos=(52,))  # fmt: skip
    tree = Tree(eagle_version=1, seed=0, num_nodes=17, max_depth=6, hit_rate=1.0, kind="chain", width=4)
    assert [outcome.mismatch for outcome in run_call(call, [tree])] == [""]


SAMPLED = Call("llama", (9, 4, 7), 3, "ids", {"max_new_tokens": 20, "do_sample": True}, extras=("streamer",))
GREEDY = Call("llama", (9, 4, 7), 3, "ids", {"max_new_tokens": 20, "do_sample": False, "output_hidden_states": True})
TREE = Tree(eagle_version=0, seed=5, num_nodes=9, max_depth=4, hit_rate=0.8, kind="dynamic", width=2)


def mismatches(call):
    """What differs, but for near ties."""
    return [outcome.mismatch for outcome in run_call(call, [TREE]) if not outcome.is_near_tie]


def release_without_a_copy(layer, copy, real=kv_cache.GrowingLayer.release):
    real(layer, copy=False)


class TestNegativeControls:
    @pytest.mark.parametrize("call", [SAMPLED, GREEDY])
    def test_nothing_is_wrong_as_it_is(self, call):
        (outcome,) = run_call(call, [TREE])
        assert outcome.mismatch == ""
        assert outcome.accepted / outcome.verifications > 1.5

    def test_a_mask_that_shows_siblings(self, monkeypatch):
        monkeypatch.setattr(
            DraftTree,
            "ancestor_mask",
            lambda self: torch.ones(len(self.tokens), self.num_nodes, self.num_nodes, dtype=torch.bool).tril(),
        )
        monkeypatch.setattr(probe, "_VERDICTS", {})
        monkeypatch.setattr(probe, "_chain_logits", lambda *args: torch.full((2, 3, 96), torch.inf))
        with pytest.raises(ValueError, match="tree logits are off"):  # the probe comes first
            mismatches(GREEDY)

    def test_keys_left_in_the_wrong_column(self, monkeypatch):
        real = target.keep_nodes
        monkeypatch.setattr(
            target,
            "keep_nodes",
            lambda cache, lengths, paths, n: real(cache, lengths, [list(range(len(path))) for path in paths], n),
        )
        assert mismatches(GREEDY)

    def test_random_numbers_of_another_column(self, monkeypatch):
        real = noise.SamplingNoise.at_nodes
        monkeypatch.setattr(
            noise.SamplingNoise,
            "at_nodes",
            lambda self, columns, depths, depth: real(self, columns, depths.clamp(max=1), depth),
        )
        assert mismatches(SAMPLED) == ["sequences"]

    def test_a_generator_that_is_left_elsewhere(self, monkeypatch):
        monkeypatch.setattr(noise.SamplingNoise, "rewind", lambda self, columns: None)
        assert mismatches(SAMPLED) == ["state of the global generator"]

    def test_a_token_that_is_not_streamed(self, monkeypatch):
        real = sequences.Sequences._stream
        monkeypatch.setattr(sequences.Sequences, "_stream", lambda self, end: real(self, min(end, 25)))
        assert mismatches(SAMPLED) == ["what was streamed"]

    def test_hidden_states_of_another_node(self, monkeypatch):
        real = layer_records._node_state
        monkeypatch.setattr(layer_records, "_node_state", lambda state, row, node: real(state, row, 0))
        assert mismatches(GREEDY)[0].startswith("values of hidden_states")

    def test_a_cache_that_stays_in_inference_mode(self, monkeypatch):
        monkeypatch.setattr(inference_mode.StepMode, "make_ordinary", lambda self, cache: None)
        monkeypatch.setattr(kv_cache.GrowingLayer, "release", release_without_a_copy)
        assert mismatches(GREEDY)[0].startswith("made in inference mode: [\"['cache 0']['keys']\"")

    def test_a_wrong_token_is_no_near_tie(self, monkeypatch):
        monkeypatch.setattr(selection, "choose_greedy", lambda scores: (scores.argmax(-1) + 1) % 96)
        (outcome,) = run_call(GREEDY, [TREE])
        assert (outcome.mismatch, outcome.is_near_tie) == ("sequences", False)

    def test_a_near_tie_is_one(self, monkeypatch):
        """Two tokens with nearly the same row of the head, of which plain decoding takes one and we the other."""
        tied = tiny_target("llama")
        best = int(tied(torch.arange(3, 9)[None]).logits[0, -1].argmax())
        other = (best + 1) % 96
        tied.lm_head.weight.data[other] = tied.lm_head.weight.data[best] * (1 - 1e-6)
        monkeypatch.setattr(lossless_cases, "target_of", lambda name: tied)
        real = selection.choose_greedy
        monkeypatch.setattr(
            selection, "choose_greedy", lambda scores: real(scores).where(real(scores) != best, torch.tensor(other))
        )
        monkeypatch.setattr(lossless_cases, "_prompt", lambda call: {"input_ids": torch.arange(3, 9)[None]})
        (outcome,) = run_call(Call("llama", (6,), 0, "no_mask", {"max_new_tokens": 8, "do_sample": False}), [TREE])
        assert (outcome.mismatch, outcome.is_near_tie) == ("sequences", True)
