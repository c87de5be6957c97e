"""Unrolled losses do not depend on how they are computed, and their memory grows with the length of the text only."""

import pytest
import torch
from conftest import golden_draft
from doubles import random_draft
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from eagle_hf.training import distillation, training_time_test_loss, unrolling


def loss_and_gradients(draft, target, ids, **kwargs):
    with torch.no_grad():
        outputs = target(ids, output_hidden_states=True, position_ids=kwargs.get("position_ids"), use_cache=False)
        features = torch.cat([outputs.hidden_states[i] for i in draft.config.resolve_feature_layer_ids(7)], dim=-1)
    loss_mask = kwargs.pop("loss_mask", torch.ones_like(ids))
    draft.zero_grad()
    result = training_time_test_loss(
        draft, features, ids, outputs.logits, loss_mask, target.get_input_embeddings(), num_steps=3, **kwargs
    )
    result.loss.backward()
    return result, {name: p.grad.clone() for name, p in draft.named_parameters()}


@pytest.fixture
def ids():
    return torch.randint(3, 320, (2, 21), generator=torch.Generator().manual_seed(0))


def assert_same(one, other):
    torch.testing.assert_close(one[0].step_losses, other[0].step_losses)
    assert torch.equal(one[0].accepted, other[0].accepted)
    for name in one[1]:
        torch.testing.assert_close(one[1][name], other[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 4, 20])
def test_pieces_give_what_the_whole_gives(golden_target, monkeypatch, ids, rows):
    draft = golden_draft("A_eagle3")
    whole = loss_and_gradients(draft, golden_target, ids)
    monkeypatch.setattr(unrolling, "ROWS_AT_ONCE", rows)
    monkeypatch.setattr(distillation, "ROWS_AT_ONCE", rows)
    monkeypatch.setattr(distillation, "MAX_KEPT_LOGITS", 0)
    assert_same(whole, loss_and_gradients(draft, golden_target, ids))


def test_gradient_checkpointing_changes_no_gradient(golden_target, ids):
    draft = random_draft(golden_target, num_hidden_layers=2, feature_layer_ids=None, initializer_range=0.1).train()
    plain = loss_and_gradients(draft, golden_target, ids)
    draft.gradient_checkpointing = True  # as `EagleTrainingArguments(gradient_checkpointing=True)` does
    assert_same(plain, loss_and_gradients(draft, golden_target, ids))


def test_packed_texts_learn_as_they_do_alone(golden_target):
    draft = golden_draft("A_eagle3")
    generator = torch.Generator().manual_seed(1)
    lengths = (9, 5, 6)
    texts = [torch.randint(3, 320, (1, length), generator=generator) for length in lengths]
    padding = torch.zeros(1, 3, dtype=torch.long)
    packed = torch.cat([*texts, padding], dim=1)
    documents = torch.tensor([[i for i, n in enumerate(lengths) for _ in range(n)] + [-1] * 3])
    positions = torch.tensor([[j for n in (*lengths, 3) for j in range(n)]])
    together = loss_and_gradients(
        draft, golden_target, packed, document_ids=documents, position_ids=positions, loss_mask=(documents >= 0).long()
    )
    alone = [loss_and_gradients(draft, golden_target, text, document_ids=torch.zeros_like(text)) for text in texts]
    total = sum(result.step_losses * n for (result, _), n in zip(alone, lengths, strict=True)) / packed.shape[1]
    torch.testing.assert_close(together[0].step_losses, total)
    assert together[0].drafted.tolist() == sum(result.drafted for result, _ in alone).tolist()
    assert together[0].accepted.tolist() == sum(result.accepted for result, _ in alone).tolist()
    for name, gradient in together[1].items():
        expected = sum(grads[name] * n for (_, grads), n in zip(alone, lengths, strict=True)) / packed.shape[1]
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_nothing_is_trained_beyond_the_end_of_a_text(golden_target, ids):
    """With `document_ids` the target's logits behind the last token are never read; without, the authors read zeros."""
    draft = golden_draft("A_eagle3")
    result, _ = loss_and_gradients(draft, golden_target, ids, document_ids=torch.zeros_like(ids))
    assert result.drafted.tolist() == [2 * (21 - 1 - step) for step in range(3)]
    result, _ = loss_and_gradients(draft, golden_target, ids)
    assert result.drafted.tolist() == [2 * (21 - step) for step in range(3)]


@pytest.mark.parametrize(
    "fields",
    [
        {"sliding_window": 4},
        {"sliding_window": 4, "num_hidden_layers": 2, "sliding_window_layers": [1]},
        {
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "num_key_value_heads": 4,
        },
    ],
    ids=["window", "window in one layer", "latent attention"],
)
def test_unrolled_rows_are_what_drafting_computes(golden_target, fields):
    draft = random_draft(golden_target, feature_layer_ids=None, initializer_range=0.1, **fields)
    ids = torch.randint(3, 320, (1, 12), generator=torch.Generator().manual_seed(0))
    embed = golden_target.get_input_embeddings()
    features = torch.randn(1, 12, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        unrolls = list(
            unrolling.unroll(draft, features, torch.nn.functional.pad(ids[:, 1:], (0, 4)), embed, 4, ids * 0)
        )
        for p in (2, 6):
            cache, hidden, tokens = DynamicCache(), draft.project_features(features[:, : p + 1]), ids[:, 1 : p + 2]
            for step, unrolled in enumerate(unrolls):
                output = draft(hidden, embed(tokens), cache=cache).last_hidden_state[:, -1:]
                torch.testing.assert_close(unrolled[:, p : p + 1], output, atol=1e-5, rtol=1e-5)
                hidden, tokens = output, ids[:, p + 2 + step : p + 3 + step]


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = result if isinstance(result, (tuple, list)) else [result]
        self.numel = max([self.numel, *(t.untyped_storage().nbytes() // t.element_size() for t in tensors
                                        if isinstance(t, torch.Tensor))])  # fmt: skip
        return result


def test_no_tensor_grows_with_the_square_of_the_length(golden_target, monkeypatch):
    monkeypatch.setattr(unrolling, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(distillation, "ROWS_AT_ONCE", 16)
    draft = golden_draft("A_eagle3")
    sizes = []
    for length in (256, 512):
        ids = torch.randint(3, 320, (1, length), generator=torch.Generator().manual_seed(0))
        features, logits = torch.randn(1, length, 192), torch.randn(1, length, 320)
        with LargestTensor() as largest:
            training_time_test_loss(
                draft, features, ids, logits, torch.ones_like(ids), golden_target.get_input_embeddings(), num_steps=4
            ).loss.backward()
        sizes.append(largest.numel)
    assert sizes[1] <= 2.1 * sizes[0]
    assert sizes[1] < 4 * 512 * 512  # heads * seq_len * seq_len: one matrix of scores
