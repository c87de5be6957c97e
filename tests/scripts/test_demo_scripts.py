"""The scripts that made the demo pair run from data to head, on a CPU, in small."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from eagle_hf import EagleDraftModel


ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "hub_cards" / "demo-llama-10m"


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
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def target(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("target")
    common = ["--data", data, "--tokenizer", TOKENIZER, "--output", output, "--max_steps", 2, "--batch_size", 2]
    for stage, size in (("stage1", "7.28M"), ("stage2", "10.13M")):
        printed = run("scripts/train_demo_target.py", stage, *common, "--no-compile")
        assert f"{size} parameters" in printed
    return output / "stage2"


def test_the_target_is_a_llama_with_its_tokenizer(target):
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.config.num_hidden_layers == 24
    assert model.dtype == torch.float32
    assert (target / "model.safetensors").stat().st_size < 21e6  # bfloat16, the tied `lm_head` once
    assert (target / "chat_template.jinja").exists()


def test_a_target_that_has_grown_computes_what_it_did():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    spec = importlib.util.spec_from_file_location("train_demo_target", ROOT / "scripts" / "train_demo_target.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    deeper = script.deepen(model).eval()
    assert deeper.config.num_hidden_layers == 6
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, deeper(ids).logits)
    deeper.lm_head.weight.data.zero_()
    assert not deeper.model.embed_tokens.weight.any()  # still tied


def test_the_larger_target_is_one_option_away(data, tmp_path):
    printed = run(
        "scripts/train_demo_target.py", "stage1", "--data", data, "--tokenizer", TOKENIZER, "--output", tmp_path,
        "--size", "large", "--max_steps", 1, "--batch_size", 1, "--no-compile",
    )  # fmt: skip
    assert "M parameters" in printed


def test_the_head_is_trained_by_the_commands_of_its_card(data, target, tmp_path):
    run("scripts/train_demo_target.py", "mix", "--data", data, "--output", tmp_path)
    assert len((tmp_path / "mix.jsonl").read_text().splitlines()) == 40  # the unfinished one is left out
    for domain, expected in (("math", 40), ("chat", 0)):
        folder = tmp_path / domain
        run("scripts/train_demo_target.py", "mix", "--domain", domain, "--data", data, "--output", folder)
        assert len((folder / "mix.jsonl").read_text().splitlines()) == expected
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
    assert head.config.resolve_feature_layer_ids(model.config.num_hidden_layers) == [2, 12, 21]
