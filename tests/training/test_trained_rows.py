"""The rows that draft in `generate` are trained, and no others; every trained token counts the same."""

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft

from eagle_hf.training import (
    EagleTrainer,
    EagleTrainingArguments,
    FeatureStore,
    FrozenTarget,
    PackedCollator,
    PackedDataset,
    PaddingCollator,
    SampleDataset,
    pad_features,
    rows_that_draft,
    write_features,
)


# Masks of tokens: one answer to the end; the same with a given line feed behind; two turns; a text without a prompt;
# an answer of one token, behind which there is nothing to draft.
MASKS = ["0001111", "00111100", "0011100111", "111111", "00001"]


def samples(masks=tuple(MASKS)):
    generator = torch.Generator().manual_seed(0)
    return SampleDataset(
        {"input_ids": torch.randint(3, 90, (len(mask),), generator=generator), "loss_mask": [int(bit) for bit in mask]}
        for mask in masks
    )


def drafting_rows(mask: str) -> str:
    """What `rows_that_draft` computes, told otherwise: answers are pieces of ones."""
    rows = ["0"] * len(mask)
    for position in range(1, len(mask)):
        drafts_second_token = mask[position] == "1" and position + 1 < len(mask) and mask[position + 1] == "1"
        rows[position - 1] = "1" if drafts_second_token else "0"
    return "".join(rows)


def make_trainer(tmp_path, target, draft, dataset=None, collator=None, **arguments):
    settings = {
        "output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "save_strategy": "no", "num_unrolls": 1,
        "disable_tqdm": True, "logging_steps": 1, "max_steps": 1, "learning_rate": 1e-2, "optim": "sgd",
        "max_grad_norm": 0.0, "feature_noise": 0.0,
    }  # fmt: skip
    return EagleTrainer(
        draft, target, EagleTrainingArguments(**(settings | arguments)), train_dataset=dataset,
        eval_dataset=dataset, data_collator=collator or PaddingCollator(0),
    )  # fmt: skip


def batch_of(kind, dataset, target, draft, folder):
    """A batch with all samples, and for each of its positions the sample and the place in it."""
    if kind == "packed":
        packed = PackedDataset(dataset, 24)
        batch = PackedCollator(0, 24)([packed[i] for i in range(len(packed))])
        return batch, [(row, i, batch["document_ids"][row] == place) for row, block in enumerate(packed.blocks)
                       for place, i in enumerate(block)]  # fmt: skip
    if kind == "stored":
        frozen = FrozenTarget(target, draft.config, torch.device("cpu"))
        write_features(frozen, dataset, folder)
        store = FeatureStore(folder, frozen.feature_layer_ids)
        batch = pad_features([store[i] for i in range(len(store))])
    else:
        batch = PaddingCollator(0)([dataset[i] for i in range(len(dataset))])
    return batch, [(i, i, batch["attention_mask"][i].bool()) for i in range(len(dataset))]


@pytest.mark.parametrize("kind", ["padded", "packed", "stored"])
@pytest.mark.parametrize("eagle_version", [1, 3])
def test_the_row_of_the_prompts_last_feature_is_trained_and_those_behind_an_answer_are_not(
    tmp_path, eagle_version, kind
):
    target = tiny_target("llama")
    draft = random_draft(target, eagle_version=eagle_version)
    dataset = samples()
    trainer = make_trainer(tmp_path, target, draft)
    batch, places = batch_of(kind, dataset, target, draft, tmp_path / "features")
    loss, output = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    [hidden] = output.last_hidden_states
    hidden.retain_grad()
    loss.backward()
    has_gradient = hidden.grad.abs().sum(-1) > 0
    for row, index, inside in places:
        found = "".join(str(int(bit)) for bit in has_gradient[row, inside])
        assert found == drafting_rows(MASKS[index]), MASKS[index]
    assert has_gradient.sum() == sum(drafting_rows(mask).count("1") for mask in MASKS)  # no padding among them
    assert output.drafted[0] == output.trained[0] == has_gradient.sum()  # the first drafts are counted as well


def test_rows_never_reach_into_the_next_document():
    mask, documents = torch.ones(1, 6, dtype=torch.long), torch.tensor([[0, 0, 0, 1, 1, -1]])
    assert rows_that_draft(mask, documents).tolist() == [[True, False, False, False, False, False]]
    assert rows_that_draft(mask).tolist() == [[True, True, True, True, False, False]]
    assert rows_that_draft(torch.ones(2, 1)).tolist() == [[False], [False]]


def trained_once(tmp_path, eagle_version, **arguments):
    target = tiny_target("llama")
    draft = random_draft(target, eagle_version=eagle_version)
    trainer = make_trainer(tmp_path, target, draft, samples(MASKS[:4]), num_unrolls=2, learning_rate=1e-4, **arguments)
    trainer.train()
    return trainer.state.log_history[0]["loss"], draft.state_dict()


@pytest.mark.parametrize("eagle_version", [1, 3])
def test_a_batch_of_four_trains_like_four_batches_of_one(tmp_path, eagle_version):
    loss, whole = trained_once(tmp_path / "a", eagle_version, per_device_train_batch_size=4)
    other_loss, parts = trained_once(
        tmp_path / "b", eagle_version, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    assert other_loss == pytest.approx(loss, rel=1e-4)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-6, rtol=1e-5)


def test_an_evaluation_has_the_same_loss_whatever_its_batches(tmp_path):
    target = tiny_target("llama")
    draft = random_draft(target)
    metrics = []
    for size in (1, 3, 8):
        trainer = make_trainer(tmp_path, target, draft, samples(), num_unrolls=2, per_device_eval_batch_size=size)
        metrics.append({name: value for name, value in trainer.evaluate().items() if "per_second" not in name})
        metrics[-1].pop("eval_runtime")
        metrics[-1].pop("eval_model_preparation_time", None)
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    assert metrics[0] == pytest.approx(metrics[2], rel=1e-4)


def test_a_step_without_a_trained_row_trains_nothing_and_does_not_fail(tmp_path):
    target = tiny_target("llama")
    draft = random_draft(target)
    before = {name: tensor.clone() for name, tensor in draft.state_dict().items()}
    trainer = make_trainer(tmp_path, target, draft, samples(["00001", "0001"]), per_device_train_batch_size=2)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in draft.state_dict().items())
