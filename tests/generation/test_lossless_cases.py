"""
A slice of `make lossless`, and what it is worth: broken on purpose, each part of the machinery is found out by the same
calls.
"""

from dataclasses import replace

import lossless_cases
import pytest
import torch
from architectures import tiny_target
from lossless_cases import Call, Tree, draw_case, run_call
from lossless_space import CALLS, pairs, pairs_of, wanted_pair

from eagle_hf.cache import growing
from eagle_hf.generation import choosing as selection
from eagle_hf.generation import decoding, noise, pairing
from eagle_hf.generation import records as layer_records
from eagle_hf.generation import text as sequences
from eagle_hf.target import probe, target
from eagle_hf.tree import DraftTree


NUM_CALLS = 16


@pytest.mark.parametrize("first", range(0, NUM_CALLS, 8))
def test_a_slice_of_the_benchmark(first):
    for index in range(first, first + 8):
        call, trees = draw_case(0, index)
        for tree, outcome in zip(trees, run_call(call, trees), strict=True):
            assert not outcome.mismatch, (outcome, call, tree)


def test_calls_differ_and_are_the_same_again():
    calls = [repr(draw_case(0, index)) for index in range(400)]
    assert len(set(calls)) == 400
    assert calls[7] == repr(draw_case(0, 7))
    text = " ".join(calls)
    for word in (
        "top_p",
        "guidance_scale",
        "synthid",
        "embeddings",
        "kept",
        "streamer",
        "output_attentions",
        *CALLS["cache"],
    ):
        assert word in text


def test_every_pair_of_values_has_its_turn():
    turns = [tuple(wanted_pair(0, index).items()) for index in range(len(pairs()))]
    assert sorted(turns) == pairs()
    assert len(set(turns)) == len(turns) > 2000
    call, trees = draw_case(0, 0)
    assert set(pairs_of(call.traits() | trees[0].traits())) <= set(turns)


def test_a_call_has_the_values_that_it_must_have():
    for index in range(200):
        (call, trees), wanted = draw_case(3, index), wanted_pair(3, index)
        for tree in trees:
            assert wanted.items() <= (call.traits() | tree.traits()).items()


def test_what_excludes_each_other_is_never_draw_case():
    for index in range(200):
        call, _ = draw_case(5, index)
        assert (call.of("prompt"), call.of("rows")) != ("without mask", "padded")
        assert len(set(call.lengths)) == 1 or call.of("rows") == "padded"


def test_a_plain_step_in_a_static_cache_sees_no_node_of_an_earlier_tree():
    """What `make lossless` has found: the last step needs no tree, and had no mask."""
    call = Call("falcon-multi-query", (12,), 612090, {
        "max_new_tokens": 15, "do_sample": False, "output_hidden_states": True,
    }, eos=(52,), kind={"cache": "static"})  # fmt: skip
    tree = Tree(drafts="eagle-1", seed=0, num_nodes=17, max_depth=6, hit_rate=1.0, kind="chain", width=4)
    assert [outcome.mismatch for outcome in run_call(call, [tree])] == [""]


SAMPLED = Call("llama", (9, 4, 7), 3, {"max_new_tokens": 20, "do_sample": True}, extras=("streamer",))
GREEDY = Call("llama", (9, 4, 7), 3, {"max_new_tokens": 20, "do_sample": False, "output_hidden_states": True})
TREE = Tree(drafts="scripted", seed=5, num_nodes=9, max_depth=4, hit_rate=0.8, kind="dynamic", width=2)


def mismatches(call, tree=TREE):
    """What differs, but for near ties."""
    return [outcome.mismatch for outcome in run_call(call, [tree]) if not outcome.near_tie]


class TestRefusals:
    """Counted where they come before anything has run, with a reason that such calls may have; found out otherwise."""

    def test_a_refusal_has_its_reason(self):
        (outcome,) = run_call(replace(GREEDY, kind={"cache": "none"}), [TREE])
        assert "Got `use_cache=False`" in outcome.refusal
        assert not outcome.is_compared

    def test_an_attached_head_steps_aside_for_the_same_reason(self):
        (outcome,) = run_call(replace(GREEDY, kind={"cache": "none", "head": "attached"}), [TREE])
        assert "Got `use_cache=False`" in outcome.refusal

    def test_a_head_that_steps_aside_where_it_could_draft(self, monkeypatch):
        monkeypatch.setattr(lossless_cases, "attach", lambda target, draft: None)
        (outcome,) = run_call(replace(GREEDY, kind={"head": "attached"}), [TREE])
        assert outcome.mismatch == "ran without its attached head, and is drafted where it is passed"

    def test_a_refusal_that_nobody_expects(self, monkeypatch):
        monkeypatch.setattr(pairing, "SUPPORTED_LAYERS", ())
        assert mismatches(GREEDY)[0].startswith("refused, which is not expected of such a call")

    def test_a_refusal_that_comes_too_late(self, monkeypatch):
        monkeypatch.setattr(lossless_cases, "REFUSALS", [("", lambda call: True)])

        def late(*args):
            torch.rand(1)
            return pairing.check_cache(None)

        monkeypatch.setattr(decoding, "open_chooser", late)
        assert mismatches(GREEDY)[0].startswith("refused after something was drawn")


class TestHalfPrecision:
    """What rounds is told from what is wrong, as in float32."""

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_nothing_is_wrong_as_it_is(self, dtype):
        assert mismatches(replace(GREEDY, kind={"dtype": dtype})) in ([""], [])

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_a_wrong_mask_is_no_near_tie(self, monkeypatch, dtype):
        monkeypatch.setattr(decoding, "can_verify_trees", lambda *args, **kwargs: True)
        monkeypatch.setattr(
            DraftTree,
            "ancestor_mask",
            lambda self: torch.ones(len(self.tokens), self.num_nodes, self.num_nodes, dtype=torch.bool),
        )
        assert mismatches(replace(GREEDY, kind={"dtype": dtype})) == ["sequences"]

    def test_sampled_texts_are_counted(self, monkeypatch):
        real = noise.SamplingNoise.at_nodes
        monkeypatch.setattr(
            noise.SamplingNoise,
            "at_nodes",
            lambda self, columns, depths, depth: real(self, columns, depths.clamp(max=1), depth),
        )
        (outcome,) = run_call(replace(SAMPLED, kind={"dtype": "bfloat16"}), [TREE])
        assert (outcome.mismatch, outcome.sampled_apart) == ("", "sequences")


def release_in_inference_mode(layer, copy, real=growing.GrowingLayer.release):
    with torch.inference_mode():
        real(layer, copy=True)


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
        monkeypatch.setattr(probe, "_chain_logits", lambda *args: (torch.full((2, 3, 96), torch.inf), probe.CHAINS))
        assert "tree logits are off" in mismatches(GREEDY)[0]  # the probe comes first, and refuses

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
        real = sequences.Text._stream
        monkeypatch.setattr(sequences.Text, "_stream", lambda self, end: real(self, min(end, 25)))
        assert mismatches(SAMPLED) == ["what was streamed"]

    def test_hidden_states_of_another_node(self, monkeypatch):
        real = layer_records._node_state
        monkeypatch.setattr(layer_records, "_node_state", lambda state, row, node: real(state, row, 0))
        assert mismatches(GREEDY)[0].startswith("values of hidden_states")

    def test_a_cache_that_stays_in_inference_mode(self, monkeypatch):
        monkeypatch.setattr(growing.GrowingLayer, "release", release_in_inference_mode)
        assert mismatches(GREEDY)[0].startswith("made in inference mode: [\"['cache 0']['keys']\"")

    def test_a_wrong_token_is_no_near_tie(self, monkeypatch):
        monkeypatch.setattr(selection, "choose_greedy", lambda scores: (scores.argmax(-1) + 1) % 96)
        (outcome,) = run_call(GREEDY, [TREE])
        assert (outcome.mismatch, outcome.near_tie) == ("sequences", "")

    def test_a_near_tie_is_one(self, monkeypatch):
        """Two tokens with nearly the same row of the head, of which plain decoding takes one and we the other."""
        tied = tiny_target("llama")
        best = int(tied(torch.arange(3, 9)[None]).logits[0, -1].argmax())
        other = (best + 1) % 96
        tied.lm_head.weight.data[other] = tied.lm_head.weight.data[best] * (1 - 1e-6)
        monkeypatch.setattr(lossless_cases, "make_target", lambda *args: tied)
        real = selection.choose_greedy
        monkeypatch.setattr(
            selection, "choose_greedy", lambda scores: real(scores).where(real(scores) != best, torch.tensor(other))
        )
        monkeypatch.setattr(lossless_cases, "_prompt", lambda call: {"input_ids": torch.arange(3, 9)[None]})
        call = Call("llama", (6,), 0, {"max_new_tokens": 8, "do_sample": False}, kind={"prompt": "without mask"})
        (outcome,) = run_call(call, [TREE])
        assert (outcome.mismatch, outcome.near_tie) == ("", "sequences")
