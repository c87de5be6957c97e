"""What is begun on one day goes on the next one: templates that write the date see the clock of the beginning."""

import datetime
import json

import pytest
import torch
from chat_tokenizers import chat_tokenizer, chatty_target
from transformers.utils import chat_template_utils

from eagle_hf.cli.main import main
from eagle_hf.data import frozen_clock as module
from eagle_hf.data.frozen_clock import with_clock
from eagle_hf.training import AnswerSettings, ChatText, make_samples, write_answers
from eagle_hf.training.durable_checkpoints import complete_checkpoints


TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEM = "{{ '<|im_start|>system\\nIt is ' + %s + '<|im_end|>\\n' }}"
# As Llama 3.2 (a variable with a default), Granite and gpt-oss (the function), with the time of day, from a macro.
TEMPLATES = {
    "variable": "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = "
    "strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    + SYSTEM
    % "date_string",
    "function": SYSTEM % 'strftime_now("%Y-%m-%d")',
    "time": SYSTEM % 'strftime_now("%H:%M:%S %Z")',
    "macro": "{% macro today() %}{{ strftime_now('%B %d, %Y') }}{% endmacro %}\n" + SYSTEM % "today()",
    "leading blanks": "\n  {% if true %}" + SYSTEM % 'strftime_now("%d")' + "{% endif %}\n",
}
MONDAY, TUESDAY = datetime.datetime(2026, 11, 30, 23, 59, 58), datetime.datetime(2026, 12, 1, 8, 3, 7)
ROWS = [{"messages": [{"role": "user", "content": f"Hi {i}"}]} for i in range(6)]
GIVEN = [{"messages": [*row["messages"], {"role": "assistant", "content": "Ok!"}]} for row in ROWS]


@pytest.fixture
def clock(monkeypatch):
    """Sets what time it is, for us and for `transformers`."""

    def at(moment):
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return moment

        monkeypatch.setattr(module, "datetime", Clock)
        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return at


def tokenizer_of(kind):
    tokenizer = chat_tokenizer("qwen_like")
    tokenizer.chat_template = TEMPLATES[kind] + TURNS
    return tokenizer


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_frozen_template_renders_what_it_rendered_then(clock, kind):
    tokenizer = tokenizer_of(kind)
    clock(MONDAY)
    then = tokenizer.apply_chat_template(GIVEN[0]["messages"], tokenize=False)
    clock(TUESDAY)
    now = tokenizer.apply_chat_template(GIVEN[0]["messages"], tokenize=False)
    assert now != then
    frozen = with_clock(tokenizer.chat_template, MONDAY.isoformat())
    rendered = tokenizer.apply_chat_template(GIVEN[0]["messages"], tokenize=False, chat_template=frozen)
    assert rendered == then
    assert tokenizer.apply_chat_template(GIVEN[0]["messages"], tokenize=False) == now  # others see the clock go on


def test_a_template_without_a_clock_is_left_alone():
    assert with_clock(TURNS, MONDAY.isoformat()) is TURNS


@pytest.mark.parametrize("kind", TEMPLATES)
def test_answers_go_on_the_next_day_and_are_trained_with_their_date(clock, kind, tmp_path):
    tokenizer = tokenizer_of(kind)
    target, settings = chatty_target(tokenizer), AnswerSettings(max_new_tokens=6, batch_size=2)
    clock(MONDAY)
    write_answers(target, tokenizer, ROWS, tmp_path / "whole.jsonl", settings)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "torn.jsonl"
    write_answers(target, tokenizer, ROWS, path, settings)
    path.write_bytes(whole[: len(whole) // 2])
    clock(TUESDAY)
    report = write_answers(target, tokenizer, ROWS, path, settings)
    assert report.num_resumed > 0
    assert path.read_bytes() == whole

    lines = [json.loads(line) for line in whole.splitlines()]
    lines = [line for line in lines if line["messages"][-1]["content"]]  # a random target may stop at once
    assert lines
    as_messages = [{name: line[name] for name in ("messages", "finished", "rendered_at")} for line in lines]
    exact, rendered = (make_samples(rows, tokenizer) for rows in (lines, as_messages))
    for i, line in enumerate(lines):
        num_prompt = len(line["prompt_ids"])
        assert rendered[i]["input_ids"][:num_prompt].tolist() == line["prompt_ids"]
        assert torch.equal(rendered[i]["input_ids"][:num_prompt], exact[i]["input_ids"][:num_prompt])
    clock(MONDAY)
    assert make_samples(GIVEN, tokenizer)[0]["input_ids"].tolist() != rendered[0]["input_ids"].tolist()


def test_variables_of_the_template_stay_with_the_answers(tmp_path):
    tokenizer = tokenizer_of("variable")
    settings = AnswerSettings(max_new_tokens=4, chat_template_kwargs={"date_string": "a fine day"})
    write_answers(chatty_target(tokenizer), tokenizer, ROWS, tmp_path / "a.jsonl", settings)
    line = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    del line["prompt_ids"], line["answer_ids"]
    assert "It is a fine day" in tokenizer.decode(make_samples([line], tokenizer)[0]["input_ids"])


def test_a_row_says_when_it_was_rendered():
    tokenizer = tokenizer_of("function")
    chat_text = ChatText(tokenizer, rendered_at="2024-02-29T12:00:00")
    texts = [
        tokenizer.decode(chat_text(row)[0]["input_ids"])
        for row in (GIVEN[0], GIVEN[0] | {"rendered_at": "2020-01-02T03:04:05"})
    ]
    assert ["2024-02-29" in texts[0], "2020-01-02" in texts[1]] == [True, True]
    with pytest.raises(ValueError, match="`rendered_at` is no time in ISO format"):
        make_samples([GIVEN[0] | {"rendered_at": "yesterday"}], tokenizer)
    with pytest.raises(ValueError, match="expected a local time in ISO format"):
        ChatText(tokenizer, rendered_at="today")


@pytest.fixture
def command(tmp_path):
    tokenizer = tokenizer_of("function")
    chatty_target(tokenizer).save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GIVEN))
    return [
        "train", "--target", str(tmp_path / "target"), "--data", str(tmp_path / "data.jsonl"), "--output_dir",
        str(tmp_path / "out"), "--use_cpu", "--report_to", "none", "--max_steps", "2", "--num_unrolls", "2",
        "--per_device_train_batch_size", "2", "--feature_layer_ids", "0", "1", "2", "--disable_tqdm", "True",
        "--save_steps", "1", "--features", str(tmp_path / "features"),
    ]  # fmt: skip


def test_training_and_stored_features_go_on_the_next_day(clock, command, tmp_path, capsys):
    clock(MONDAY)
    assert main(command) == 0
    clock(TUESDAY)
    assert main(command) == 0
    assert "this run has finished" in capsys.readouterr().out
    for name in ("head/model.safetensors", "finished_run.json"):  # killed before the head was saved
        (tmp_path / "out" / name).unlink()
    newest = complete_checkpoints(tmp_path / "out")[-1]
    (newest / "checkpoint_complete.json").unlink()
    assert main(command) == 0
    other = [*command, "--output_dir", str(tmp_path / "other")]  # another run on the same features
    assert main(other) == 0
    assert main([*other, "--features", str(tmp_path / "new"), "--output_dir", str(tmp_path / "third")]) == 0
    moments = [json.loads((tmp_path / name / "finished_run.json").read_text())["rendered_at"]
               for name in ("out", "other", "third")]  # fmt: skip
    assert moments == [MONDAY.isoformat(), MONDAY.isoformat(), TUESDAY.isoformat()]
