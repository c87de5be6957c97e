"""`eagle-hf bench` as a user runs it."""

import json
import sys

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import letter_tokenizer, random_draft

from eagle_hf.cli.main import main
from eagle_hf.evaluation.measuring import Measuring


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_target("llama")
    target.lm_head.weight.data[29:] = target.lm_head.weight.data[28]  # letters only
    target.save_pretrained(folder / "target")
    letter_tokenizer().save_pretrained(folder / "target")
    draft = use_options(random_draft(target), num_assistant_tokens=5, draft_depth=3, draft_width=2)
    draft.save_pretrained(folder / "draft")
    return ["--target", str(folder / "target"), "--draft", str(folder / "draft")]


@pytest.fixture
def command(pair, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "abc"}\n{"nothing": 1}\n{"turns": ["xyz", "next"]}\n')
    return [
        "bench", *pair, "--tasks", str(tmp_path / "mine.jsonl"), "--max_new_tokens", "6", "--repeats", "2",
        "--warm_up", "0", "--threads", "1", "--output", str(tmp_path / "out"),
    ]  # fmt: skip


def test_it_measures_reports_compares_and_fills_a_card(command, pair, tmp_path, capsys):
    assert main([*command, "--temperatures", "0", "--baselines", "prompt_lookup", "--trees", "3/2/2"]) == 0
    printed = capsys.readouterr()
    assert "mine.jsonl, line 2: none of `turns`" in printed.err
    out = tmp_path / "out"
    assert (out / "report.md").read_text().strip() in printed.out
    result = json.loads((out / "results.json").read_text())
    assert result["command"].startswith("eagle-hf bench --target")
    assert set(result["methods"]) == {"plain", "eagle", "eagle 3/2/2", "prompt_lookup"}
    assert (result["settings"]["repeats"], result["settings"]["warm_up"]) == (2, 0)
    assert not (out / "finished_prompts.jsonl").exists()

    assert main(["bench", "--compare", str(out), str(out / "results.json")]) == 0
    assert "| mine | 0 | speedup |" in capsys.readouterr().out

    (out / "report.md").unlink()
    assert main(["bench", "--report", str(out), "--output", str(out), "--write_card", pair[3]]) == 0
    assert (out / "report.md").exists()
    assert "mine" in capsys.readouterr().out


def test_an_interrupted_run_says_how_to_go_on_and_goes_on(command, tmp_path, capsys, monkeypatch):
    real = Measuring.measure
    greedy = [*command, "--temperatures", "0", "--no_metrics"]

    def measure(self, prompt, temperature):
        if prompt.number:
            raise KeyboardInterrupt
        return real(self, prompt, temperature)

    monkeypatch.setattr(Measuring, "measure", measure)
    assert main(greedy) == 130
    assert "finished_prompts.jsonl: the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()
    monkeypatch.setattr(Measuring, "measure", real)
    assert main([*greedy, "--seed", "1"]) == 1
    assert "settings was" in capsys.readouterr().err
    assert main(greedy) == 0
    assert "1 prompts were measured before an interruption" in capsys.readouterr().out


def test_other_tokens_are_a_failure_without_a_speedup(command, capsys, monkeypatch):
    real = Measuring._compare

    def compare(self, ids, plain, texts, temperature):
        return real(self, ids, plain, [[*texts[0][:-1], 0]], temperature)

    monkeypatch.setattr(Measuring, "_compare", compare)
    assert main([*command, "--dtype", "float32", "--temperatures", "0", "--no_metrics"]) == 1
    printed = capsys.readouterr()
    assert "no speedup is stated" in printed.err
    assert "none; throughput" in printed.out


def test_profile_prints_the_parts_of_a_step(pair, tmp_path, capsys):
    arguments = ["--max_new_tokens", "8", "--repeats", "1", "--output", str(tmp_path), "--threads", "1"]
    assert main(["bench", *pair, "--profile", *arguments]) == 0
    assert "\nverify " in capsys.readouterr().out
    facts = json.loads((tmp_path / "profile.json").read_text())
    assert facts["trees"]["the head's own tree"]["step"]["ms"] > 0


def test_without_matplotlib_there_is_a_report_and_a_hint(command, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*command, "--temperatures", "0", "--no_metrics"]) == 0
    assert "pip install 'eagle-hf[viz]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--target, --draft, --tasks must be given"),
        (["--target", "t", "--draft", "d", "--tasks", "missing.jsonl"], "missing.jsonl"),
        (["--target", "t", "--draft", "d", "--tasks", "x.jsonl", "--trees", "15"], "NODES/DEPTH/WIDTH"),
        (["--target", "t", "--draft", "d", "--tasks", "x.jsonl", "--repeats", "0"], "`repeats`"),
        (["--target", "t", "--draft", "d", "--tasks", "x.jsonl", "--warm_up", "-1"], "`warm_up`"),
        (["--compare", "nowhere.json", "nothing.json"], "nowhere.json"),
    ],
)
def test_errors_are_one_line_before_anything_is_loaded(arguments, message, capsys):
    assert main(["bench", *arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("eagle-hf bench: ")
    assert message in printed
