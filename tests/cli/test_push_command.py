"""`eagle-hf push` as a user runs it, against a Hub of our own: the card is that of the record, and no path goes out."""

import json
from pathlib import Path

import pytest
from architectures import tiny_target
from doubles import random_draft
from fake_hub import TOKEN, Client, FakeHub
from huggingface_hub import ModelCard

from eagle_hf.cli.main import main
from eagle_hf.hub import TrainingFacts, create_model_card
from eagle_hf.hub.card_file import put_tables
from eagle_hf.hub.training_facts import FILE


FACTS = TrainingFacts(
    "eagle-hf train --target target",
    "40 rows read.",
    steps=1200,
    last_logged_loss=2.702,
    mean_loss=6.114,
    license="mit",
)

PUSHED = {".gitattributes", "README.md", "config.json", "generation_config.json", "model.safetensors", FILE}


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub):
    with Client(hub.url) as client:
        client.run("""
import contextlib, io
from eagle_hf import EagleDraftModel
from eagle_hf.cli.main import main
def command(*words):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = main(["push", *words])
    return [status, printed.getvalue()]
""")
        yield client


@pytest.fixture
def folder(tmp_path):
    draft = random_draft(tiny_target("llama"))
    draft.training_facts = FACTS
    draft.save_pretrained(tmp_path / "head")
    create_model_card(draft, "head").save(tmp_path / "head" / "README.md")
    return tmp_path / "head"


def push(client, *words):
    return client.run(f"result = command(*{[str(word) for word in words]!r}, '--token', {TOKEN!r})")


def test_the_record_goes_along_and_every_way_makes_the_same_card(hub, client, folder):
    status, printed = push(client, folder, "org/pushed", "--base_model", "org/target", "--yes")
    assert status == 0, printed
    files = hub.files("org/pushed")
    assert set(files) == PUSHED
    card = files["README.md"].decode()
    assert card.split("---", 2)[2].strip() in printed  # shown first
    assert json.loads(files["config.json"])["base_model_name_or_path"] == "org/target"
    assert TrainingFacts.from_json(files[FILE].decode()).steps == 1200
    assert "| training loss, last logged | 2.702 |" in card
    assert ModelCard(card).data.license == "mit"

    client.run(f"""
head = EagleDraftModel.from_pretrained("org/pushed")
head.push_to_hub("org/by_hand", token={TOKEN!r})
""")
    assert hub.files("org/by_hand")["README.md"].decode() == card.replace("org/pushed", "org/by_hand").replace(
        "# pushed", "# by_hand"
    )
    assert hub.files("org/by_hand")[FILE] == files[FILE]


def test_a_target_without_a_name_is_refused(client, folder):
    status, printed = push(client, folder, "org/nameless", "--yes")
    assert status == 1
    assert "names nothing as its target" in printed
    assert "--base_model org/target" in printed
    config = json.loads((folder / "config.json").read_text())
    for path in ("/data/target", "./target", "~/target", "C:\\target", "file:///target", str(folder)):
        (folder / "config.json").write_text(json.dumps(config | {"base_model_name_or_path": path}))
        assert "a path of this machine" in push(client, folder, "org/nameless", "--yes")[1]
        status, printed = push(client, folder, "org/nameless", "--yes", "--base_model", path)
        assert status == 1
        assert "which is a path of this machine" in printed


def test_a_card_with_tables_keeps_them_under_the_new_name(hub, client, folder):
    card = ModelCard.load(folder / "README.md")
    card.text = put_tables(card.text, "| gsm8k | 3.1 |")
    card.save(folder / "README.md")
    status, printed = push(client, folder, "org/measured", "--base_model", "org/target", "--yes")
    assert status == 0, printed
    assert "edited by hand" not in printed
    text = hub.files("org/measured")["README.md"].decode()
    assert "| gsm8k | 3.1 |" in text
    assert 'EagleDraftModel.from_pretrained("org/measured")' in text
    assert 'from_pretrained("org/target"' in text
    assert "# measured" in text


def test_a_card_that_was_edited_is_kept(hub, client, folder):
    path = folder / "README.md"
    path.write_text(path.read_text().replace("## Limitations\n", "## Limitations\n\nNot for poems.\n"))
    options = ["--base_model", "org/target", "--license", "apache-2.0", "--datasets", "org/data", "--yes"]
    status, printed = push(client, folder, "org/edited", *options)
    assert status == 0, printed
    assert "edited by hand" in printed
    card = ModelCard(hub.files("org/edited")["README.md"].decode())
    assert "Not for poems." in card.text
    assert 'EagleDraftModel.from_pretrained("org/edited")' in card.text
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("apache-2.0", "org/target", ["org/data"])


def test_wishes_go_into_card_and_record(hub, client, folder):
    options = ["--base_model", "org/target", "--license", "apache-2.0", "--datasets", "org/a", "org/b", "--yes"]
    assert push(client, folder, "org/wishes", *options)[0] == 0
    card = ModelCard(hub.files("org/wishes")["README.md"].decode())
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["org/a", "org/b"])
    record = TrainingFacts.from_json(hub.files("org/wishes")[FILE].decode())
    assert (record.license, record.datasets) == ("apache-2.0", ("org/a", "org/b"))


def test_a_record_of_another_head_does_not_stay(hub, client, folder):
    assert push(client, folder, "org/again", "--base_model", "org/target", "--yes")[0] == 0
    (folder / FILE).unlink()
    status, printed = push(client, folder, "org/again", "--base_model", "org/target", "--yes")
    assert status == 0
    assert "not recorded: there is no training.json" in printed
    assert FILE not in hub.files("org/again")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "org/head"], "There is no folder nowhere"),
        (["{folder}", "/data/head"], "is no repository to push to"),
        (["{folder}/..", "org/head"], "its head is in"),
        (["{folder}", "org/head", "--base_model", "org/target"], "pass `--yes` once the card is right"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_anything_is_sent(folder, words, message, capsys):
    assert main(["push", *[word.format(folder=folder) for word in words]]) == 1
    assert message in capsys.readouterr().err


def test_missing_weights_are_refused(folder, capsys):
    (folder / "model.safetensors").unlink()
    assert main(["push", str(folder), "org/head", "--base_model", "org/target", "--yes"]) == 1
    assert "eagle-hf push: " in capsys.readouterr().err


def test_nothing_is_pushed_without_consent(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(["push", str(folder), "org/head", "--base_model", "org/target"]) == 1
    assert "Nothing was pushed." in capsys.readouterr().out


def test_a_version_that_cannot_be_read_is_said(folder, capsys):
    (folder / FILE).write_text('{"eagle_hf_training": 7}')
    assert main(["push", str(folder), "org/head", "--base_model", "org/target", "--yes"]) == 1
    assert "a record of version 7" in capsys.readouterr().err


def test_the_trainer_pushes_the_head_and_nothing_else(hub, client, tmp_path):
    tests = str(Path(__file__).parents[1])
    client.run(f"""
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/training"]
from architectures import tiny_target
from doubles import random_draft
from tiny_training import make_trainer
target = tiny_target("llama")
draft = random_draft(target, base_model_name_or_path="org/target")
trainer = make_trainer({str(tmp_path / "out")!r}, target, draft, max_steps=2, save_strategy="steps", save_steps=1,
                       push_to_hub=True, hub_model_id="org/trained", hub_token={TOKEN!r})
with contextlib.redirect_stdout(io.StringIO()):
    trainer.train()
    trainer.push_to_hub()
""")
    files = hub.files("org/trained")
    assert set(files) == PUSHED
    assert "| steps made | 2 |" in files["README.md"].decode()
    assert all(str(tmp_path).encode() not in content for content in files.values())
    assert client.run("result = EagleDraftModel.from_pretrained('org/trained').training_facts.steps") == 2
