import subprocess
import sys
import threading

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft
from transformers.integrations import sdpa_attention as of_transformers

from eagle_hf.fast import cpu_target
from eagle_hf.fast.cpu_target import CPUTarget
from eagle_hf.target.target import Target


GROUPED = ["llama", "llama-multi-query", "qwen3", "gemma3-mixed", "llama4-chunked"]
OPTIONS = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def grouped_target(name="llama", dtype=torch.float32):
    target = tiny_target(name).to(dtype)
    config = target.config.get_text_config(decoder=True)
    assert config.num_key_value_heads < config.num_attention_heads
    assert CPUTarget.suits(target)
    return target


@pytest.fixture
def repeats(monkeypatch):
    """Shapes of keys and values that `transformers` repeated."""
    shapes, repeat = [], of_transformers.repeat_kv

    def watch(hidden_states, n_rep):
        shapes.append(tuple(hidden_states.shape))
        return repeat(hidden_states, n_rep)

    monkeypatch.setattr(of_transformers, "repeat_kv", watch)
    return shapes


def verified(target, ids, kind, monkeypatch, repeats):
    """The text of a call by one kind of target, and of every verification of a tree: logits, and what was repeated."""
    trees, forward = [], kind._forward

    def watch(self, tree, **kwargs):
        before = len(repeats)
        outputs = forward(self, tree, **kwargs)
        if tree.num_nodes > 1:
            trees.append((outputs.logits, len(repeats) - before))
        return outputs

    with monkeypatch.context() as patched:
        patched.setattr(kind, "_forward", watch)
        patched.setattr(CPUTarget, "suits", staticmethod(lambda model: kind is CPUTarget))
        tokens = target.generate(ids, assistant_model=random_draft(target), **OPTIONS)
    return tokens, [logits for logits, _ in trees], [count for _, count in trees]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", GROUPED)
def test_logits_are_those_of_repeated_keys(name, dtype, monkeypatch, repeats):
    target = grouped_target(name, dtype)
    ids = torch.randint(3, 60, (1, 9), generator=torch.Generator().manual_seed(0))
    tokens, logits, copies = verified(target, ids, CPUTarget, monkeypatch, repeats)
    expected_tokens, expected_logits, expected_copies = verified(target, ids, Target, monkeypatch, repeats)
    assert len(logits) > 1
    assert not any(copies)
    assert min(expected_copies) > 0  # so that copies would have been seen
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for one, other in zip(logits, expected_logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
    assert torch.equal(tokens, expected_tokens)


def test_plain_calls_run_as_ever(repeats):
    """Padding is a mask, so that `transformers` repeats keys."""
    target = grouped_target()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    target.generate(torch.randint(3, 60, (2, 6)), attention_mask=mask, **OPTIONS)
    assert repeats


def test_other_threads_run_as_ever(repeats):
    target = grouped_target()
    ids = torch.randint(3, 60, (1, 4))
    seen = []

    def forward():
        before = len(repeats)
        target(ids, attention_mask=torch.zeros(1, 1, 4, 4))
        seen.append(len(repeats) - before)

    with cpu_target._grouped():
        thread = threading.Thread(target=forward)
        thread.start()
        thread.join()
        forward()
    layers = target.config.num_hidden_layers
    assert seen == [2 * layers, 0]


def test_a_forward_that_fails_leaves_nothing_behind(repeats, monkeypatch):
    target = grouped_target()
    draft = random_draft(target)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Target, "_forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            target.generate(torch.tensor([[5, 6, 7]]), assistant_model=draft, **OPTIONS)
    target(torch.tensor([[5, 6, 7]]), attention_mask=torch.zeros(1, 1, 3, 3))
    assert repeats


@pytest.mark.parametrize("unusual", ["no mask", "one query", "no groups", "softcap", "position_bias", "s_aux"])
def test_all_else_is_left_to_transformers(unusual, monkeypatch):
    asked = []
    monkeypatch.setattr(cpu_target, "sdpa_attention_forward", lambda *args, **kwargs: asked.append(kwargs))
    num_queries, num_groups = 1 if unusual == "one query" else 3, 2 if unusual == "no groups" else 1
    query, key = torch.zeros(1, 2, num_queries, 4), torch.zeros(1, num_groups, 3, 4)
    mask = None if unusual == "no mask" else torch.zeros(1, 1, num_queries, 3)
    more = {unusual: 2.0} if unusual in ("softcap", "position_bias", "s_aux") else {}
    with cpu_target._grouped():
        cpu_target.sdpa_attention(torch.nn.Module(), query, key, key, mask, scaling=0.5, **more)
    assert asked == [{"dropout": 0.0, "scaling": 0.5, **more}]


def test_other_attention_is_left_alone():
    target = tiny_target("llama")
    target.set_attn_implementation("eager")
    assert not CPUTarget.suits(target)


def test_attention_of_the_user_under_the_same_name_stays():
    code = """
from transformers import AttentionInterface
def own(*args, **kwargs): ...
AttentionInterface.register("sdpa", own)
import eagle_hf.fast.cpu_target
assert AttentionInterface()["sdpa"] is own
"""
    subprocess.run([sys.executable, "-c", code], check=True)
