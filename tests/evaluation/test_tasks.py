"""Task sets: every format loads, and what does not is named with file and line."""

import json
from pathlib import Path

import pytest
from tiny_pair import write_rows

from eagle_hf.evaluation import load_tasks


ROOT = Path(__file__).parents[2]


def user(text):
    return {"role": "user", "content": text}


def test_folder_of_the_eagle_repository_is_a_task_per_folder(tmp_path):
    write_rows(tmp_path / "gsm8k" / "question.jsonl", {"question_id": 0, "category": "math", "turns": ["a"]})
    categories = ["writing", "roleplay", "stem", "math", "coding"]
    rows = [{"question_id": i, "category": c, "turns": [c, "next"]} for i, c in enumerate(categories)]
    write_rows(tmp_path / "mt_bench" / "question.jsonl", *rows)
    (tmp_path / "LICENSE").write_text("not a task")
    tasks = load_tasks(tmp_path)
    assert {name: len(prompts) for name, prompts in tasks.prompts.items()} == {"gsm8k": 1, "mt_bench": 5}
    assert tasks.prompts["mt_bench"][1].turns == [[user("roleplay")], [user("next")]]
    assert tasks.prompts["mt_bench"][2].place == f"{tmp_path / 'mt_bench' / 'question.jsonl'}, line 3"


def test_spec_bench_is_a_task_per_category_and_mt_bench_is_one(tmp_path):
    categories = ["writing", "coding", "stem", "math", "humanities", "translation", "summarization", "translation"]
    rows = [{"question_id": i, "category": c, "turns": [f"{c} {i}"]} for i, c in enumerate(categories)]
    tasks = load_tasks([write_rows(tmp_path / "question.jsonl", *rows)])
    found = {name: len(prompts) for name, prompts in tasks.prompts.items()}
    assert found == {"mt_bench": 5, "translation": 2, "summarization": 1}
    assert [prompt.number for prompt in tasks.prompts["mt_bench"]] == [0, 1, 2, 3, 4]


def test_a_category_that_mt_bench_has_too_stays_what_it_is(tmp_path):
    rows = [{"domain": domain, "prompt": domain} for domain in ("code", "math", "chat")]
    assert list(load_tasks(write_rows(tmp_path / "mine.jsonl", *rows)).prompts) == ["code", "math", "chat"]


def test_own_rows_hold_a_prompt_or_messages(tmp_path):
    dialogue = [{"role": "system", "content": "s"}, user("a"), {"role": "assistant", "content": "b"}, user("c")]
    path = write_rows(
        tmp_path / "mine.jsonl",
        {"prompt": "hello"},
        {"prompt": [user("listed")]},
        {"messages": [*dialogue, {"role": "assistant", "content": "left out, as it is to be generated"}]},
    )
    prompts = load_tasks(path).prompts["mine"]
    assert [prompt.turns for prompt in prompts] == [[[user("hello")]], [[user("listed")]], [dialogue]]


def test_rows_without_a_prompt_are_skipped_with_file_and_line(tmp_path):
    bad = [
        {"question_id": 1}, "{not json", {"turns": []}, {"turns": ["a", ""]}, {"turns": "a"}, [1],
        {"messages": [{"role": "assistant", "content": "b"}]}, {"messages": [{"content": "b"}]}, {"prompt": "  "},
        {"prompt": "good"}, {"messages": [user(None)]},
    ]  # fmt: skip
    path = write_rows(tmp_path / "mixed.jsonl", {"prompt": "good"}, *bad)
    tasks = load_tasks(path)
    assert len(tasks.prompts["mixed"]) == 1
    skipped = dict(tasks.skipped)
    assert list(skipped) == [f"{path}, line {number}" for number in range(2, 2 + len(bad))]
    assert skipped[f"{path}, line 2"] == "none of `turns`, `messages`, `prompt`"
    assert "the same prompt as" in skipped[f"{path}, line 11"]


def test_a_file_without_any_prompt_is_refused_by_name(tmp_path):
    path = write_rows(tmp_path / "bad.jsonl", {"question": "a"})
    with pytest.raises(ValueError, match=r"No usable prompt in .*bad\.jsonl(.|\n)*line 1: none of"):
        load_tasks(path)
    assert len(load_tasks(path, prompt_field="question").prompts["bad"]) == 1
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
        load_tasks(tmp_path / "missing.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No task files"):
        load_tasks(tmp_path / "empty")


def test_two_files_of_one_task_are_refused(tmp_path):
    paths = [write_rows(tmp_path / name / "qa.jsonl", {"prompt": name}) for name in "ab"]
    with pytest.raises(ValueError, match="both hold a task 'qa'"):
        load_tasks(paths)


def test_a_selection_is_spread_evenly(tmp_path):
    path = write_rows(tmp_path / "many.jsonl", *({"prompt": f"number {i}"} for i in range(80)))
    assert [prompt.number for prompt in load_tasks(path, max_prompts=4).prompts["many"]] == [0, 20, 40, 60]
    with pytest.raises(ValueError, match="max_prompts"):
        load_tasks(path, max_prompts=0)


def test_datasets_are_loaded_by_id_and_config(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"question": "how many", "answer": "two"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    tasks = load_tasks("openai/gsm8k:main", split="test", prompt_field="question")
    assert asked == [("openai/gsm8k", "main", "test")]
    assert tasks.prompts["gsm8k"][0].turns == [[user("how many")]]
    assert tasks.prompts["gsm8k"][0].place == "openai/gsm8k:main, row 0"


def test_the_task_sets_that_travel_with_the_repository_load():
    tasks = load_tasks(ROOT / "benchmarks" / "tasks")
    assert {name: len(prompts) for name, prompts in tasks.prompts.items()} == dict.fromkeys(
        ["gsm8k", "humaneval", "instructions", "mt_bench", "qa", "summaries"], 6
    )
    assert tasks.skipped == []
    assert all(len(prompt.turns) == 2 for prompt in tasks.prompts["mt_bench"])
    note = (ROOT / "benchmarks" / "tasks" / "README.md").read_text()
    assert all(f"`{name}.jsonl`" in note for name in tasks.prompts)


def test_prompts_are_told_apart_by_what_they_say(tmp_path):
    rows = [{"prompt": "a"}, {"turns": ["a", "b"]}, {"prompt": "b"}]
    prompts = load_tasks(write_rows(tmp_path / "p.jsonl", *rows)).prompts["p"]
    assert len({prompt.digest for prompt in prompts}) == 3
    again = load_tasks(write_rows(tmp_path / "q.jsonl", json.dumps(rows[0]))).prompts["q"]
    assert again[0].digest == prompts[0].digest
