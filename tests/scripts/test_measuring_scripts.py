"""Benchmarks that measure one thing each run in small, and report what they promise."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from eagle_hf.drafting.drafter import Drafter


ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a script in this process and returns its JSON record; `run.printed` is what it printed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    verbosity = logging.get_verbosity()

    def run(name, *arguments, wants_json=True):
        arguments = [*arguments, *(["--json", tmp_path / "result.json"] if wants_json else [])]
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *map(str, arguments)])
        torch.manual_seed(0)
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        run.printed = capsys.readouterr().out
        return json.loads((tmp_path / "result.json").read_text()) if wants_json else None

    run.read = lambda: capsys.readouterr().out
    yield run
    logging.set_verbosity(verbosity)


def test_retrieval_accepts_more_of_a_text_that_copies(run, tmp_path):
    rows = (BENCHMARKS / "copying_prompts.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join([rows[0], rows[-1]]))
    result = run(
        "retrieval", "--prompts", tmp_path / "prompts.jsonl", "--new-tokens", 32, "--repeats", 1, "--threads", 1
    )
    assert result["versions"]["torch"]
    for domain in ("code editing", "summarisation"):
        given = result["given"][domain]
        assert given["head and retrieval"]["mean_acceptance_length"] > given["head"]["mean_acceptance_length"] + 0.5
        assert result["own"][domain]["head"]["speedup"] > 0


def test_context_growth_measures_growth_from_the_shortest(run):
    rows = run("context_growth", "--lengths", 24, 96, "--repeats", 1, "--new-tokens", 12, "--threads", 1)["rows"]
    assert [row["length"] for row in rows] == [24, 96]
    assert rows[0]["step_growth"] == rows[0]["verify_growth"] == 1
    assert all(0 < row["verify_ms"] < row["step_ms"] for row in rows)


def test_batches_compare_equal_tokens_and_split_the_step(run):
    arguments = ("--sizes", 1, 3, "--num-prompts", 3, "--repeats", 1, "--new-tokens", 8, "--threads", 1)
    result = run("batches", *arguments, "--parts", "--cpu-time")
    assert result["tokens_equal"] is True
    assert result["time"] == "of the processor"
    assert [row["batch_size"] for row in result["rows"]] == [1, 3]
    assert all(set(row["part_ms"]) == {"draft", "tree", "verify", "walk", "cache"} for row in result["rows"])


SMALL = ("--tiny", "--repeats", 1, "--new-tokens", 16, "--prompt-length", 12)


def test_the_gpu_script_measures_steps_in_its_cpu_mode(run):
    result = run("gpu", "cost", *SMALL)
    assert result["is_tiny"] is True
    for tree in result["result"]["eager"]["trees"].values():
        assert tree["step_ms"] > 0 < tree["verify_ms"]
        assert tree["per_step"]["operators"] > 100


def test_the_gpu_script_injects_the_acceptance_it_is_told(run, monkeypatch):
    result = run("gpu", "speed", *SMALL, "--batch-sizes", 2, "--tau", 3)["result"]["batch 2"]
    assert result["plain eager"]["tokens_per_second"] > 0
    reached = [figures["acceptance_length"] for name, figures in result.items() if name.startswith("EAGLE eager")]
    assert len(reached) == 2
    assert all(1.5 < tau < 5 for tau in reached)
    from gpu import continuation_probability

    for tau, depth in ((1.0, 8), (3.5, 8), (2.2, 5), (9.0, 8)):
        p = continuation_probability(tau, depth)
        assert 1 + sum(p**d for d in range(1, depth + 1)) == pytest.approx(tau, abs=1e-6)


def test_training_a_pair_goes_on_where_it_stopped(run, tmp_path):
    arguments = ("--output", tmp_path / "pair", "--tiny", "--target-steps", 3, "--head-steps", 2, "--length", 32)
    run("gpu_training", *arguments, "--batch-size", 2, "--minutes", 0, wants_json=False)
    assert "target: 1 of 3 steps" in run.printed
    run("gpu_training", *arguments, "--batch-size", 2, wants_json=False)
    assert "target: 3 of 3 steps" in run.printed
    assert "is trained" in run.printed
    figures = run("gpu", "speed", *SMALL, "--batch-sizes", 1, "--pair", tmp_path / "pair")["result"]["batch 1"]
    assert figures["EAGLE eager, 15 nodes, depth 5, width 4"]["equal_tokens"] == [1.0]


SOAK = ("--new-tokens", 6, "--batch-size", 3, "--tolerance", 0.1)


def test_memory_stays_flat_over_many_calls(run):
    result = run("soak", *SOAK, "--tokens", 600, "--warm-up-calls", 96)
    assert result["is_flat"] is True
    assert len(result["snapshots"]) == 11
    assert result["snapshots"][-1]["tokens"] >= 600


def test_a_leak_of_a_tensor_per_call_is_found(run):
    with pytest.raises(SystemExit):
        run("soak", *SOAK, "--tokens", 300, "--warm-up-calls", 8, "--leak")
    assert "tensors grew" in run.read()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read as Linux tells it")
def test_memory_is_that_of_the_call_above_plain_generation(run):
    short, row = run(
        "memory", "--lengths", 64, 2048, "--hidden-size", 256, "--layers", 8, "--repeats", 1, "--new-tokens", 8,
        "--threads", 1,
    )["rows"]  # fmt: skip
    assert row["target_mib"] > row["head_mib"] > 0
    assert row["plain_mib"] > short["plain_mib"] + 4  # the keys and values of the prompt alone are 4 MiB
    assert row["eagle_mib"] > short["eagle_mib"] + 4
    above = (row["eagle_mib"] - row["plain_mib"]) / (row["target_mib"] + row["plain_mib"])
    assert row["above_plain"] == pytest.approx(above, abs=0.01)


def test_the_first_call_is_compared_with_later_ones(run):
    result = run("first_call", "--processes", 1, "--every", 9, "--new-tokens", 8, "--threads", 1)
    median = result["median"]
    assert set(median) == {"first", "in_process", "probe", "plain_ms"}
    assert median["plain_ms"] > 0
    assert 1 < median["probe"] < 100  # two forwards at least
    assert len(result["runs"]) == 1
    assert len(result["runs"][0]["first"]) == 2


def test_calls_without_drafts_are_compared_with_plain_ones_and_these_with_themselves(run):
    result = run("without_drafts", "--repeats", 2, "--new-tokens", 8, "--threads", 1)
    for way in ("greedy", "temperature 1"):
        assert result[way]["plain_ms"] > 0
        for name in ("plain again", "hooked", "no drafts"):
            low, high = result[way][name]["quartiles"]
            assert 0.2 < low <= result[way][name]["speed"] <= high < 5


def test_against_injects_acceptance_and_brackets_the_median(monkeypatch, tmp_path):
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "target")
    record = tmp_path / "record.json"
    options = ["--target", tmp_path / "target", "--record", record, "--repeats", 1, "--new-tokens", 24, "--rate", 0.9]
    options += ["--prompt-length", 8, "--threads", 1]
    monkeypatch.setattr(sys, "argv", ["benchmarks/against.py", *map(str, options)])
    monkeypatch.setattr(Drafter, "grow", Drafter.grow)  # what the script replaces comes back
    monkeypatch.setattr(Drafter, "read_accepted", Drafter.read_accepted)
    module = runpy.run_path(str(BENCHMARKS / "against.py"), run_name="__main__")
    measured = json.loads(record.read_text())
    assert measured["forwards"]["plain"] == 24
    assert max(measured["forwards"]["greedy"], measured["forwards"]["sampled"]) < 20  # drafts were accepted
    assert min(measured["seconds"].values()) > 0
    assert module["interval"](list(range(1, 11))) == (2, 9)  # order statistics of ten: 97.9 %
