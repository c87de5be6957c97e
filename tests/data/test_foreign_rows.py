"""Rows and files of other projects are read as the conversations they are, or refused with the way to convert them."""

import gzip
import json

import pytest
from chat_tokenizers import chat_tokenizer

from eagle_hf.data.foreign_rows import as_messages
from eagle_hf.evaluation import load_tasks
from eagle_hf.training import RowReader, make_samples


HI = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ok"}]
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ok"}]
CALL = {"name": "add", "arguments": {"a": 1}}


def messages(row):
    return as_messages(row)["messages"]


class TestShareGpt:
    @pytest.mark.parametrize("field", ["conversations", "conversation", "messages"])
    @pytest.mark.parametrize(
        ("user", "assistant"), [("human", "gpt"), ("user", "assistant"), ("Human", "ChatGPT"), ("prompter", "bard")]
    )
    @pytest.mark.parametrize(("role", "content"), [("from", "value"), ("role", "content"), ("role", "value")])
    def test_every_spelling_is_the_same_conversation(self, field, user, assistant, role, content):
        row = {field: [{role: user, content: "Hi"}, {role: assistant, content: "Ok"}], "id": 7}
        if field == "messages" and (role, user) == ("role", "Human"):
            pytest.skip("words of chat templates are left as they are")
        if field == "messages" and role == "role" and user == "user":
            assert as_messages(row) is row
            return
        assert as_messages(row) == {"id": 7, "messages": MESSAGES}

    def test_what_needs_no_turning_is_the_row_itself(self):
        for row in ({"messages": MESSAGES}, {"text": "a"}, {"prompt": "a", "completion": "b"}, {"prompt_ids": [1]}, {}):
            assert as_messages(row) is row

    def test_a_system_prompt_in_a_turn_or_a_field_comes_first(self):
        system = {"role": "system", "content": "Be kind"}
        assert messages({"conversations": [{"from": "system", "value": "Be kind"}, *HI]}) == [system, *MESSAGES]
        assert messages({"conversations": HI, "system": "Be kind"}) == [system, *MESSAGES]
        assert messages({"conversations": HI, "system": " "}) == MESSAGES
        both = messages({"conversations": [{"from": "system", "value": "Be kind"}, *HI], "system": "Be rude"})
        assert both == [system, *MESSAGES]

    def test_answers_to_nothing_are_left_out(self):
        assert messages({"conversations": [{"from": "gpt", "value": "..."}, *HI]}) == MESSAGES
        kept = messages({"conversations": [{"from": "system", "value": "S"}, {"from": "gpt", "value": "..."}, *HI]})
        assert [message["role"] for message in kept] == ["system", "user", "assistant"]

    def test_two_questions_in_a_row_stay_two(self):
        """What to do with them is the chat template's to say."""
        assert messages({"conversations": [HI[0], *HI]}) == [MESSAGES[0], *MESSAGES]

    def test_parts_stay_parts(self):
        parts = [{"type": "text", "text": "Hi"}]
        assert messages({"conversations": [{"role": "user", "content": parts}, HI[1]]})[0]["content"] == parts

    def test_tools_and_their_calls(self):
        row = {
            "conversations": [
                HI[0],
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "2"},
                HI[1],
            ],
            "tools": json.dumps([{"name": "add"}]),
        }
        converted = as_messages(row)
        assert converted["tools"] == [{"name": "add"}]
        assert [message["role"] for message in converted["messages"]] == ["user", "assistant", "tool", "assistant"]
        assert converted["messages"][1]["tool_calls"] == [{"type": "function", "function": CALL}]
        assert as_messages({"conversations": HI, "tools": ""})["tools"] is None

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"conversations": [{"from": "narrator", "value": "Hi"}]}, "from 'narrator'"),
            ({"conversations": [{"value": "Hi"}]}, "without `role` (or `from`)"),
            ({"conversations": []}, "`conversations` is no list"),
            ({"conversations": "Hi"}, "`conversations` is no list"),
            ({"conversations": ["Hi"]}, "`conversations` is no list"),
            ({"conversations": [HI[0]]}, "no turn of the assistant"),
            ({"conversations": [{"from": "human", "value": ""}, HI[1]]}, "user without `content`"),
            ({"conversations": [HI[0], {"from": "gpt", "value": None}]}, "assistant without `content`"),
            ({"conversations": [HI[0], {"from": "function_call", "value": "add(1)"}]}, "no JSON object with `name`"),
            ({"conversations": HI, "tools": "{"}, "`tools` is no list"),
            ({"conversations": HI, "image": "cat.png"}, "images or sound"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, MESSAGES[1]]}, "'image_url' in it"),
            ({"instruction": "Hi", "input": "x", "output": "Ok"}, "rename `instruction` (with `input` behind it) to"),
            ({"question": "Hi", "answer": "Ok"}, "rename `question` to `prompt` and `answer` to `completion`"),
            ({"dialog": ["Hi"], "act": 3}, "it has `dialog`, `act`"),
        ],
    )
    def test_what_cannot_be_read_is_said_with_its_place(self, row, reason):
        with pytest.raises(ValueError, match="No usable row") as error:
            list(RowReader([row]))
        assert reason in str(error.value)
        assert "row 0: " in str(error.value)

    def test_samples_and_tasks_are_those_of_the_same_messages(self, tmp_path):
        (tmp_path / "ours.jsonl").write_text(json.dumps({"messages": MESSAGES}))
        (tmp_path / "theirs.json").write_text(json.dumps([{"conversations": HI}]))
        ours, theirs = (
            [make_samples(tmp_path / name, chat_tokenizer("qwen_like"))[0] for name in ("ours.jsonl", "theirs.json")]
        )  # fmt: skip
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        assert ours["loss_mask"].tolist() == theirs["loss_mask"].tolist()
        prompts = [load_tasks([tmp_path / name]).prompts for name in ("ours.jsonl", "theirs.json")]
        assert prompts[0]["ours"][0].turns == prompts[1]["theirs"][0].turns == [[MESSAGES[0]]]


class TestJson:
    @pytest.mark.parametrize(
        "content",
        [
            json.dumps([{"conversations": HI}] * 2),
            json.dumps([{"conversations": HI}] * 2, indent=1),
            "\ufeff" + json.dumps([{"conversations": HI}] * 2),
            json.dumps({"version": 1, "data": [{"conversations": HI}] * 2}),
            "\n".join([json.dumps({"conversations": HI})] * 2),
        ],
        ids=["a list", "over lines", "with a mark of its encoding", "in an object", "lines after all"],
    )
    @pytest.mark.parametrize("packed", [False, True])
    def test_json_files_are_read(self, tmp_path, content, packed):
        path = tmp_path / ("data.json.gz" if packed else "data.json")
        path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
        assert list(RowReader(path)) == [{"messages": MESSAGES}] * 2

    def test_one_object_is_one_row(self, tmp_path):
        (tmp_path / "data.json").write_text(json.dumps({"messages": MESSAGES}, indent=2))
        assert list(RowReader(tmp_path / "data.json")) == [{"messages": MESSAGES}]

    def test_a_bad_row_of_a_list_is_named_by_its_place(self, tmp_path):
        (tmp_path / "data.json").write_text(json.dumps([{"conversations": HI}, {"id": 1}, "text"]))
        reader = RowReader(tmp_path / "data.json", max_malformed=0.7)
        assert len(list(reader)) == 1
        assert [line.partition(": ")[0] for line in reader.report.shown] == [
            f"{tmp_path / 'data.json'}, row 1", f"{tmp_path / 'data.json'}, row 2",
        ]  # fmt: skip

    @pytest.mark.parametrize("content", ["[{", '"text"', "3", '{"a": 1}', ""])
    def test_what_is_no_list_of_rows_is_refused(self, tmp_path, content):
        (tmp_path / "data.json").write_text(content)
        with pytest.raises(ValueError, match=r"data\.json"):
            list(RowReader(tmp_path / "data.json"))

    def test_in_folders_json_lines_go_first(self, tmp_path):
        (tmp_path / "dataset_info.json").write_text("{}")
        (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": MESSAGES}))
        assert list(RowReader(tmp_path)) == [{"messages": MESSAGES}]
        (tmp_path / "only").mkdir()
        (tmp_path / "only" / "rows.json").write_text(json.dumps([{"messages": MESSAGES}]))
        assert list(RowReader(tmp_path / "only")) == [{"messages": MESSAGES}]

    @pytest.mark.parametrize(("name", "kind"), [("rows.parquet", "parquet"), ("rows.csv", "csv"), ("rows.txt", "...")])
    def test_other_files_are_refused_with_the_way_to_convert(self, tmp_path, name, kind):
        (tmp_path / name).write_bytes(b"PAR1")
        with pytest.raises(ValueError, match="to_json") as error:
            list(RowReader(tmp_path / name))
        assert f"load_dataset('{kind}'" in str(error.value)
