"""The verdict on a target is found by trying: trees, chains only, or nothing."""

import pytest
import torch
from architectures import VOCAB_SIZE, tiny_target
from doubles import random_draft
from transformers import AutoConfig, AutoModelForCausalLM

from eagle_hf.generation import decoding, masks, probe
from eagle_hf.generation import forward as forward_module
from eagle_hf.generation.probe import can_verify_trees


def build(model_type, **config):
    common = {
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(common | config))).eval()


CHAIN_ONLY = {
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 128, "use_cache": True},
    "falcon": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "alibi": True,
        "multi_query": False,
    },
}


@pytest.mark.parametrize("name", CHAIN_ONLY)
class TestChainOnly:
    def test_is_found_out(self, name):
        assert can_verify_trees(build(name, **CHAIN_ONLY[name])) is False

    @pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
    @pytest.mark.parametrize("lengths", [(9,), (9, 4, 7)], ids=["single", "batch"])
    def test_chains_are_lossless(self, name, do_sample, lengths, monkeypatch):
        from test_lossless import left_padded_prompts

        target, inputs = build(name, **CHAIN_ONLY[name]), left_padded_prompts(lengths)
        draft = random_draft(target)
        warnings = []
        monkeypatch.setattr(decoding.logger, "warning_once", warnings.append)
        outputs = []
        for assistant in (None, draft):
            torch.manual_seed(0)
            outputs.append(
                target.generate(
                    **inputs, max_new_tokens=20, do_sample=do_sample, eos_token_id=None, assistant_model=assistant
                )
            )
        assert torch.equal(*outputs)
        assert len(warnings) == 1
        assert "verifies chains only" in warnings[0]
        draft.generation_config.draft_tree = "chain"  # then there is nothing to warn of
        target.generate(**inputs, max_new_tokens=4, do_sample=False, assistant_model=draft)
        assert len(warnings) == 1

    def test_accepted_chains_are_lossless(self, name, monkeypatch):
        """With a draft that knows the text, chains are accepted and taken back."""
        from doubles import ScriptedDrafter, scripted
        from test_lossless import left_padded_prompts

        class ScriptedChains(ScriptedDrafter):
            def _shape(self, max_depth):
                return [-1, *range(max_depth)]

        target = build(name, **CHAIN_ONLY[name])
        for lengths in ((9,), (9, 4, 7)):
            inputs = left_padded_prompts(lengths)
            kwargs = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
            plain = target.generate(**inputs, **kwargs)
            truth = plain[:, max(lengths) :].tolist()
            scripted(monkeypatch, lambda truth=truth: ScriptedChains(truth, seed=1))
            ours = target.generate(
                **inputs, **kwargs, assistant_model=random_draft(target), return_dict_in_generate=True
            )
            assert torch.equal(plain, ours.sequences)
            assert ours.target_forwards < 24


def test_a_target_that_can_do_neither_is_refused_with_the_reasons(monkeypatch):
    target = tiny_target("llama")

    def cannot(*args, **kwargs):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(probe, "forward_tree", cannot)
    monkeypatch.setattr(probe, "forward_chain", cannot)
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot verify drafts: .*no such thing.*no such thing"):
        target.generate(torch.tensor([[3, 4]]), assistant_model=random_draft(target), max_new_tokens=4)


def test_a_wrong_mask_is_seen(monkeypatch):
    """The probe must tell a target that ignores the mask: here all nodes see each other."""
    target = tiny_target("llama")
    monkeypatch.setattr(masks.DraftTree, "ancestor_mask", lambda tree: torch.ones(1, 6, 6, dtype=torch.bool).tril())
    assert can_verify_trees(target) is False


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_target_that_ignores_what_trees_need_is_seen(ignored, dtype, monkeypatch):
    target = tiny_target("llama", dtype=dtype)
    forward = type(target).forward
    monkeypatch.setattr(
        type(target), "forward", lambda self, *args, **kwargs: forward(self, *args, **(kwargs | {ignored: None}))
    )
    monkeypatch.setattr(forward_module, "takes_position_ids", lambda model: True)
    assert can_verify_trees(target) is False


def test_a_target_that_verifies_trees_is_asked_two_forwards(monkeypatch):
    """The first call pays for them."""
    target, lengths = tiny_target("llama"), []
    target.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    can_verify_trees(target)
    assert lengths == [(1, 8), (1, 6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rounding_is_no_reason_to_refuse(dtype):
    assert can_verify_trees(tiny_target("llama", dtype=dtype)) is True


def test_the_verdict_is_kept_per_attention_implementation(monkeypatch):
    target = tiny_target("llama")
    calls = []
    real = probe._probe
    monkeypatch.setattr(probe, "_probe", lambda *args: calls.append(1) or real(*args))
    can_verify_trees(target)
    can_verify_trees(target)
    assert len(calls) == 1
    target.set_attn_implementation("eager")
    can_verify_trees(target)
    assert len(calls) == 2


def test_the_probe_leaves_no_trace():
    target = tiny_target("llama")
    state, implementation = torch.get_rng_state(), target.config._attn_implementation
    can_verify_trees(target)
    assert torch.equal(state, torch.get_rng_state())
    assert target.config._attn_implementation == implementation
