"""What a run of `eagle-hf train` says of itself is what its log says, over all of its pieces, and names no path."""

import json
import os
import signal
import subprocess
import sys

import pytest
from architectures import tiny_target
from doubles import letter_tokenizer
from huggingface_hub import ModelCard

from eagle_hf import EagleDraftModel
from eagle_hf.cli.main import main
from eagle_hf.hub import create_model_card
from eagle_hf.training.durable_checkpoints import complete_checkpoints


@pytest.fixture
def command(tmp_path):
    tiny_target("llama").save_pretrained(tmp_path / "target")
    letter_tokenizer().save_pretrained(tmp_path / "target")
    rows = [{"prompt": "abc"[: 1 + i % 3] * 2, "completion": "defgh"[: 1 + i % 5] * 3} for i in range(24)]
    rows.append({"prompt": "ab", "completion": "cd" * 40})  # longer than the limit
    lines = [json.dumps(row) for row in rows]
    lines[7] = "{"
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    return [
        "train", "--target", str(tmp_path / "target"), "--data", str(tmp_path / "data.jsonl"), "--max_malformed", "0.1",
        "--output_dir", str(tmp_path / "out"), "--use_cpu", "--report_to", "none", "--max_steps", "10",
        "--per_device_train_batch_size", "4", "--num_unrolls", "2", "--learning_rate", "5e-3", "--warmup_steps", "2",
        "--feature_layer_ids", "0", "1", "2", "--disable_tqdm", "True", "--save_steps", "2", "--logging_steps", "1",
        "--max_length", "30", "--draft_vocab_size", "8", "--eval_samples", "3",
    ]  # fmt: skip


KILLED = """
import os, sys, torch
from eagle_hf.cli.main import main
from eagle_hf.training import EagleTrainer
torch.set_num_threads(1)
step = EagleTrainer.training_step
def training_step(self, *args, **kwargs):
    if self.state.global_step == int(sys.argv[1]):
        os.kill(os.getpid(), int(sys.argv[2]))
    return step(self, *args, **kwargs)
EagleTrainer.training_step = training_step
main(sys.argv[3:])
"""


def kill(command, at_step, with_signal):
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(at_step), str(int(with_signal)), *command],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    assert result.returncode == -with_signal


def rows_of(card):
    lines = [line.split("|") for line in card.text.splitlines() if line.startswith("| ") and line.count("|") == 3]
    return {line[1].strip(): line[2].strip() for line in lines}


def test_a_run_that_was_interrupted_twice_tells_what_its_log_tells(tmp_path, command):
    kill(command, 5, signal.SIGKILL)
    assert [path.name for path in complete_checkpoints(tmp_path / "out")] == ["checkpoint-2", "checkpoint-4"]
    kill(command, 9, signal.SIGTERM)
    before = json.loads((tmp_path / "out" / "checkpoint-8" / "checkpoint_complete.json").read_text())["progress"]
    assert main(command) == 0
    assert main([*command, "--output_dir", str(tmp_path / "straight")]) == 0

    head = EagleDraftModel.from_pretrained(tmp_path / "out" / "head")
    straight = EagleDraftModel.from_pretrained(tmp_path / "straight" / "head")
    facts = head.training_facts
    state = json.loads((tmp_path / "out" / "checkpoint-10" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == facts.steps == state["global_step"] == 10
    assert facts.last_logged_loss == losses[-1]
    assert facts.mean_loss == pytest.approx(sum(losses) / 10, rel=1e-3)
    assert facts.mean_loss != pytest.approx(losses[-1], rel=1e-2)
    assert facts.epochs == pytest.approx(state["epoch"], abs=1e-3)
    assert facts.num_starts == 3
    assert before["num_starts"] == 2
    assert facts.hours * 3600 > before["seconds"] > 0
    for name in ("num_tokens", "num_trained_tokens", "longest", "steps", "epochs", "mean_loss", "last_logged_loss",
                 "rows", "coverage", "data", "hyperparameters"):  # fmt: skip
        assert (
            getattr(facts, name) == pytest.approx(getattr(straight.training_facts, name))
            if name == "mean_loss"
            else (getattr(facts, name) == getattr(straight.training_facts, name))
        )
    assert facts.num_tokens > before["num_tokens"] > 0

    card = ModelCard.load(tmp_path / "out" / "head" / "README.md")
    rows = rows_of(card)
    assert rows["steps made"] == "10"
    assert rows["pieces (1: never interrupted)"] == "3"
    assert float(rows["training loss, last logged"]) == pytest.approx(losses[-1], rel=1e-3)
    assert float(rows["training loss, mean of all steps"]) == pytest.approx(sum(losses) / 10, rel=1e-3)
    assert rows["tokens read"] == f"{facts.num_tokens:,}"
    assert {"num_unrolls": "2", "warmup_steps": "2", "lr_scheduler_type": "linear"}.items() <= rows.items()
    assert rows["learning_rate (peak)"] == "0.005"
    assert "25 rows read, 1 of them malformed. 21 samples of" in card.text
    assert "3 more were kept for evaluation" in card.text
    assert "1 cut (by" in card.text
    assert "trained on up to 30 tokens (limit 30)" in card.text
    assert f"which cover {facts.coverage:.2%} of the trained text" in card.text


def test_no_path_of_the_disk_is_in_the_heads_folder(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for target in (str(tmp_path / "target"), "target", "./target", f"../{tmp_path.name}/target"):
        data = f"../{tmp_path.name}/data.jsonl"
        options = ["--target", target, "--output_dir", "runs/secret/out", "--max_steps", "1", "--data", data]
        options += ["--hub_token", "hf_secret"]
        assert main([*command, *options, "--license", "mit", "--datasets", "org/data"]) == 0
        folder = tmp_path / "runs" / "secret" / "out" / "head"
        for file in folder.iterdir():
            content = file.read_bytes()
            for path in (str(tmp_path), "../", "./target", "secret", tmp_path.name):
                assert path.encode() not in content, file
        assert {file.name for file in folder.iterdir()} == {
            "README.md", "config.json", "generation_config.json", "model.safetensors", "training.json",
        }  # fmt: skip
        (tmp_path / "runs").rename(tmp_path / f"done-{len(list(tmp_path.iterdir()))}")
    card = ModelCard.load(next(tmp_path.glob("done-*/secret/out/head/README.md")))
    assert (card.data.license, card.data.datasets, card.data.base_model) == ("mit", ["org/data"], None)
    assert "Its target has no name here" in card.text


def test_a_target_is_named_where_the_user_names_it(tmp_path, command, capsys):
    public = ["--base_model", "org/target", "--hub_model_id", "org/EAGLE3-target", "--max_steps", "1"]
    assert main([*command, *public]) == 0
    head = EagleDraftModel.from_pretrained(tmp_path / "out" / "head")
    assert head.config.base_model_name_or_path == "org/target"
    assert "--target org/target" in head.training_facts.command
    card = ModelCard.load(tmp_path / "out" / "head" / "README.md")
    assert card.data.base_model == "org/target"
    assert 'EagleDraftModel.from_pretrained("org/EAGLE3-target")' in card.text
    assert card.content == create_model_card(head, "org/EAGLE3-target").content
    checkpoint = EagleDraftModel.from_pretrained(tmp_path / "out" / "checkpoint-1")
    assert checkpoint.training_facts.steps == 1
    for option in ("--base_model", "--hub_model_id"):
        for path in (str(tmp_path / "target"), "./target", "~/target", "C:\\target"):
            assert main([*command, option, path]) == 1
            assert "is a path or no name at all" in capsys.readouterr().err
    assert main([*command, "--push_to_hub"]) == 1
    assert "needs `--hub_model_id`" in capsys.readouterr().err
    assert main([*command, "--push_to_hub", "--hub_model_id", "org/head"]) == 1
    assert "needs `--base_model`" in capsys.readouterr().err


def test_a_head_that_is_trained_further_says_what_it_was_before(tmp_path, command):
    assert main([*command, "--max_steps", "2", "--base_model", "org/target"]) == 0
    first = tmp_path / "out" / "head"
    further = [*command, "--head", str(first), "--output_dir", str(tmp_path / "further"), "--max_steps", "1"]
    assert main(further) == 0
    head = EagleDraftModel.from_pretrained(tmp_path / "further" / "head")
    assert (head.training_facts.steps, head.training_facts.started_from.steps) == (1, 2)
    assert head.config.base_model_name_or_path == "org/target"  # the folder has its name
    assert "The head had been trained before (2 steps," in (tmp_path / "further" / "head" / "README.md").read_text()
