"""The benchmarks run and say what they promise, in small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


def run(name, *arguments):
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_speed_reports_ratios_of_equal_tokens_only(tmp_path):
    prompts = (ROOT / "benchmarks" / "held_out_prompts.jsonl").read_text().splitlines()[::9]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts))
    run(
        "speed",
        "--repeats",
        2,
        "--new-tokens",
        8,
        "--threads",
        1,
        "--prompts",
        tmp_path / "prompts.jsonl",
        "--json",
        tmp_path / "r.json",
    )
    result = json.loads((tmp_path / "r.json").read_text())
    assert len(result["step_cost"]["step_in_plain_tokens"]) == 2
    for run_name in ("demo_greedy", "demo_sampled"):
        assert result[run_name]["tokens_equal"] is True
        assert result[run_name]["new_tokens"] <= 8 * len(prompts)
        assert result[run_name]["mean_acceptance_length"] >= 1
        assert list(result[run_name]["other_methods"]) == ["eagle 15/6/4"]


def test_lossless_counts_every_case(tmp_path):
    printed = run("lossless", "--cases", 8, "--first", 3, "--workers", 1, "--json", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["calls"], result["cases"], result["mismatches"]) == (2, 8, 0)
    assert printed.splitlines()[-1].startswith("8 cases (2 calls, ")


def test_profile_names_every_part_of_a_step():
    printed = run("profile_step", "--repeats", 1, "--threads", 1)
    for part in ("draft", "tree", "verify", "walk", "cache", "rest", "step"):
        assert printed.count(f"\n{part}") == 2


def test_sweep_prints_a_line_per_tree(tmp_path):
    prompts = (ROOT / "benchmarks" / "held_out_prompts.jsonl").read_text().splitlines()[:2]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts))
    arguments = ["--repeats", 1, "--new-tokens", 4, "--threads", 1, "--prompts", tmp_path / "prompts.jsonl"]
    printed = run("tree_sweep", *arguments)
    assert len(printed.splitlines()) == 10


def test_training_cost_measures_every_length(tmp_path):
    arguments = ["--lengths", 32, 64, "--steps", 1, "--num_unrolls", 2, "--threads", 1]
    run("training_cost", *arguments, "--json", tmp_path / "r.json")
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["length"] for row in rows] == [32, 64]
    assert all(row["tokens_per_second"] > 0 for row in rows)


def test_training_variants_trains_and_evaluates_each(tmp_path):
    row = {"messages": [{"role": "user", "content": "Add 1 and 2."}, {"role": "assistant", "content": "It is 3."}]}
    (tmp_path / "data.jsonl").write_text("\n".join([json.dumps(row)] * 8))
    for task in ("mt_bench", "humaneval", "gsm8k", "alpaca", "sum", "qa"):
        (tmp_path / "tasks" / task).mkdir(parents=True)
        (tmp_path / "tasks" / task / "question.jsonl").write_text('{"turns": ["Add 1 and 2."]}')
    variants = ["EAGLE-1, 4096 tokens (FR-Spec)", "EAGLE-3 on given answers"]
    printed = run(
        "training_variants", "--answers", tmp_path / "data.jsonl", "--conversations", tmp_path / "data.jsonl",
        "--tasks", tmp_path / "tasks", "--output", tmp_path / "out", "--steps", 1, "--batch_size", 2,
        "--prompts", 1, "--new_tokens", 6, "--threads", 1, "--variants", *variants,
    )  # fmt: skip
    assert set(json.loads((tmp_path / "out" / "results.json").read_text())) == set(variants)
    assert all(f"| {variant} | " in printed for variant in variants)


def test_loading_compares_with_safetensors(tmp_path):
    printed = run("loading", "--repeats", 1, "--hidden-size", 128, "--cached-only", "--json", tmp_path / "r.json")
    assert "eagle / read" in printed
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["cached"]["eagle"]["seconds"] > 0
    assert result["cached"]["eagle"]["memory_in_file_sizes"] >= 0


@pytest.mark.sweep
def test_quantised_targets_are_compared_and_what_is_not_installed_is_named(tmp_path):
    kinds = ["none, float32", "quanto int8"]
    run("quantized_targets", "--num-prompts", 1, "--only", *kinds, "--output", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    plain, quanto = result["rows"]
    assert plain["gaps"]["with the draft"] == []
    assert plain["texts"] == 1
    assert ("gaps" in quanto) != ("not_run" in quanto)
