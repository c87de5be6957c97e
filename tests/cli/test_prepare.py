"""`eagle-hf prepare` as a user runs it, and as it is killed."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from chat_tokenizers import chat_tokenizer, chatty_target
from conftest import use_options
from doubles import random_draft

from eagle_hf.cli import prepare
from eagle_hf.cli.main import main
from eagle_hf.training import make_samples


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path):
    tokenizer = chat_tokenizer("qwen_like")
    target = chatty_target(tokenizer)
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    draft = use_options(random_draft(target), num_assistant_tokens=5, draft_depth=3, draft_width=2)
    draft.save_pretrained(tmp_path / "draft")
    rows = [{"messages": [{"role": "user", "content": f"Hi number {i}"}]} for i in range(30)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(folder, output, *more):
    return [
        "prepare", "--target", str(folder / "target"), "--data", str(folder / "data.jsonl"), "--output",
        str(folder / output), "--max_new_tokens", "24", "--batch_size", "2", "--threads", "1", *more,
    ]  # fmt: skip


def test_answers_are_written_and_can_be_trained(folder, capsys):
    assert main(command(folder, "answers.jsonl", "--draft", str(folder / "draft"))) == 0
    printed = capsys.readouterr().out
    assert "30 rows read, 0 of them malformed" in printed
    assert "30 answers of " in printed
    assert len(make_samples(folder / "answers.jsonl", chat_tokenizer("qwen_like"))) == 30


def test_killed_and_started_again_it_writes_the_file_of_a_run_that_was_left_alone(folder, capsys):
    """`kill -9` while it writes, then the same command again."""
    sampled = ["--temperature", "1"]
    assert main(command(folder, "whole.jsonl", *sampled)) == 0
    whole = (folder / "whole.jsonl").read_bytes()
    path, limit = folder / "torn.jsonl", time.monotonic() + 200
    killed = subprocess.Popen(
        [sys.executable, "-m", "eagle_hf.cli.main", *command(folder, path.name, *sampled)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while (not path.exists() or path.stat().st_size < 3000) and killed.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 0 < path.stat().st_size < len(whole)
    capsys.readouterr()
    assert main(command(folder, path.name, *sampled)) == 0
    assert "0 answers were there already" not in capsys.readouterr().out
    assert path.read_bytes() == whole


def test_other_settings_are_refused_in_one_line(folder, capsys):
    assert main(command(folder, "answers.jsonl", "--num_prompts", "2")) == 0
    assert main(command(folder, "answers.jsonl", "--num_prompts", "3")) == 1
    assert "eagle-hf prepare: " in (printed := capsys.readouterr().err)
    assert "num_prompts was 2 and is 3" in printed


def test_a_dataset_without_datasets_says_which_extra_is_missing(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    arguments = command(folder, "answers.jsonl")
    arguments[arguments.index("--data") + 1] = "org/data"
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert "eagle-hf[train]" in printed
    assert "eagle-hf[demo]" not in printed


def test_every_option_is_documented():
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    assert all(action.help for action in parser._actions)
