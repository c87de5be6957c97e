"""Rows are read from whatever holds them; what cannot be used is counted, shown, and stops the run if it is much."""

import gzip
import json
import lzma

import pytest

from eagle_hf.data.conversations import why_malformed
from eagle_hf.training import RowReader


CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ok"}]}
PAIR = {"prompt": "Hi", "completion": "Ok"}
TEXT = {"text": "Ok"}
ROWS = [CHAT, PAIR, TEXT]


def lines(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(("suffix", "opener"), [(".jsonl", open), (".jsonl.gz", gzip.open), (".jsonl.xz", lzma.open)])
def test_files_of_json_lines_are_read(tmp_path, suffix, opener):
    path = tmp_path / f"data{suffix}"
    with opener(path, "wb") as file:
        file.write(lines())
    assert list(RowReader(path)) == ROWS
    assert list(RowReader(str(path))) == ROWS


def test_folders_and_lists_of_files_are_read_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.jsonl").write_bytes(lines([CHAT]))
    (tmp_path / "b" / "c.jsonl").write_bytes(lines([PAIR]))
    (tmp_path / "notes.txt").write_text("no data")
    assert list(RowReader(tmp_path)) == [CHAT, PAIR]
    assert list(RowReader([tmp_path / "b", tmp_path / "a.jsonl"])) == [PAIR, CHAT]


def test_any_iterable_is_read_and_again():
    reader = RowReader(ROWS)
    assert list(reader) == list(reader) == ROWS
    assert reader.report.num_rows == 3
    assert list(RowReader(row for row in ROWS)) == ROWS


def test_datasets_are_read(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list([CHAT, CHAT])
    assert list(RowReader(dataset)) == [CHAT, CHAT]
    assert list(RowReader(dataset.to_iterable_dataset())) == [CHAT, CHAT]
    both = datasets.DatasetDict({"train": dataset, "test": dataset.select([0])})
    assert len(list(RowReader(both, split="test"))) == 1
    with pytest.raises(ValueError, match="no split 'valid'.*'train', 'test'"):
        list(RowReader(both, split="valid"))
    both.save_to_disk(tmp_path / "saved")
    assert list(RowReader(tmp_path / "saved")) == [CHAT, CHAT]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: {"org/data": {"train": dataset}}[name][split])
    assert list(RowReader("org/data")) == [CHAT, CHAT]


def test_a_name_that_needs_datasets_says_so_without_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"eagle-hf\[train\]"):
        list(RowReader("org/data"))


def test_malformed_rows_are_counted_by_reason_and_shown_with_their_place(tmp_path):
    path = tmp_path / "data.jsonl"
    bad = [b"\n", b"{torn\n", b'"text"\n', b"[1]\n", b"\xff\xfe\n", b'{"id": 1}\n']
    path.write_bytes(lines([CHAT] * 4) + b"".join(bad))
    reader = RowReader(path, max_malformed=0.7, num_shown=2)
    assert len(list(reader)) == 4
    assert reader.report.num_rows == 10
    assert reader.report.malformed == {
        "an empty line": 1, "not JSON": 1, "not an object": 2, "not UTF-8": 1,
        "none of `messages`, `conversations`, `prompt` with `completion`, `text`": 1,
    }  # fmt: skip
    assert reader.report.shown == [f"{path}, line 5: an empty line", f"{path}, line 6: not JSON"]
    assert "10 rows read, 6 of them malformed" in str(reader.report)


def test_more_malformed_rows_than_let_pass_are_an_error():
    assert len(list(RowReader([CHAT] * 99 + [{}]))) == 99
    with pytest.raises(ValueError, match=r"2.0% of the rows .* more than the 1.0%(.|\n)*row 98: none of"):
        list(RowReader([CHAT] * 98 + [{}, {}]))


def test_rows_that_are_rejected_later_count_as_malformed():
    reader = RowReader([CHAT, CHAT])
    rows = iter(reader)
    next(rows)
    next(rows)
    reader.reject("too rude")
    with pytest.raises(ValueError, match="row 1: too rude"):
        next(rows)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "no list of messages"),
        ({"messages": "Hi"}, "no list of messages"),
        ({"messages": [{"content": "Hi"}]}, "without `role`"),
        ({"messages": ["Hi"]}, "without `role`"),
        ({"messages": [{"role": "user", "content": 3}]}, "neither text nor"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no turn of the assistant"),
        ({"messages": [{"role": "user", "content": ""}, CHAT["messages"][1]]}, "user without `content`"),
        ({"messages": [CHAT["messages"][0], {"role": "assistant", "content": None}]}, "assistant without `content`"),
        ({"prompt": "Hi"}, "without `completion`"),
        ({"prompt": "Hi", "completion": ""}, "is empty"),
        ({"prompt": "Hi", "completion": CHAT["messages"]}, "is empty"),
        ({"prompt": CHAT["messages"][:1], "completion": "Ok"}, "neither both"),
        ({"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][:1]}, "no turn of the assistant"),
        ({"text": "  "}, "no text"),
        ({"prompt_ids": [1], "answer_ids": []}, "`answer_ids` is no list"),
        ({"prompt_ids": [1.5], "answer_ids": [1]}, "`prompt_ids` is no list"),
        ({"prompt_ids": [1]}, "`answer_ids` is no list"),
        ({"conversations": []}, "none of"),
        (3, "not an object"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(row, reason):
    assert reason in (why_malformed(row) or "")


@pytest.mark.parametrize(
    "row",
    [
        *ROWS,
        {"messages": [{"role": "system", "content": ""}, *CHAT["messages"]]},
        {"messages": [CHAT["messages"][0], {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        {"messages": [CHAT["messages"][0], {"role": "assistant", "content": "", "reasoning_content": "Hm"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, CHAT["messages"][1]]},
        {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]},
        {"messages": None, "text": "Ok"},  # as `datasets` fills in what a row does not have
        {"prompt_ids": [1], "answer_ids": [2], "messages": []},
    ],
)
def test_usable_rows_are_let_through(row):
    assert why_malformed(row) is None


def test_prompts_alone_are_enough_where_no_answers_are_needed():
    for row in ({"prompt": "Hi"}, {"prompt": CHAT["messages"][:1]}, {"messages": CHAT["messages"][:1]}):
        assert why_malformed(row) is not None
        assert why_malformed(row, need_answers=False) is None


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "No rows"),
        ([{}], ValueError, "No usable row"),
        (3, ValueError, "is a int"),
        ("gone.jsonl", FileNotFoundError, "no file or folder gone.jsonl"),
    ],
)
def test_data_that_is_none_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        list(RowReader(data, max_malformed=1.0))


def test_files_of_other_kinds_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"No data in .*\.jsonl"):
        list(RowReader(tmp_path))
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(ValueError, match="unknown kind"):
        list(RowReader(tmp_path / "data.csv"))


@pytest.mark.parametrize(("suffix", "compress"), [(".jsonl.gz", gzip.compress), (".jsonl.xz", lzma.compress)])
def test_a_file_that_was_cut_short_is_named(tmp_path, suffix, compress):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(compress(lines([CHAT] * 999))[:-20])
    with pytest.raises(ValueError, match=f"data{suffix} is corrupt or cut short"):
        list(RowReader(path))


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match="between 0 and 1"):
        RowReader(ROWS, max_malformed=5)
