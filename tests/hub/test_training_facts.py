"""The record of a training travels with its head, and nothing in it is passed over."""

import json
from pathlib import Path

import pytest
from architectures import tiny_target
from doubles import random_draft

from eagle_hf import EagleDraftModel
from eagle_hf.hub import Measurements, TaskResult, TrainingFacts, create_model_card
from eagle_hf.hub.training_facts import FILE, VERSION


EVALUATION = Measurements(
    [TaskResult("kept out, greedy", 1.5, 7, acceptance_by_depth=[0.5, 0.25], speedup_quartiles=(1.0, 2.0))],
    "eagle-hf train", "CPU", "float32", versions={"torch": "2"}, tokens_compared=5,
)  # fmt: skip
BEFORE = TrainingFacts("eagle-hf train --seed 1", "before", steps=10, num_tokens=1000)
FACTS = TrainingFacts(
    command="eagle-hf train --data answers.jsonl", data="40 rows read.", datasets=("org/data",), license="mit",
    hyperparameters={"learning_rate (peak)": 1e-4, "num_unrolls": 7}, seed=3, hardware="CPU", hours=1.25, num_starts=3,
    steps=1200, epochs=2.5, num_tokens=123456, num_trained_tokens=65432, longest=580, max_length=2048,
    coverage=0.9876, last_logged_loss=2.702, mean_loss=6.114, final_metrics={"acceptance": 2.0},
    rows={"rows_read": 40}, evaluation=EVALUATION, started_from=BEFORE, versions={"torch": "2"}, git_sha="abc",
)  # fmt: skip


@pytest.fixture
def draft():
    return random_draft(tiny_target("llama"))


def test_everything_is_read_back():
    again = TrainingFacts.from_json(FACTS.to_json())
    assert again.to_json() == FACTS.to_json()
    assert again.evaluation.results[0].speedup_quartiles == (1.0, 2.0)
    assert again.started_from.steps == 10
    assert list(json.loads(FACTS.to_json()).items())[0] == ("eagle_hf_training", VERSION)


def test_what_is_not_known_is_left_out():
    facts = TrainingFacts("c", "d", versions={})
    assert json.loads(facts.to_json()) == {"eagle_hf_training": VERSION, "command": "c", "data": "d"}
    assert TrainingFacts.from_json(facts.to_json()) == facts


def changed(**changes):
    return json.dumps({"eagle_hf_training": VERSION, "command": "c", "data": "d"} | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('["eagle_hf_training"]', "no record of eagle_hf"),
        ('{"command": "c", "data": "d"}', "no record of eagle_hf"),
        (changed(eagle_hf_training=2), "version 2, and this eagle_hf reads version 1"),
        (changed(eagle_hf_training="1"), "version '1'"),
        (changed(stepz=5), "has `stepz`, which version 1 of the record does not know"),
        ('{"eagle_hf_training": 1, "command": "c"}', "lacks `data`"),
        (changed(steps="many"), "`steps` is 'many', expected a whole number"),
        (changed(steps=1.5), "`steps` is 1.5, expected a whole number"),
        (changed(hours=True), "`hours` is True, expected a number"),
        (changed(command=["c"]), "`command` is ['c'], expected a text"),
        (changed(datasets="org/data"), "`datasets` is 'org/data', expected a list"),
        (changed(evaluation={"results": []}), "lacks `command`"),
        (changed(evaluation={"command": "c", "hardware": "h", "dtype": "d", "results": [{"tau": 1}]}), "has `tau`"),
        (changed(started_from={"command": "c", "data": "d", "x": 1}), "has `x`"),
    ],
)  # fmt: skip
def test_nothing_is_passed_over(text, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message follows
        TrainingFacts.from_json(text, "head/training.json")
    assert message in str(error.value)
    assert "head/training.json" in str(error.value)


def test_it_travels_with_the_head(draft, tmp_path):
    draft.training_facts = FACTS
    draft.save_pretrained(tmp_path / "a")
    loaded = EagleDraftModel.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    again = EagleDraftModel.from_pretrained(tmp_path / "b")
    assert again.training_facts.to_json() == FACTS.to_json()
    assert str(create_model_card(again, "org/head")) == str(create_model_card(draft, "org/head", training=FACTS))
    for text in ("| steps made | 1,200 |", "| training loss, last logged | 2.702 |", "98.76% of the trained text",
                 "| training loss, mean of all steps | 6.114 |", "trained on up to 580 tokens (limit 2,048)",
                 "| pieces (1: never interrupted) | 3 |", "The head: mit.", "kept out, greedy",
                 "had been trained before (10 steps, 1,000 tokens), by: `eagle-hf train --seed 1`"):  # fmt: skip
        assert text in create_model_card(again, "org/head").text


def test_a_head_without_a_record_takes_over_no_other_ones(draft, tmp_path):
    draft.training_facts = FACTS
    draft.save_pretrained(tmp_path)
    random_draft(tiny_target("llama")).save_pretrained(tmp_path)
    assert not (tmp_path / FILE).exists()
    assert EagleDraftModel.from_pretrained(tmp_path).training_facts is None


def test_a_record_that_cannot_be_read_does_not_keep_a_head_from_drafting(draft, tmp_path):
    """It loads and keeps the record for a version that can read it; asked for it, it says why it cannot."""
    draft.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / FILE).write_text(changed(eagle_hf_training=9))
    loaded = EagleDraftModel.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / FILE).read_text() == changed(eagle_hf_training=9)
    with pytest.raises(ValueError, match="version 9"):
        create_model_card(loaded, "org/head")


@pytest.mark.parametrize(
    "path", ["/data/models/target", "../target", "~/target", "C:\\models\\target", "file:///target"]
)
def test_no_path_of_a_target_is_saved(draft, tmp_path, path):
    draft.config.base_model_name_or_path = path
    draft.save_pretrained(tmp_path)
    assert draft.config.base_model_name_or_path == path  # what is in memory is the user's
    assert EagleDraftModel.from_pretrained(tmp_path).config.base_model_name_or_path is None
    assert all(path not in file.read_text(errors="ignore") for file in Path(tmp_path).iterdir())
    draft.config.base_model_name_or_path = "/cache/models--org--target/snapshots/0123"
    draft.save_pretrained(tmp_path)
    assert EagleDraftModel.from_pretrained(tmp_path).config.base_model_name_or_path == "org/target"
