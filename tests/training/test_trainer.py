"""The plain training path: a head learns its target, which stays as it was."""

import dataclasses

import pytest
import torch
from architectures import tiny_target
from doubles import random_draft
from huggingface_hub import ModelCard
from tiny_training import make_trainer

from eagle_hf import DraftOptions, EagleDraftModel
from eagle_hf.training import EagleTrainingArguments


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


def test_activation_checkpointing_trains_the_same_head(tmp_path):
    target = tiny_target("llama")
    names = {field.name for field in dataclasses.fields(EagleTrainingArguments)}
    switch = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    heads = []
    for value in (False, True):
        trainer = make_trainer(tmp_path, target, random_draft(target), max_steps=3, **{switch: value})
        trainer.train()
        assert trainer.model.gradient_checkpointing == value
        heads.append(trainer.model.state_dict())
    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name])


def test_eagle1_heads_learn_features_and_tokens(tmp_path):
    target = tiny_target("llama")
    draft = random_draft(target, eagle_version=1, initializer_range=0.05)
    trainer = make_trainer(tmp_path, target, draft, max_steps=60, num_unrolls=2, learning_rate=1e-2)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < 0.8 * logs[0]["loss"]
    assert logs[-1]["simulated_acceptance_length"] > logs[0]["simulated_acceptance_length"]


def test_evaluation_tells_the_acceptance_and_keeps_the_best_head(tmp_path):
    target = tiny_target("llama")
    trainer = make_trainer(
        tmp_path, target, random_draft(target, initializer_range=0.05), max_steps=20, eval_strategy="steps",
        eval_steps=5, save_strategy="best", save_total_limit=2, load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [5, 10, 15, 20]
    lengths = [entry["eval_simulated_acceptance_length"] for entry in evaluations]
    shares = [evaluations[-1][f"eval_accepted_at_depth_{depth}"] for depth in (1, 2, 3)]
    assert lengths[-1] == pytest.approx(1 + sum(shares), abs=2e-4)
    assert shares[0] >= shares[1] >= shares[2] > 0
    assert trainer.state.best_metric == max(lengths)
    best = EagleDraftModel.from_pretrained(trainer.state.best_model_checkpoint)
    assert all(torch.equal(t, trainer.model.state_dict()[name]) for name, t in best.state_dict().items())


def test_the_simulated_acceptance_length_is_that_of_generate(tmp_path):
    """On the target's own greedy text, the figure of training is what a greedy chain reaches in `generate`."""
    target = tiny_target("llama")
    draft = random_draft(target, initializer_range=0.05)
    trainer = make_trainer(tmp_path, target, draft, max_steps=120, num_unrolls=3)
    trainer.train()
    figures = trainer.evaluate(trainer.train_dataset)
    draft.eval().generation_config = DraftOptions(
        draft_tree="chain", num_assistant_tokens=1, output_draft_trees=True
    ).to_generation_config()
    accepted = drafted = 0
    for sample in trainer.train_dataset[:24]:
        output = target.generate(
            sample["input_ids"][None, :4], attention_mask=torch.ones(1, 4, dtype=torch.long), assistant_model=draft,
            max_new_tokens=16, do_sample=False, eos_token_id=None, return_dict_in_generate=True,
        )  # fmt: skip
        lengths = output.acceptance_lengths[0]
        accepted, drafted = accepted + sum(length - 1 for length in lengths[1:-1]), drafted + len(lengths[1:-1])
    assert accepted / drafted == pytest.approx(figures["eval_accepted_at_depth_1"], abs=0.12)


def test_a_loss_that_is_not_finite_ends_with_the_last_good_checkpoint(tmp_path):
    target = tiny_target("llama")
    trainer = make_trainer(tmp_path, target, random_draft(target), max_steps=8, save_strategy="steps", save_steps=2)
    calls, compute = [], trainer._objective

    def spoiled(*args):
        calls.append(1)
        result = compute(*args)
        result.loss = result.loss * float("nan") if len(calls) == 6 else result.loss
        return result

    trainer._objective = spoiled
    with pytest.raises(FloatingPointError, match=r"loss of step 6 is nan.*checkpoint-4"):
        trainer.train()
    loaded = EagleDraftModel.from_pretrained(tmp_path / "checkpoint-4")
    assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())


def test_a_head_of_another_target_is_refused_before_training(tmp_path):
    target = tiny_target("llama")
    with pytest.raises(ValueError, match=r"vocabulary of 96 tokens.*one of 97"):
        make_trainer(tmp_path, target, random_draft(target, vocab_size=97, draft_vocab_size=96))
    with pytest.raises(ValueError, match=r"hidden states of size 32.*features of size 48"):
        make_trainer(tmp_path, target, random_draft(target, target_hidden_size=48, own_embed_tokens=True))


def test_a_target_without_hidden_states_is_refused(tmp_path, monkeypatch):
    target = tiny_target("llama")
    trainer = make_trainer(tmp_path, target, random_draft(target))
    forward = type(target).forward

    def without(self, *args, **kwargs):
        return forward(self, *args, **kwargs | {"output_hidden_states": False})

    monkeypatch.setattr(type(target), "forward", without)
    with pytest.raises(ValueError, match="LlamaForCausalLM returned no `hidden_states`"):
        trainer.train()


def test_bfloat16_autocast_trains_float32_weights(tmp_path):
    target = tiny_target("llama")
    trainer = make_trainer(tmp_path, target, random_draft(target, initializer_range=0.05), bf16=True)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert trainer.model.dtype == torch.float32


def test_its_card_is_that_of_a_head(tmp_path):
    target = tiny_target("llama")
    make_trainer(tmp_path, target, random_draft(target)).create_model_card(license="mit", tags="tiny", model_name="x")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "eagle_hf"
    assert card.data.license == "mit"
    assert "tiny" in card.data.tags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "mse"}, "`loss` must be one of cross_entropy, kl"),
        ({"num_unrolls": 0}, "`num_unrolls` must be at least 1"),
        ({"feature_noise": -0.1}, "`feature_noise` must not be negative"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        EagleTrainingArguments(output_dir=str(tmp_path), **arguments)


def test_an_own_embedding_stays_frozen(tmp_path):
    target = tiny_target("llama")
    draft = random_draft(target, own_embed_tokens=True)
    before = draft.embed_tokens.weight.clone()
    make_trainer(tmp_path, target, draft, max_steps=2).train()
    assert torch.equal(draft.embed_tokens.weight, before)
