"""Texts longer than the target has positions are refused at the door, with the numbers, and not in the third step."""

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft
from every_decoder import tiny_decoder

from eagle_hf.training import (
    EagleTrainer,
    EagleTrainingArguments,
    PackedCollator,
    PackedDataset,
    PaddingCollator,
    SampleDataset,
)


def sample(length):
    return {"input_ids": [5] * length, "loss_mask": [1] * length}


def trainer(tmp_path, target, train, collator=None, evaluation=None):
    arguments = EagleTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", num_unrolls=1, max_steps=1,
        disable_tqdm=True, per_device_train_batch_size=2,
    )  # fmt: skip
    return EagleTrainer(random_draft(target), target, arguments, train_dataset=train, eval_dataset=evaluation,
                        data_collator=collator or PaddingCollator(0))  # fmt: skip


class Lazy(torch.utils.data.Dataset):
    """A dataset whose lengths nobody knows."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return sample(129)


MESSAGE = r"has 128 positions, and the longest text has 129 tokens"


@pytest.mark.parametrize("kind", [list, SampleDataset])
@pytest.mark.parametrize("name", ["gpt2-learned-positions", "gpt-bigcode-multi-query", "opt-learned-positions"])
def test_longer_texts_are_refused_when_the_trainer_is_made(tmp_path, name, kind):
    target = tiny_target(name)
    with pytest.raises(ValueError, match=MESSAGE + r"\. So are 1 of 2 texts\. Cut or drop them"):
        trainer(tmp_path, target, kind([sample(8), sample(129)]))
    with pytest.raises(ValueError, match=MESSAGE):
        trainer(tmp_path, target, kind([sample(8)]), evaluation=kind([sample(129)]))
    with pytest.raises(ValueError, match=MESSAGE):
        trainer(tmp_path, target, kind([sample(8)]), evaluation={"mine": kind([sample(129)])})
    trainer(tmp_path, target, kind([sample(8), sample(128)])).train()


def test_a_dataset_that_knows_no_lengths_is_checked_batch_by_batch(tmp_path):
    with pytest.raises(ValueError, match=MESSAGE):
        trainer(tmp_path, tiny_target("gpt2-learned-positions"), Lazy()).train()


def test_a_target_without_a_table_that_fails_beyond_its_positions_is_tried(tmp_path):
    target = tiny_decoder("mpt")
    length = target.config.max_seq_len
    trainer(tmp_path, target, [sample(length)] * 2)
    message = rf"has {length} positions, and the longest text has {length + 1} tokens.*fails beyond them"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, target, [sample(length + 1)])


def test_positions_that_are_computed_have_no_end(tmp_path):
    """Negative control."""
    trainer(tmp_path, tiny_target("llama"), [sample(129)] * 2).train()


def test_blocks_may_be_longer_than_the_target_has_positions(tmp_path):
    """Positions start again with every text of a block, and those of padding go no further."""
    target = tiny_target("gpt2-learned-positions")
    packed = PackedDataset(SampleDataset([sample(100), sample(60), sample(9)]), 400)
    trainer(tmp_path, target, packed, PackedCollator(0, 400)).train()
