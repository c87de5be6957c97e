"""The scripts that made the demo pair run from data to head, on a CPU, in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from eagle_hf import EagleDraftModel


ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "hub_cards" / "demo-llama-7m"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = []
    for number in range(40):
        question = f"Tom has {number} apples and buys {number + 3} more. How many apples does he have now?"
        answer = f"Tom has {number}+{number + 3}={2 * number + 3} apples.\n#### {2 * number + 3}"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"source": "gsm8k_train", "domain": "math", "messages": messages})
    rows.append({"source": "mbxp", "domain": "code", "finished": False, "messages": rows[0]["messages"]})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(*arguments):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def target(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("target")
    common = ["--data", data, "--tokenizer", TOKENIZER, "--output", output, "--max_steps", 2, "--batch_size", 2]
    for stage in ("stage1", "stage2"):
        printed = run("scripts/train_demo_target.py", stage, *common, "--no-compile")
        assert "7.28M parameters" in printed
    return output / "stage2"


def test_the_target_is_a_llama_with_its_tokenizer(target):
    assert AutoModelForCausalLM.from_pretrained(target).config.num_hidden_layers == 16
    assert (target / "chat_template.jinja").exists()


def test_the_larger_target_is_one_option_away(data, tmp_path):
    printed = run(
        "scripts/train_demo_target.py", "stage1", "--data", data, "--tokenizer", TOKENIZER, "--output", tmp_path,
        "--size", "large", "--max_steps", 1, "--batch_size", 1, "--no-compile",
    )  # fmt: skip
    assert "M parameters" in printed


def test_the_head_is_trained_by_the_commands_of_its_card(data, target, tmp_path):
    run("scripts/train_demo_target.py", "mix", "--data", data, "--output", tmp_path)
    assert len((tmp_path / "mix.jsonl").read_text().splitlines()) == 40  # the unfinished one is left out
    command = ["-m", "eagle_hf.cli.main"]
    run(
        *command, "prepare", "--target", target, "--data", tmp_path / "mix.jsonl", "--output",
        tmp_path / "answers.jsonl", "--max-length", 64, "--num-prompts", 12, "--batch-size", 8,
    )  # fmt: skip
    printed = run(
        *command, "train", "--config", "scripts/demo_head.yaml", "--target", target, "--data",
        tmp_path / "answers.jsonl", "--output_dir", tmp_path, "--max_steps", 2, "--use_cpu",
    )  # fmt: skip
    assert "draft vocabulary of 4096 tokens, which covers 100.00%" in printed
    head = EagleDraftModel.from_pretrained(tmp_path / "head")
    model = AutoModelForCausalLM.from_pretrained(target)
    assert head.config.resolve_feature_layer_ids(model.config.num_hidden_layers) == [2, 8, 13]
