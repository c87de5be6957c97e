"""The target's own answers: exact tokens, in every turn, the same whether a run was interrupted or not."""

import json

import pytest
import torch
from architectures import tiny_target
from chat_tokenizers import chat_tokenizer, chatty_target
from conftest import use_options
from doubles import random_draft

from eagle_hf.training import AnswerSettings, make_samples, write_answers


def chat(*contents, **more):
    roles = ["user", "assistant"] * len(contents)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)], **more}


ROWS = [chat("Hi" + "!" * i, "a given answer") for i in range(5)]
ROWS.append(chat("First", "given", "Second", "given", "Third"))


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer("qwen_like")


@pytest.fixture(scope="module")
def target(tokenizer):
    return chatty_target(tokenizer)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(target, tokenizer, path, rows=ROWS, draft=None, **settings):
    settings = AnswerSettings(**({"max_new_tokens": 12, "batch_size": 4} | settings))
    return write_answers(target, tokenizer, rows, path, settings, draft=draft)


SAMPLED = {"temperature": 1.0, "top_p": 0.95, "top_k": 50, "seed": 3}


def test_answers_are_what_the_target_generates_for_the_prompt_alone(target, tokenizer, tmp_path):
    report = write(target, tokenizer, tmp_path / "a.jsonl")
    lines = read(tmp_path / "a.jsonl")
    assert report.num_answers == len(lines) >= 6
    for line in lines:
        prompt = tokenizer.apply_chat_template(
            line["messages"][:-1], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert line["prompt_ids"] == prompt
        ids = torch.tensor([prompt])
        alone = target.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert alone[0, len(prompt) :].tolist() == line["answer_ids"]
        assert line["finished"] == (line["answer_ids"][-1] == tokenizer.eos_token_id)
        end = -1 if line["finished"] else None
        content = tokenizer.decode(line["answer_ids"][:end])
        assert line["messages"][-1] == {"role": "assistant", "content": content}
    finished = [line["finished"] for line in lines]
    assert any(finished), "the target never ends a turn: the test tests little"
    assert not all(finished)
    assert report.num_unfinished == finished.count(False)


def test_later_turns_see_the_answers_of_the_target(target, tokenizer, tmp_path):
    write(target, tokenizer, tmp_path / "a.jsonl", rows=[ROWS[-1]], max_new_tokens=200)
    lines = read(tmp_path / "a.jsonl")
    assert [line["turn"] for line in lines] == list(range(len(lines)))
    for before, after in zip(lines, lines[1:], strict=False):
        assert before["finished"]
        assert after["messages"][: len(before["messages"])] == before["messages"]
    assert len(lines) == 3
    assert all("given" not in message["content"] for message in lines[-1]["messages"])


def test_only_first_turns_on_request(target, tokenizer, tmp_path):
    write(target, tokenizer, tmp_path / "a.jsonl", turns="first")
    assert {line["turn"] for line in read(tmp_path / "a.jsonl")} == {0}


def test_what_was_written_is_trained_exactly(target, tokenizer, tmp_path):
    write(target, tokenizer, tmp_path / "a.jsonl", max_new_tokens=200)
    lines = read(tmp_path / "a.jsonl")
    dataset = make_samples(tmp_path / "a.jsonl", tokenizer, vocab_size=target.config.vocab_size)
    assert dataset.report.num_trained_tokens == sum(len(line["answer_ids"]) for line in lines)
    sample = dataset[0]
    assert sample["input_ids"][: len(lines[0]["prompt_ids"])].tolist() == lines[0]["prompt_ids"]
    trained = [t for i in range(len(dataset)) for t in dataset[i]["input_ids"][dataset[i]["loss_mask"].bool()].tolist()]
    assert trained == [token for line in lines for token in line["answer_ids"]]


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_an_interrupted_run_ends_like_one_that_never_stopped(target, tokenizer, tmp_path, sampling):
    write(target, tokenizer, tmp_path / "a.jsonl", batch_size=2, **sampling)
    whole = (tmp_path / "a.jsonl").read_bytes()
    side = (tmp_path / "a.jsonl.settings.json").read_bytes()
    for size in {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole)}:
        (tmp_path / "b.jsonl").write_bytes(whole[:size])
        (tmp_path / "b.jsonl.settings.json").write_bytes(side)
        report = write(target, tokenizer, tmp_path / "b.jsonl", batch_size=2, **sampling)
        assert (tmp_path / "b.jsonl").read_bytes() == whole
        assert report.num_resumed + report.num_answers == whole.count(b"\n")
        assert (report.num_answers == 0) == (size == len(whole))


def test_what_is_there_is_not_generated_again(target, tokenizer, tmp_path, monkeypatch):
    write(target, tokenizer, tmp_path / "a.jsonl")
    monkeypatch.setattr(type(target), "generate", None)
    assert write(target, tokenizer, tmp_path / "a.jsonl").num_answers == 0


def test_sampling_follows_the_seed_and_leaves_the_global_generator_alone(target, tokenizer, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(target, tokenizer, tmp_path / name, **(SAMPLED | {"seed": seed}))
    assert torch.equal(torch.rand(3), expected)
    a, b, c = ((tmp_path / name).read_text() for name in "abc")
    assert a == b != c


def test_a_draft_changes_nothing(target, tokenizer, tmp_path):
    draft = use_options(random_draft(target), num_assistant_tokens=5, draft_depth=3, draft_width=2)
    for name, head in (("a", None), ("b", draft)):
        write(target, tokenizer, tmp_path / name, draft=head)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_other_settings_data_or_target_do_not_go_on_from_a_file(target, tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    write(target, tokenizer, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="max_new_tokens was 12 and is 13; seed was 0 and is 1"):
        write(target, tokenizer, path, max_new_tokens=13, seed=1)
    with pytest.raises(ValueError, match="prompts was"):
        write(target, tokenizer, path, rows=ROWS[:-1])
    other = tiny_target("llama")  # of the same name: it is known by its weights
    with pytest.raises(ValueError, match=r"target was '\w+' and is '\w+'"):
        write(other, tokenizer, path, max_length=512)
    assert path.read_bytes() == before


def test_a_file_of_something_else_is_not_touched(target, tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("precious")
    with pytest.raises(ValueError, match="It is not touched"):
        write(target, tokenizer, path)
    assert path.read_text() == "precious"


def test_prompts_are_answered_once_and_those_without_room_not_at_all(target, tokenizer, tmp_path):
    rows = [*ROWS, chat("Hi", "another answer"), chat("Hi" * 600, "too long")]
    report = write(target, tokenizer, tmp_path / "a.jsonl", rows=rows)
    assert (report.num_prompts, report.num_repeated, report.num_too_long) == (len(ROWS), 1, 1)
    assert "1 repeated, 1 too long" in str(report)


def test_so_many_prompts_and_no_more(target, tokenizer, tmp_path):
    report = write(target, tokenizer, tmp_path / "a.jsonl", num_prompts=3)
    assert report.num_prompts == 3
    assert len({line["row"] for line in read(tmp_path / "a.jsonl")}) == 3


def test_prompt_and_answer_stay_within_the_length(target, tokenizer, tmp_path):
    write(target, tokenizer, tmp_path / "a.jsonl", max_new_tokens=400, max_length=90)
    assert max(len(line["prompt_ids"] + line["answer_ids"]) for line in read(tmp_path / "a.jsonl")) <= 90


def test_prompts_of_plain_text_are_completed(target, tokenizer, tmp_path):
    write(
        target, tokenizer, tmp_path / "a.jsonl", rows=[{"prompt": "Hi", "id": 4}, {"prompt": "Ok", "completion": "x"}]
    )
    lines = sorted(read(tmp_path / "a.jsonl"), key=lambda line: line["row"])
    assert [line["prompt"] for line in lines] == ["Hi", "Ok"]
    assert lines[0]["id"] == 4
    assert lines[0]["prompt_ids"] == tokenizer("Hi").input_ids
    assert lines[1]["completion"] != "x"


def test_a_conversation_ends_with_the_call_of_a_tool(target, tokenizer, tmp_path):
    data = chat("Hi", "", "unused", "given")
    data["messages"][1] |= {"tool_calls": [{"function": {"name": "f"}}]}
    data["messages"][2] = {"role": "tool", "content": "1"}
    write(target, tokenizer, tmp_path / "a.jsonl", rows=[data | {"tools": [{"name": "f"}]}], max_new_tokens=200)
    [line] = read(tmp_path / "a.jsonl")
    assert [message["role"] for message in line["messages"]] == ["user", "assistant"]
    assert line["tools"] == [{"name": "f"}]


def test_rows_without_a_prompt_are_malformed(target, tokenizer, tmp_path):
    rows = [{"text": "Hi"}, {"prompt_ids": [1], "answer_ids": [2]}, chat("Hi")]
    report = write_answers(
        target, tokenizer, rows, tmp_path / "a.jsonl", AnswerSettings(max_new_tokens=2), max_malformed=0.7
    )
    assert report.rows.num_malformed == 2
    assert report.num_answers == 1
    with pytest.raises(ValueError, match="plain text holds no prompt"):
        write(target, tokenizer, tmp_path / "b.jsonl", rows=rows)
    assert not (tmp_path / "b.jsonl").exists()


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"turns": "last"}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        AnswerSettings(**settings)


def test_a_target_is_known_by_its_weights_and_not_by_its_folder(target, tokenizer, tmp_path):
    write(target, tokenizer, tmp_path / "a.jsonl")
    target.save_pretrained(tmp_path / "moved")
    moved = type(target).from_pretrained(tmp_path / "moved")
    assert write(moved, tokenizer, tmp_path / "a.jsonl").num_answers == 0
    with pytest.raises(ValueError, match="target was"):
        write(moved.to(torch.float16), tokenizer, tmp_path / "a.jsonl")


def test_what_the_target_itself_says_of_generating_belongs_to_the_settings(target, tokenizer, tmp_path):
    write(target, tokenizer, tmp_path / "a.jsonl")
    target.save_pretrained(tmp_path / "other")
    other = type(target).from_pretrained(tmp_path / "other")
    other.generation_config.repetition_penalty = 1.5
    with pytest.raises(ValueError, match="generation_config was"):
        write(other, tokenizer, tmp_path / "a.jsonl")
