import pytest
import torch
import torch.nn.functional as F
from architectures import tiny_target
from doubles import random_draft
from torch import nn
from transformers import DynamicCache

from eagle_hf.drafting.levels import CompleteHead
from eagle_hf.fast import cpu_head
from eagle_hf.fast.cpu_head import CPUHead


def complete(kind, draft):
    embedding = nn.Embedding(draft.config.vocab_size, draft.config.hidden_size)
    torch.manual_seed(0)
    nn.init.normal_(embedding.weight)
    return kind.make(draft, embedding, None)


@pytest.fixture
def asked(monkeypatch):
    """Linear layers that were asked of oneDNN, all of them being large."""
    monkeypatch.setattr(cpu_head, "_WORTH_ONEDNN", 0)
    shapes, product = [], torch.ops.mkldnn._linear_pointwise

    class Watching:
        @staticmethod
        def _linear_pointwise(inputs, weight, *args):
            shapes.append(tuple(weight.shape))
            return product(inputs, weight, *args)

    monkeypatch.setattr(torch.ops, "mkldnn", Watching)
    return shapes


@pytest.mark.skipif(not cpu_head._HAS_ONEDNN, reason="PyTorch was built without oneDNN")
@pytest.mark.parametrize("num_rows", [1, 5])
def test_a_head_on_a_cpu_computes_what_any_head_does(num_rows, asked):
    draft = random_draft(tiny_target("llama"))
    hidden = torch.randn(1, num_rows, draft.config.hidden_size)
    tokens, rotary = torch.arange(num_rows)[None], draft.rotary(torch.arange(num_rows)[None])
    outputs = []
    for kind in (CompleteHead, CPUHead):
        head = complete(kind, draft)
        with torch.inference_mode():
            state = head.step(hidden, tokens, rotary, None, DynamicCache())
            outputs.append((state, head.logits(state)))
        assert bool(asked) is (kind is CPUHead)
    assert {tuple(module.weight.shape) for module in draft.modules() if type(module) is nn.Linear} >= set(asked)
    assert tuple(draft.lm_head.weight.shape) in asked
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.skipif(not cpu_head._HAS_ONEDNN, reason="PyTorch was built without oneDNN")
def test_onednn_is_asked_for_large_float32_weights_without_gradients_only(asked, monkeypatch):
    inputs, weight = torch.randn(2, 8), torch.randn(16, 8)
    cpu_head.linear(inputs, weight)  # gradients may be wanted
    with torch.no_grad():
        cpu_head.linear(inputs.bfloat16(), weight.bfloat16())
        monkeypatch.setattr(cpu_head, "_WORTH_ONEDNN", weight.numel() + 1)
        cpu_head.linear(inputs, weight)
        assert not asked
        monkeypatch.setattr(cpu_head, "_WORTH_ONEDNN", weight.numel())
        torch.testing.assert_close(cpu_head.linear(inputs, weight), F.linear(inputs, weight))
    assert asked == [(16, 8)]


def test_heads_of_other_dtypes_are_left_to_torch():
    draft = random_draft(tiny_target("llama"))
    assert CPUHead.suits(draft) == cpu_head._HAS_ONEDNN
    assert not CPUHead.suits(draft.to(torch.bfloat16))
