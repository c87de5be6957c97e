"""Averages: ratios of totals, and none where there must be none."""

import pytest
from tiny_pair import made_up_record

from eagle_hf.evaluation.averages import interval, spread, summarize


RECORDS = [
    made_up_record(0, plain=[4.0, 4.4, 3.6], eagle=[2.0, 2.0, 2.0], tokens=100, lengths=[2, 2, 2]),
    made_up_record(1, plain=[8.0, 8.0, 8.0], eagle=[2.0, 2.2, 1.8], tokens=300, lengths=[4]),
]


def test_a_speedup_is_the_ratio_of_all_tokens_per_second():
    row = summarize(RECORDS, "qa", 0.0, "eagle")
    assert row["speedup"] == {"median": 3.0, "first_quartile": 2.952, "third_quartile": 3.053}  # 12 s over 4 s
    assert row["tokens_per_second"]["median"] == 100.0
    assert row["tau"] == 2.5
    assert row["tau_mean_over_prompts"] == 3.0
    assert row["tokens_per_target_forward"] == 2.0
    assert "speedup" not in summarize(RECORDS, "qa", 0.0, "plain")


def test_quartiles_lie_within_the_values():
    assert spread([1.0, 2.0]) == {"median": 1.5, "first_quartile": 1.0, "third_quartile": 2.0}


def test_one_repeat_has_no_quartiles():
    assert spread([1.5]) == {"median": 1.5, "first_quartile": None, "third_quartile": None}


def test_the_interval_holds_the_value_and_is_the_same_every_time():
    low, high = interval(RECORDS, "eagle")
    assert low == 2.0  # the first prompt twice
    assert high == 4.0
    assert interval(RECORDS, "eagle") == [low, high]


def test_no_speedup_is_stated_where_texts_differ():
    other = made_up_record(2, [1.0] * 3, [0.1] * 3, equal=False, is_tie=False, first_difference=3)
    row = summarize([*RECORDS, other], "qa", 0.0, "eagle")
    assert "speedup" not in row
    assert row["throughput_ratio"]["median"] > 3
    assert (row["texts_that_differ"], row["of_these_at_ties"]) == (1, 0)


def test_texts_that_part_at_ties_are_counted_and_forgiven():
    tie = made_up_record(2, [1.0] * 3, [0.5] * 3, equal=False, is_tie=True, first_difference=3)
    row = summarize([*RECORDS, tie], "qa", 0.0, "eagle")
    assert "speedup" in row
    assert (row["texts_that_differ"], row["of_these_at_ties"]) == (1, 1)


def test_no_average_is_made_of_a_method_that_failed_on_a_prompt():
    failed = made_up_record(2, [1.0] * 3, [0.5] * 3)
    failed["turns"][0]["methods"]["eagle"] = {"error": "RuntimeError: out of memory"}
    row = summarize([*RECORDS, failed], "qa", 0.0, "eagle")
    assert row["failures"] == 1
    assert row["first_failure"] == "RuntimeError: out of memory"
    assert not {"speedup", "throughput_ratio", "tokens_per_second", "tau"} & set(row)


def test_rows_take_their_task_and_temperature_only():
    records = [*RECORDS, made_up_record(3, [9.0], [1.0], task="sum"), made_up_record(4, [1.0], [9.0], temperature=1.0)]
    assert summarize(records, "qa", 0.0, "eagle")["prompts"] == 2
    assert summarize(records, "all", 1.0, "eagle")["speedup"]["median"] == pytest.approx(0.111)
