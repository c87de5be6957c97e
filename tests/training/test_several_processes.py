"""Several processes train the head that one process trains with as many more batches per step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import tiny_target
from doubles import letter_tokenizer
from processes import start
from run_fsdp import head_and_objective
from safetensors.torch import load_file


SCRIPT = Path(__file__).parent / "run_training.py"


def run(output: Path, world_size: int, **settings) -> dict[str, torch.Tensor]:
    """Weights of the head that so many processes train."""
    start([str(SCRIPT), str(output), json.dumps(settings)], world_size)
    return load_file(output / "final" / "model.safetensors")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), 1, gradient_accumulation_steps=2, save_strategy="no")


def test_two_processes_are_one_with_twice_the_accumulation(tmp_path, one_process):
    two = run(tmp_path, 2, save_strategy="no")
    assert "DistributedDataParallel" in json.loads((tmp_path / "wrapped.json").read_text())
    assert set(two) == set(one_process)
    for name, tensor in one_process.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)


def test_a_sharded_head_has_the_gradients_of_a_whole_one(tmp_path):
    """FSDP2. `accelerate` shards on accelerators only, so that the head is sharded by hand here."""
    start([str(SCRIPT.parent / "run_fsdp.py"), str(tmp_path / "gradients.safetensors")], 2)
    sharded = load_file(tmp_path / "gradients.safetensors")
    expected: dict[str, torch.Tensor] = {}
    for rank in range(2):
        head, objective = head_and_objective(rank)
        head(objective=objective).loss.backward()
        for name, parameter in head.named_parameters():
            expected[name] = expected.get(name, 0) + parameter.grad / 2
    assert set(sharded) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(sharded[name], gradient, atol=1e-6, rtol=1e-4)


def test_figures_cover_the_batches_of_all_processes(tmp_path, one_process):
    run(tmp_path, 2, save_strategy="no", max_steps=1)
    run(tmp_path / "one", 1, save_strategy="no", max_steps=1, gradient_accumulation_steps=2)
    two, one = (json.loads((folder / "log.json").read_text())[0] for folder in (tmp_path, tmp_path / "one"))
    assert two["simulated_acceptance_length"] == one["simulated_acceptance_length"]


def test_the_command_leaves_no_group_of_processes_behind(tmp_path):
    tiny_target("llama").save_pretrained(tmp_path / "target")
    letter_tokenizer().save_pretrained(tmp_path / "target")
    row = json.dumps({"prompt": "abcdefgh", "completion": "hgfedcba"})
    (tmp_path / "data.jsonl").write_text(f"{row}\n" * 16)
    options = [
        "train", "--target", str(tmp_path / "target"), "--data", str(tmp_path / "data.jsonl"), "--output_dir",
        str(tmp_path / "out"), "--use_cpu", "--report_to", "none", "--max_steps", "1", "--num_unrolls", "2",
        "--feature_layer_ids", "0", "1", "2", "--disable_tqdm", "True", "--save_strategy", "no",
        "--ddp_backend", "gloo",
    ]  # fmt: skip
    script = (
        "import sys, torch.distributed as dist\n"
        "from eagle_hf.cli.main import main\n"
        "main(sys.argv[1:])\n"
        "assert dist.is_available() and not dist.is_initialized()"
    )
    start(["-c", script, *options], 2)
    assert (tmp_path / "out" / "head" / "README.md").exists()


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path):
    run(tmp_path, 1, max_steps=2)
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), '{"per_device_train_batch_size": 2}'],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert result.returncode != 0
    assert "`per_device_train_batch_size` 4, now 2" in result.stderr
