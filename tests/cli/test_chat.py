"""The chat as typed into, on a tiny pair in a folder; once on the demo pair."""

import io
import json
import re
import sys

import pytest
import torch
from architectures import tiny_target
from conftest import use_options
from doubles import ScriptedDrafter, letter_tokenizer, random_draft, scripted
from rich.console import Console

from eagle_hf.cli.answer_view import AnswerView
from eagle_hf.cli.chat_session import ChatSession, parse_flags
from eagle_hf.cli.main import main
from eagle_hf.cli.pair import Pair
from eagle_hf.cli.step_streamer import StepStreamer


@pytest.fixture(scope="module")
def pair():
    target = tiny_target("llama")
    target.lm_head.weight.data[29:] = target.lm_head.weight.data[28]  # letters only
    tokenizer = letter_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}z{% endif %}"
    )
    draft = use_options(random_draft(target), num_assistant_tokens=5, draft_depth=3, draft_width=2)
    return Pair(target, draft, tokenizer)


@pytest.fixture
def folders(pair, tmp_path):
    pair.target.save_pretrained(tmp_path / "target")
    pair.tokenizer.save_pretrained(tmp_path / "target")
    pair.draft.save_pretrained(tmp_path / "draft")
    return ["--target", str(tmp_path / "target"), "--draft", str(tmp_path / "draft")]


@pytest.fixture
def chat(folders, tmp_path, monkeypatch, capsys):
    """Type lines, and see what is printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def type_lines(*lines: str, options: tuple[str, ...] = (), status: int = 0) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(["chat", *folders, "--user", "me", *options]) == status
        printed = capsys.readouterr()
        return printed.out + printed.err

    return type_lines


def written(pair: Pair, text: str, num_tokens: int) -> str:
    """What plain `generate` answers."""
    ids = pair.tokenizer(f"{text}z", return_tensors="pt").input_ids
    output = pair.target.generate(ids, max_new_tokens=num_tokens, do_sample=False)
    return pair.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_answer_is_that_of_plain_generate(pair, chat):
    printed = chat("abc", "!exit", options=("max_new_tokens=12",))
    assert f"<target>\n{written(pair, 'abc', 12)}\n" in printed
    assert re.search(r"\d+ tokens, [\d.]+ tokens/s, [\d.]+ tokens per verification", printed)


def test_the_conversation_goes_on_and_is_cleared_and_saved(pair, chat, tmp_path):
    first = written(pair, "sabc", 12)
    second = written(pair, f"sabc{first}de", 12)
    again = written(pair, "sde", 12)
    options = ("max_new_tokens=12", "--system_prompt", "s")
    printed = chat("abc", "", "de", "n", "!save deep/er/chat.json", "!clear", "de", options=options)
    for answer in (first, second, again):
        assert f"<target>\n{answer}\n" in printed
    saved = json.loads((tmp_path / "deep" / "er" / "chat.json").read_text())
    assert [message["role"] for message in saved["chat_history"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert saved["chat_history"][-1]["content"] == second
    assert saved["settings"]["model_id"] == "target"
    assert saved["settings"]["generation_config"]["max_new_tokens"] == 12
    assert saved["settings"]["draft"]["draft_depth"] == 3


def test_without_a_name_a_conversation_is_saved_in_its_folder(chat, tmp_path):
    printed = chat("!save", options=("--save_folder", "kept"))
    [path] = (tmp_path / "kept" / "target").glob("chat_*.json")
    assert f"Saved to kept/target/{path.name}" in printed


def test_an_answer_that_reached_its_limit_is_continued(pair, chat):
    longer, short = written(pair, "abc", 6), written(pair, "abc", 3)
    assert longer != short
    printed = chat("abc", "y", "n", "!exit", options=("max_new_tokens=3",))
    assert re.sub(r"(?s)^.*?<target>\n(\w+)\n.*?<target>\n(\w+)\n.*$", r"\1\2", printed) == longer


def test_options_are_set_all_or_none(chat):
    printed = chat(
        "!set max_new_tokens=4 draft_depth=2",
        "!set max_new_tokens=5 do_smaple=True",
        "!set draft_width=0 max_new_tokens=6",
        "!set top_k",
        "!set eos_token_id=[1,2]",
        "!status",
    )
    assert "Neither generate nor the draft has an option 'do_smaple'." in printed
    assert "`draft_width` must be a positive integer, got 0." in printed
    assert "'top_k' is not of the form NAME=VALUE" in printed
    status = printed[printed.index("generate  {") :]
    assert '"max_new_tokens": 4,' in status
    assert '"eos_token_id": [1, 2]' in status
    assert '"draft_depth": 2, "draft_width": 2,' in status


def test_what_generate_refuses_does_not_end_the_chat(pair, chat):
    printed = chat("!set do_sample=true temperature=-1", "ab", "!set do_sample=false temperature=1.0", "abc", "n")
    assert "strictly positive" in printed
    assert f"<target>\n{written(pair, 'abc', 256)}\n" in printed  # the question that failed is forgotten


def test_examples(pair, chat, tmp_path):
    (tmp_path / "examples.yaml").write_text("greeting: {text: abc}\n")
    options = ("max_new_tokens=4", "--examples_path", "examples.yaml")
    printed = chat("de", "n", "!example greeting", "n", "!example other", "!help", options=options)
    assert f"abc\n\n<target>\n{written(pair, 'abc', 4)}\n" in printed
    assert "There is no example 'other'. Known: greeting." in printed
    assert "in a new conversation: greeting" in printed
    (tmp_path / "examples.yaml").write_text("[1, 2]")
    assert "must be a mapping of names to examples" in chat(options=options, status=1)


@pytest.mark.parametrize("typed", ["!quit", "!set", "!save a b", "!clear now", "!"])
def test_what_is_no_command_shows_the_help(chat, typed):
    printed = chat(typed)
    assert "is not a command" in printed
    assert "!example NAME" in printed


def test_a_generation_config_of_its_own(chat, tmp_path):
    (tmp_path / "mine.json").write_text('{"max_new_tokens": 7, "temperature": 0.5, "do_sample": true}')
    assert '"max_new_tokens": 7' in chat("!status", options=("--generation_config", "mine.json"))


def test_the_same_commands_as_transformers_chat():
    from transformers.cli import chat as theirs

    from eagle_hf.cli.chat_session import HELP

    commands = set(re.findall(r"\*\*(!\w+)", theirs.HELP_STRING))
    assert commands >= {"!help", "!exit", "!set"}
    assert commands <= set(re.findall(r"!\w+", HELP))


def test_a_tokenizer_without_a_template_is_refused(folders, tmp_path, capsys):
    letter_tokenizer().save_pretrained(tmp_path / "target")
    (tmp_path / "target" / "chat_template.jinja").unlink()
    assert main(["chat", *folders]) == 1
    assert "has no chat template" in capsys.readouterr().err


def test_flags_are_read_as_values():
    words = ["a=1", "b=0.5", "c=True", "d=None", "e=[1,2]", "f=dynamic", "g=x=y"]
    values = {"a": 1, "b": 0.5, "c": True, "d": None, "e": [1, 2], "f": "dynamic", "g": "x=y"}
    assert parse_flags(words) == values
    for word in ("a", "=1", "a=[1"):
        with pytest.raises(ValueError, match="NAME=VALUE|neither a number"):
            parse_flags([word])


# ---------------------------------------------------------------------------- streaming


def test_steps_are_known_while_they_stream(pair, monkeypatch):
    ids = pair.tokenizer("abc", return_tensors="pt").input_ids
    truth = pair.run(ids, with_draft=False, max_new_tokens=30, do_sample=False).tokens
    scripted(monkeypatch, lambda: ScriptedDrafter([truth], seed=0))
    seen = []
    with StepStreamer(pair.target, seen.append) as streamer:
        run = pair.run(ids, with_draft=True, streamer=streamer, max_new_tokens=30, do_sample=False)
    assert streamer.acceptance_lengths == run.acceptance_lengths
    assert streamer.tokens == run.tokens
    assert seen == streamer.steps
    assert max(streamer.acceptance_lengths) > 1
    assert not pair.target._forward_pre_hooks


def test_ctrl_c_stops_the_answer_and_not_the_chat(pair, tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), width=200)
    session = ChatSession(pair, console, "m", "me", None, tmp_path, {})
    typed = iter(["abc", "!exit"])
    monkeypatch.setattr(console, "input", lambda prompt: next(typed))
    real = AnswerView.add_step

    def add_step(self, tokens):
        real(self, tokens)
        if len(self.lengths) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(AnswerView, "add_step", add_step)
    session.run()
    assert ", stopped" in console.file.getvalue()
    assert session.messages[-1]["role"] == "assistant"
    assert written(pair, "abc", 256).startswith(session.messages[-1]["content"])
    assert not pair.target._forward_pre_hooks


@pytest.mark.parametrize("is_terminal", [False, True])
def test_every_line_is_printed_once(is_terminal, monkeypatch):
    monkeypatch.setattr("eagle_hf.cli.answer_view.REFRESH", 0)

    class Pieces:
        words = ("a", "b\nc", "\n", "\n\n", " d", "\ne\nf")

        def decode(self, tokens, skip_special_tokens=False):
            return "".join(self.words[token] for token in tokens)

    steps = [[0], [1, 2], [3], [4, 0, 0], [2], [5, 5, 1], [4]]
    console = Console(file=io.StringIO(), width=100, force_terminal=is_terminal, legacy_windows=False)
    with AnswerView(console, Pieces()) as view:
        for step in steps:
            view.add_step(step)
    printed = console.file.getvalue()
    text = Pieces().decode([token for step in steps for token in step])
    if not is_terminal:
        assert printed == f"{text}\n"
    else:  # what is transient is erased again; completed lines stay
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", printed)
        for line in text.split("\n"):
            assert line in shown
        assert "tokens per verification" in shown
        assert "\x1b[4;32m" in printed


def test_the_demo_pair_chats_offline(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("!example code\nn\n"))
    threads = torch.get_num_threads()
    assert main(["chat", "max_new_tokens=16", "--threads", "1"]) == 0
    torch.set_num_threads(threads)
    assert "tokens per verification" in capsys.readouterr().out
