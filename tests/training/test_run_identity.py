"""A run is its data, target, schedule and recipe: with others it does not go on; places, dates and logs are free."""

import dataclasses
import json

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft
from tiny_training import make_trainer

from eagle_hf.training import EagleTrainer, EagleTrainingArguments, PackedDataset, run_identity
from eagle_hf.training.run_identity import (
    CONDITIONAL,
    HARMLESS,
    IDENTIFYING,
    differences,
    identity_of_data,
    identity_of_settings,
    identity_of_weights,
)


FIELDS = {field.name: field for field in dataclasses.fields(EagleTrainingArguments)}

# Another value of every field that cannot just be counted up or switched.
OTHER = {
    "output_dir": "elsewhere", "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2},
    "optim": "adamw_torch", "optim_args": "a=1", "optim_target_modules": "all-linear", "loss": "kl",
    "unroll_decay": 0.5, "num_unrolls": 2, "feature_noise": 0.2, "muon_learning_rate": 0.1, "max_steps": 9,
    "neftune_noise_alpha": 0.1, "data_seed": 5, "train_sampling_strategy": "sequential", "tf32": False,
    "length_column_name": "size", "label_names": ["x"], "accelerator_config": {"even_batches": False},
    "liger_kernel_config": {"rope": True}, "metric_for_best_model": "eval_loss", "greater_is_better": False,
}  # fmt: skip


def settings(**changes):
    return identity_of_settings(EagleTrainingArguments(**{"output_dir": "out", "use_cpu": True} | changes))


def test_every_argument_is_classified_once():
    assert set(FIELDS) <= IDENTIFYING | CONDITIONAL | HARMLESS
    assert len(IDENTIFYING) + len(CONDITIONAL) + len(HARMLESS) == len(IDENTIFYING | CONDITIONAL | HARMLESS)


# Arguments that pull in a launcher, a kernel or a device when they are set: their values are compared all the same.
UNSET = {"deepspeed", "fsdp", "fsdp_config", "parallelism_config", "use_liger_kernel", "fp16", "bf16"}


@pytest.mark.parametrize("name", sorted(IDENTIFYING & set(FIELDS)))
def test_an_identifying_argument_changes_the_identity(name):
    args = EagleTrainingArguments(output_dir="out", use_cpu=True)
    before, value = identity_of_settings(args), getattr(args, name)
    if name in OTHER:
        other = OTHER[name]
    elif isinstance(value, bool):
        other = not value
    else:
        other = "other" if name in UNSET else value + 1
    setattr(args, name, other)
    [found] = differences(json.loads(json.dumps(before)), identity_of_settings(args))[:1]
    assert f"`{name}`" in found


@pytest.mark.parametrize("name", sorted(HARMLESS & set(FIELDS)))
def test_a_harmless_argument_does_not(name):
    args = EagleTrainingArguments(output_dir="out", use_cpu=True)
    before = identity_of_settings(args)
    setattr(args, name, "anything else")
    assert differences(before, identity_of_settings(args)) == []


def test_how_long_a_run_is_belongs_to_it_where_the_learning_rate_goes_by_it():
    for name, value in (("max_steps", 20), ("num_train_epochs", 7.0)):
        assert differences(settings(), settings(**{name: value}))
        for schedule in ("constant", "constant_with_warmup", "inverse_sqrt"):
            before = settings(lr_scheduler_type=schedule, warmup_steps=3)
            assert not differences(before, settings(lr_scheduler_type=schedule, warmup_steps=3, **{name: value}))
    by_share = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1}
    assert differences(settings(**by_share), settings(**by_share, max_steps=20))


def test_the_best_head_is_chosen_by_a_metric_that_belongs_to_the_run():
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    assert differences(settings(**best), settings(**best, metric_for_best_model="eval_loss"))
    assert not differences(settings(), settings(metric_for_best_model="eval_loss"))


def test_processes_and_accumulation_stand_for_one_another_where_batches_come_out_the_same(monkeypatch):
    def with_processes(count, accumulation, **more):
        args = EagleTrainingArguments(output_dir="out", use_cpu=True, gradient_accumulation_steps=accumulation)
        monkeypatch.setattr(EagleTrainingArguments, "world_size", count)
        return identity_of_settings(args, **more)

    even = {"num_samples": 64}
    assert not differences(with_processes(1, 4, **even), with_processes(2, 2, **even))
    assert differences(with_processes(1, 4, **even), with_processes(2, 4, **even))
    for more in ({"num_samples": 65}, {}, {"num_samples": 64, "draws_noise": True}):
        assert differences(with_processes(1, 4, **more), with_processes(2, 2, **more))


def test_files_of_settings_are_taken_for_what_they_say(tmp_path):
    for name, content in (("a.json", {"x": 1}), ("b.json", {"x": 1}), ("c.json", {"x": 2})):
        (tmp_path / name).write_text(json.dumps(content))
    args = EagleTrainingArguments(output_dir="out", use_cpu=True)
    identities = []
    for name in "abc":
        args.fsdp_config = str(tmp_path / f"{name}.json")
        identities.append(identity_of_settings(args)["fsdp_config"])
    assert identities[0] == identities[1] != identities[2]


def test_a_setting_that_an_older_version_did_not_know_had_its_default():
    before = settings()
    del before["dataloader_in_order"]
    assert not differences(before, settings())
    assert differences(before, settings(dataloader_in_order=False))


SAMPLES = [{"input_ids": [1, 2, 3], "loss_mask": [0, 1, 1]}, {"input_ids": [4, 5], "loss_mask": [1, 1]}]


@pytest.mark.parametrize(
    "other",
    [
        [{"input_ids": [1, 2, 9], "loss_mask": [0, 1, 1]}, SAMPLES[1]],
        [{"input_ids": [1, 2, 3], "loss_mask": [1, 1, 1]}, SAMPLES[1]],
        SAMPLES[::-1],
        SAMPLES[:1],
        [{"input_ids": [1, 2], "loss_mask": [0, 1]}, {"input_ids": [3, 4, 5], "loss_mask": [1, 1, 1]}],
        PackedDataset(SAMPLES, 8),
    ],
    ids=["a token", "a trained token", "the order", "fewer", "cut elsewhere", "packed"],
)
def test_other_texts_are_other_data(other):
    assert identity_of_data(other) != identity_of_data(SAMPLES)


def test_data_are_known_by_their_tokens_alone():
    as_tensors = [{name: torch.tensor(values) for name, values in sample.items()} for sample in SAMPLES]
    assert identity_of_data(as_tensors) == identity_of_data(SAMPLES)
    assert identity_of_data(iter(SAMPLES)) is None


def test_targets_are_known_by_their_weights_wherever_they_are(tmp_path):
    target = tiny_target("llama")
    before = identity_of_weights(target)
    target.save_pretrained(tmp_path / "moved")
    assert identity_of_weights(type(target).from_pretrained(tmp_path / "moved")) == before
    assert identity_of_weights(tiny_target("llama").to(torch.float16)) != before
    with torch.no_grad():
        target.model.layers[1].mlp.down_proj.weight += 1e-3
    assert identity_of_weights(target) != before


def test_an_offloaded_target_is_the_same_target():
    accelerate = pytest.importorskip("accelerate")
    before = identity_of_weights(tiny_target("llama"))
    offloaded = accelerate.cpu_offload(tiny_target("llama"))
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    assert identity_of_weights(offloaded) == before


RUN = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "num_unrolls": 2}


def start(folder, target=None, **changes):
    target = target or tiny_target("llama")
    return make_trainer(folder, target, random_draft(target), num_samples=16, **(RUN | changes))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run of four steps of which two were made."""
    folder = tmp_path_factory.mktemp("interrupted")
    start(folder).train()
    for path in sorted((folder / "checkpoint-4").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "checkpoint-4").rmdir()
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e-4}, "`learning_rate` 0.005, now 0.0001"),
        ({"max_steps": 6}, "`max_steps` 4, now 6"),
        ({"seed": 7}, "`seed` 42, now 7"),
        ({"weight_decay": 0.1}, "`weight_decay`"),
        ({"num_unrolls": 3}, "`num_unrolls` 2, now 3"),
        ({"lr_scheduler_type": "cosine"}, "`lr_scheduler_type` 'linear', now 'cosine'"),
        ({"warmup_steps": 1}, "`warmup_steps`"),
    ],
)
def test_a_run_with_another_recipe_does_not_go_on(interrupted, changes, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message follows
        start(interrupted, **changes).train(resume_from_checkpoint=True)
    assert message in str(error.value)
    assert "another `output_dir`" in str(error.value)


def test_a_run_with_other_data_or_another_target_does_not_go_on(interrupted):
    trainer = start(interrupted)
    trainer.train_dataset = [*trainer.train_dataset[:-1], trainer.train_dataset[0]]
    with pytest.raises(ValueError, match="differs from this one in the data"):
        trainer.train(resume_from_checkpoint=True)
    target = tiny_target("llama")
    trainer = start(interrupted, target)
    with torch.no_grad():
        target.lm_head.weight *= 1.5
    with pytest.raises(ValueError, match="differs from this one in the target"):
        trainer.train(resume_from_checkpoint=True)


def test_a_run_goes_on_with_other_logs_places_and_devices_for_the_same_numbers(interrupted, tmp_path):
    trainer = start(
        tmp_path, logging_steps=1, save_steps=3, run_name="other", dataloader_pin_memory=False,
        per_device_eval_batch_size=2, save_total_limit=1,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(interrupted / "checkpoint-2"))
    assert trainer.state.global_step == 4
    straight = start(tmp_path / "straight")
    straight.train()
    for name, tensor in straight.model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor)


def test_what_is_done_is_not_done_again(tmp_path):
    first = start(tmp_path)
    first.train()
    again = start(tmp_path)
    output = again.train(resume_from_checkpoint=True)
    assert (output.global_step, again.state.global_step) == (4, 4)
    assert all(torch.equal(a, again.model.state_dict()[name]) for name, a in first.model.state_dict().items())
    assert dataclasses.replace(again.progress, seconds=first.progress.seconds) == first.progress
    assert output.training_loss == pytest.approx(first.progress.total_loss / 4)


def test_a_run_at_a_constant_rate_may_be_made_longer(tmp_path):
    start(tmp_path, lr_scheduler_type="constant").train()
    longer = start(tmp_path, lr_scheduler_type="constant", max_steps=6)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 6
    assert longer.progress.num_starts == 2


def test_the_trainer_asks_this_module(monkeypatch, tmp_path):
    """Negative control: where nothing identifies a run, another learning rate goes on."""
    start(tmp_path, save_steps=2, max_steps=2).train()
    monkeypatch.setattr(run_identity, "differences", lambda *args: [])
    other = start(tmp_path, learning_rate=1.0)
    assert isinstance(other, EagleTrainer)
    other.train(resume_from_checkpoint=True)
    assert other.state.global_step == 4
