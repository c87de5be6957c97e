"""Packed documents are as if each were alone; padding changes nothing."""

import pytest
import torch
from architectures import tiny_target
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_hf.training import PackedCollator, PackedDataset, PaddingCollator, SampleDataset, best_fit


def samples(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SampleDataset(
        {
            "input_ids": torch.randint(3, 90, (length,), generator=generator).tolist(),
            "loss_mask": [0] + [1] * (length - 1),
        }
        for length in lengths
    )


@given(st.lists(st.integers(1, 16), max_size=40))
@settings(max_examples=60, deadline=None)
def test_every_document_is_packed_once_and_no_block_overflows(lengths):
    blocks = best_fit(lengths, 16)
    assert sorted(index for block in blocks for index in block) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in block) for block in blocks]
    assert all(size <= 16 for size in sizes)
    assert sum(2 * size <= 16 for size in sizes) <= 1  # two blocks half empty would have been one


def test_best_fit_fills_what_is_fullest():
    assert best_fit([5, 9, 4, 1], 10) == [[1, 3], [0, 2]]
    assert best_fit([], 10) == []


def test_a_document_longer_than_a_block_is_refused():
    with pytest.raises(ValueError, match=r"1 samples are longer than a block of 8 tokens, the longest of 9"):
        best_fit([3, 9], 8)


def test_packing_depends_on_the_seed_alone():
    dataset = samples([5, 3, 8, 2, 6, 7, 4, 1] * 4)
    blocks = PackedDataset(dataset, 10, seed=1).blocks
    assert PackedDataset(dataset, 10, seed=1).blocks == blocks
    assert PackedDataset(dataset, 10, seed=2).blocks != blocks


def test_a_list_of_samples_packs_like_a_dataset():
    dataset = samples([5, 3, 2])
    as_list = [{name: tensor.tolist() for name, tensor in dataset[i].items()} for i in range(3)]
    a, b = PackedDataset(dataset, 10), PackedDataset(as_list, 10)
    assert {name: tensor.tolist() for name, tensor in a[0].items()} == {n: t.tolist() for n, t in b[0].items()}
    assert a.efficiency == 1.0


def test_blocks_say_where_their_documents_are():
    dataset = samples([4, 3])
    packed = PackedDataset(dataset, 10)
    batch = PackedCollator(pad_token_id=0, max_length=10)([packed[0]])
    assert batch["document_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, -1, -1, -1]] or batch["document_ids"].tolist() == [
        [0, 0, 0, 1, 1, 1, 1, -1, -1, -1]
    ]
    size = int((batch["document_ids"] == 0).sum())
    assert batch["position_ids"].tolist() == [[*range(size), *range(7 - size), 0, 1, 2]]
    assert batch["loss_mask"].sum() == 5
    assert batch["input_ids"][0, 7:].tolist() == [0, 0, 0]
    assert set(batch) == {"input_ids", "loss_mask", "position_ids", "document_ids"}


def test_samples_are_padded_on_the_right():
    batch = PaddingCollator(pad_token_id=7, pad_to_multiple_of=4)([samples([5])[0], samples([2])[0]])
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (2, 8), "loss_mask": (2, 8), "attention_mask": (2, 8),
    }  # fmt: skip
    assert batch["input_ids"][1, 2:].tolist() == [7] * 6
    assert batch["attention_mask"].sum(1).tolist() == [5, 2]
    assert batch["loss_mask"].sum(1).tolist() == [4, 1]


def hidden_states_of_documents(target, dataset, collated, packed):
    """Hidden states of packed documents, and of the same documents alone."""
    outputs = target(
        collated["input_ids"], position_ids=collated["position_ids"], use_cache=False, output_hidden_states=True
    )
    for row, block in enumerate(packed.blocks):
        for place, index in enumerate(block):
            inside = collated["document_ids"][row] == place
            alone = target(dataset[index]["input_ids"][None], use_cache=False, output_hidden_states=True)
            for ours, truth in zip(outputs.hidden_states, alone.hidden_states, strict=True):
                yield ours[row, inside], truth[0]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "qwen2-mixed"])
@torch.no_grad()
def test_packed_documents_have_the_hidden_states_of_documents_alone(name, implementation):
    target = tiny_target(name)
    target.set_attn_implementation(implementation)
    dataset = samples([11, 7, 5, 9, 12, 3])
    packed = PackedDataset(dataset, 20)
    collated = PackedCollator(0, 20)([packed[i] for i in range(len(packed))])
    assert len(packed) > 1
    for ours, truth in hidden_states_of_documents(target, dataset, collated, packed):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_positions_that_do_not_restart_would_mix_documents():
    """Negative control: what makes the documents separate is the restart of positions."""
    target = tiny_target("llama")
    dataset = samples([11, 7])
    packed = PackedDataset(dataset, 20)
    collated = PackedCollator(0, 20)([packed[0]])
    collated["position_ids"] = torch.arange(20)[None]
    pairs = list(hidden_states_of_documents(target, dataset, collated, packed))
    assert any((ours - truth).abs().max() > 1e-2 for ours, truth in pairs)


@torch.no_grad()
def test_an_attention_mask_of_ones_would_mix_documents_too():
    """Negative control: documents are looked for only where no mask is given."""
    target = tiny_target("llama")
    ids, positions = torch.randint(3, 90, (1, 8)), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    alone = target(ids[:, 4:], use_cache=False).logits
    separate = target(ids, position_ids=positions, use_cache=False).logits[:, 4:]
    mixed = target(ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, 4:]
    torch.testing.assert_close(separate, alone, rtol=1e-5, atol=1e-5)
    assert (mixed - alone).abs().max() > 1e-2
