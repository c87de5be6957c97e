"""Pushing while training: refused at once where it could not work, and no reason to stop training later."""

import pytest
from architectures import tiny_target
from doubles import random_draft
from tiny_training import make_trainer


def test_a_trainer_that_is_to_push_refuses_a_target_without_a_name_at_once(tmp_path):
    target = tiny_target("llama")
    with pytest.raises(ValueError, match="names nothing as its target"):
        make_trainer(tmp_path, target, random_draft(target), push_to_hub=True, hub_model_id="org/head")


def test_training_goes_on_where_the_hub_is_away(tmp_path, monkeypatch, caplog):
    target = tiny_target("llama")
    draft = random_draft(target, base_model_name_or_path="org/target")
    trainer = make_trainer(tmp_path, target, draft, max_steps=2, save_strategy="steps", save_steps=1)

    def away(*args, **kwargs):
        raise OSError("nobody there")

    monkeypatch.setattr("eagle_hf.training.publishing_trainer.push_head", away)
    trainer.args.push_to_hub, trainer.args.hub_model_id = True, "org/head"
    trainer.train()
    assert trainer.state.global_step == 2
    assert "was not pushed: nobody there" in caplog.text


def test_no_pickle_of_arguments_is_saved(tmp_path):
    target = tiny_target("llama")
    trainer = make_trainer(tmp_path, target, random_draft(target), max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "head"))
    assert not list(tmp_path.rglob("training_args.bin"))
    assert len(list(tmp_path.rglob("training.json"))) == 2  # of the checkpoint and of the head
