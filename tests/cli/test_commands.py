"""The commands as a user runs them, on a tiny pair in a folder."""

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import letter_tokenizer, random_draft

from eagle_hf.cli import demo
from eagle_hf.cli.main import COMMANDS, main


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pair(tmp_path):
    target = tiny_target("llama")
    target.lm_head.weight.data[29:] = target.lm_head.weight.data[28]  # letters only
    target.save_pretrained(tmp_path / "target")
    letter_tokenizer().save_pretrained(tmp_path / "target")
    draft = use_options(random_draft(target), num_assistant_tokens=5, draft_depth=3, draft_width=2)
    draft.save_pretrained(tmp_path / "draft")
    return ["--target", str(tmp_path / "target"), "--draft", str(tmp_path / "draft")]


def test_help_and_version(capsys):
    for arguments in (["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    assert "eagle-hf" in capsys.readouterr().out


def test_env_says_the_versions(capsys):
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__.partition('+')[0]}" in printed
    assert "transformers 5." in printed


@pytest.mark.parametrize("sampling", [[], ["--temperature", "0.8", "--top_k", "9", "--top_p", "0.9", "--seed", "3"]])
def test_generate_streams_compares_and_draws(pair, capsys, sampling):
    arguments = ["generate", *pair, "abc", "--max_new_tokens", "12", "--compare", "--show_tree", "--threads", "1"]
    assert main([*arguments, *sampling]) == 0
    printed = capsys.readouterr().out
    assert "tokens equal to plain generate: yes (12 tokens)" in printed.replace("\n", " ") or "(1" in printed
    assert "(root)" in printed
    assert "times as fast" in printed


def test_generate_alone(pair, capsys):
    assert main(["generate", *pair, "abc", "--max_new_tokens", "6", "--raw"]) == 0
    assert "tokens per verification" in capsys.readouterr().out


def test_demo_runs_any_pair(pair, capsys):
    assert main(["demo", *pair, "--max_new_tokens", "10", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "tokens equal: yes" in printed
    assert printed.count("The same tokens") == len(demo.PROMPTS)


def test_a_difference_is_a_failure(pair, capsys, monkeypatch):
    from eagle_hf.cli.pair import Pair

    real = Pair.run

    def run(self, input_ids, with_draft, **kwargs):
        result = real(self, input_ids, with_draft, **kwargs)
        if with_draft:
            result.tokens[-1] += 1
        return result

    monkeypatch.setattr(Pair, "run", run)
    assert main(["generate", *pair, "abc", "--max_new_tokens", "6", "--compare"]) == 1
    assert "NO" in capsys.readouterr().out
    assert main(["demo", *pair, "--max_new_tokens", "6", "--threads", "1"]) == 1


def test_errors_are_one_line_and_a_status(capsys):
    assert main(["generate", "--target", "nowhere/at-all", "--draft", "nowhere", "abc"]) == 1
    assert capsys.readouterr().err.startswith("eagle-hf generate: ")


def test_unknown_options_are_refused():
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--thread", "2"])  # no abbreviations
    assert stop.value.code == 2
