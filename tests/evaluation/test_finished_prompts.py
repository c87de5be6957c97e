"""What an interrupted run has measured is used once more, if it is whole and of the same settings."""

import json

import pytest

from eagle_hf.evaluation.finished_prompts import FinishedPrompts


def record(number, **fields):
    return {"task": "qa", "digest": f"d{number}", "temperature": 0.0, "value": number} | fields


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "folder" / "finished.jsonl"
    with FinishedPrompts(path, {"draft": "a", "settings": {"temperatures": (0.0, 1.0)}}) as finished:
        finished.add(record(0))
        finished.add(record(1))
    return path


SAME = {"draft": "a", "settings": {"temperatures": (0.0, 1.0)}}


def test_records_are_found_by_task_prompt_and_temperature(path):
    finished = FinishedPrompts(path, SAME)
    assert finished.num_resumed == 2
    assert finished.get("qa", "d1", 0.0)["value"] == 1
    assert finished.get("qa", "d1", 1.0) is None
    assert finished.get("sum", "d1", 0.0) is None


@pytest.mark.parametrize("keep", [1, 20, 60])
def test_a_line_that_was_cut_short_is_dropped_and_written_again(path, keep):
    whole = path.read_bytes()
    last = whole.splitlines()[-1]
    path.write_bytes(whole[: -len(last) - 1] + last[:keep])
    finished = FinishedPrompts(path, SAME)
    assert finished.num_resumed == 1
    with finished:
        finished.add(record(1))
    assert path.read_bytes() == whole


def test_a_first_line_that_was_cut_short_starts_anew(path):
    path.write_text('{"fingerp')
    assert FinishedPrompts(path, SAME).num_resumed == 0


def test_records_of_other_settings_are_not_mixed_in(path):
    with pytest.raises(ValueError, match=r"2 finished prompts .*draft was 'a' and is 'b'.*--restart"):
        FinishedPrompts(path, SAME | {"draft": "b"})
    assert FinishedPrompts(path, SAME | {"draft": "b"}, restart=True).num_resumed == 0


@pytest.mark.parametrize("content", ["not json\n", "[]\n", '{"fingerprint": {}}\n{"no": "record"}\n'])
def test_another_file_is_not_overwritten(path, content):
    path.write_text(content)
    with pytest.raises(ValueError, match="holds no finished prompts"):
        FinishedPrompts(path, {})
    assert path.read_text() == content


def test_every_record_is_on_the_disk_at_once(tmp_path):
    path = tmp_path / "f.jsonl"
    with FinishedPrompts(path, {}) as finished:
        finished.add(record(0))
        assert json.loads(path.read_text().splitlines()[1]) == record(0)
    finished.remove()
    assert not path.exists()
