"""Targets that mix the documents of a packed block are refused before anything is learned from it."""

import pytest
import torch
from architectures import ARCHITECTURES, tiny_target
from doubles import random_draft
from every_decoder import decoder_or_skip, model_types
from tiny_training import make_trainer

from eagle_hf.training import (
    FrozenTarget,
    PackedCollator,
    PackedDataset,
    PaddingCollator,
    SampleDataset,
    write_features,
)
from eagle_hf.training.packing_check import check_packing, find_problem


EXACT = ["llama", "gemma3-mixed", "mixtral-moe", "deepseek-v3-mla"]
MIXING = ["gpt-oss-sinks", "opt-learned-positions"]
SOMETIMES = ["falcon-multi-query"]  # mixes up to transformers 5.23
REPRESENTATIVES = [*EXACT, *MIXING, *SOMETIMES]


def frozen(target):
    return FrozenTarget(target, random_draft(target, eagle_version=1).config, torch.device("cpu"))


def documents_differ(target, dtype):
    """Whether a document behind another one differs from the same alone by more than rounding; told otherwise."""
    ids = torch.tensor([[8, 44, 19, 70, 33, 5, 61, 27, 90, 13, 52]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]])
    with torch.no_grad():
        try:
            packed = target(ids, position_ids=positions, use_cache=False).logits[0, 6:].float()
        except TypeError:  # no positions can be given
            return True
        alone = target(ids[:, 6:], use_cache=False).logits[0].float()
    rows = (packed - alone).abs().amax(-1) / alone.abs().max()
    return bool(rows.max() > {torch.float32: 1e-3, torch.bfloat16: 0.15}[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_the_check_tells_who_mixes(name, dtype):
    target = tiny_target(name, dtype=dtype)
    problem = find_problem(frozen(target))
    assert (problem is not None) == documents_differ(target, dtype), problem
    assert name in SOMETIMES or (problem is not None) == (name in MIXING), problem


@pytest.mark.parametrize("model_type", ["lfm2", "qwen3_5_text", "bamba", "bloom", "mamba2"])
def test_states_that_are_carried_on_and_positions_that_cannot_be_given_are_found(model_type):
    assert find_problem(frozen(decoder_or_skip(model_type))) is not None


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(REPRESENTATIVES)))
def test_the_check_tells_who_mixes_of_all_architectures(name):
    target = tiny_target(name)
    assert (find_problem(frozen(target)) is not None) == documents_differ(target, torch.float32)


@pytest.mark.sweep
@pytest.mark.parametrize("model_type", list(model_types()))
def test_the_check_tells_who_mixes_of_all_decoders(model_type):
    target = decoder_or_skip(model_type)
    try:
        frozen(target).compute({"input_ids": torch.arange(3, 12)[None]})
    except IndexError as error:
        pytest.skip(f"returns other hidden states ({error})")  # Reformer, which cannot be drafted for
    except ValueError as error:
        if "several streams" not in str(error):
            raise
        pytest.skip(f"cannot be trained on ({error})")  # Gemma 3n
    assert (find_problem(frozen(target)) is not None) == documents_differ(target, torch.float32)


def packed_trainer(tmp_path, target, **arguments):
    draft = random_draft(target)
    trainer = make_trainer(tmp_path, target, draft, num_samples=8, per_device_train_batch_size=2, max_steps=1,
                           **arguments)  # fmt: skip
    dataset = SampleDataset(trainer.train_dataset)
    trainer.train_dataset = PackedDataset(dataset, 48)
    trainer.data_collator = PackedCollator(0, 48)
    return trainer


def test_training_refuses_before_its_first_step(tmp_path):
    trainer = packed_trainer(tmp_path, tiny_target("gpt-oss-sinks"))
    with pytest.raises(ValueError, match="GptOssForCausalLM cannot be trained on with packed texts.*without `--pack"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_same_target_trains_on_padded_texts(tmp_path):
    """Negative control: what is refused is packing, not the target."""
    trainer = make_trainer(tmp_path, tiny_target("gpt-oss-sinks"), random_draft(tiny_target("gpt-oss-sinks")),
                           num_samples=8, max_steps=1)  # fmt: skip
    trainer.data_collator = PaddingCollator(0)
    trainer.train()
    assert trainer.state.global_step == 1


def test_targets_that_do_not_mix_are_checked_once(tmp_path, monkeypatch):
    target = tiny_target("llama")
    trainer, calls = packed_trainer(tmp_path, target), []
    monkeypatch.setattr("eagle_hf.training.packing_check.find_problem", lambda *args: calls.append(args))
    trainer.train()
    trainer.train()
    assert len(calls) == 1


def test_features_of_packed_texts_are_not_stored_where_the_target_mixes_them(tmp_path):
    target = tiny_target("gpt-oss-sinks")
    packed = PackedDataset(SampleDataset([{"input_ids": [5] * 9, "loss_mask": [1] * 9}] * 4), 20)
    with pytest.raises(ValueError, match="cannot be trained on with packed texts"):
        write_features(frozen(target), packed, tmp_path)


def test_an_attention_mask_that_would_mix_documents_is_not_passed_on(tmp_path):
    target = tiny_target("llama")
    trainer = packed_trainer(tmp_path, target)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    expected = trainer.compute_loss(trainer.model, dict(batch))
    found = trainer.compute_loss(trainer.model, batch | {"attention_mask": torch.ones_like(batch["input_ids"])})
    assert torch.equal(found, expected)


def test_packed_texts_without_positions_are_refused(tmp_path):
    trainer = packed_trainer(tmp_path, tiny_target("llama"))
    batch = trainer.data_collator([trainer.train_dataset[0]])
    batch.pop("position_ids")
    with pytest.raises(ValueError, match="`document_ids` and no `position_ids`"):
        trainer.compute_loss(trainer.model, batch)


def test_several_blocks_and_one_are_told_apart():
    """FlashAttention mixes the documents of batches of several blocks only."""
    target = tiny_target("llama")
    check_packing(frozen(target), num_blocks=1)
    seen = []
    handle = target.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0].shape), with_kwargs=True)
    check_packing(frozen(target), num_blocks=4)
    handle.remove()
    assert max(shape[0] for shape in seen) == 2
