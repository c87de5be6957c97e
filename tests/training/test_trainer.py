"""The plain training path: a head learns its target, which stays as it was."""

import torch
from architectures import tiny_target
from doubles import random_draft

from eagle_hf import EagleDraftModel
from eagle_hf.training import EagleTrainer, EagleTrainingArguments


def make_trainer(tmp_path, target, draft, num_samples=64, **arguments):
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, 90, (num_samples, 4), generator=generator)
    texts = target.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=16, do_sample=False, eos_token_id=None
    )
    dataset = [{"input_ids": text, "loss_mask": (torch.arange(20) >= 4).long()} for text in texts]
    settings = {
        "output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "logging_steps": 5,
        "save_strategy": "no", "per_device_train_batch_size": 8, "learning_rate": 5e-3, "max_steps": 30,
        "num_unrolls": 3, "disable_tqdm": True,
    }  # fmt: skip
    return EagleTrainer(draft, target, EagleTrainingArguments(**(settings | arguments)), train_dataset=dataset)


def test_a_head_learns_and_the_target_does_not_change(tmp_path):
    target = tiny_target("llama")
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    draft = random_draft(target, initializer_range=0.05)
    trainer = make_trainer(tmp_path, target, draft)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert logs[-1]["accuracy_0"] > 2 * logs[0]["accuracy_0"]
    assert logs[-1]["simulated_acceptance_length"] > logs[0]["simulated_acceptance_length"]
    assert {f"accuracy_{i}" for i in range(3)} <= set(logs[-1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_what_is_saved_is_the_head_alone(tmp_path):
    target = tiny_target("llama")
    trainer = make_trainer(tmp_path, target, random_draft(target), max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    loaded = EagleDraftModel.from_pretrained(tmp_path / "checkpoint-2")
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), trainer.model.state_dict().values(), strict=True)
    )


def test_training_that_goes_on_is_training_that_never_stopped(tmp_path):
    target = tiny_target("llama")
    straight = make_trainer(
        tmp_path / "a", target, random_draft(target), max_steps=8, save_strategy="steps", save_steps=4
    )
    straight.train()
    resumed = make_trainer(tmp_path / "b", target, random_draft(target), max_steps=8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    for a, b in zip(straight.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_an_own_embedding_stays_frozen(tmp_path):
    target = tiny_target("llama")
    draft = random_draft(target, own_embed_tokens=True)
    before = draft.embed_tokens.weight.clone()
    make_trainer(tmp_path, target, draft, max_steps=2).train()
    assert torch.equal(draft.embed_tokens.weight, before)
