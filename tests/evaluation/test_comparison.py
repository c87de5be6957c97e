"""Comparing results: what changed beyond the spread, and nothing else."""

import random

import pytest
from tiny_pair import made_up_record

from eagle_hf.evaluation import compare


def result(records, **facts):
    settings = {"hardware": "h", "dtype": "float32", "attention": "sdpa", "settings": {}, "methods": {}}
    models = {"target": {"name": "t"}, "draft": {"name": "d", "weights": "1"}, "versions": {"torch": "2"}}
    return settings | models | {"records": records} | facts


def records(factor=1.0, noise=0.03, lengths=(2, 3, 4), seed=0, task="qa", **answer):
    generator = random.Random(seed)
    made = []
    for number in range(12):
        plain = [2.0 * generator.uniform(1 - noise, 1 + noise) for _ in range(3)]
        eagle = [1.0 / factor * generator.uniform(1 - noise, 1 + noise) for _ in range(3)]
        made.append(made_up_record(number, plain, eagle, lengths=list(lengths), task=task, **answer))
    return made


def verdicts(comparison):
    return {change.figure: change.verdict for change in comparison.changes}


def test_noise_is_no_regression():
    comparison = compare(result(records(seed=1)), result(records(seed=2)))
    assert verdicts(comparison) == {"speedup": "same", "tau": "same", "plain tokens/s": "same"}
    assert not comparison.has_regressions
    assert comparison.conditions == []


def test_a_slower_head_is_a_regression_and_a_faster_one_is_not():
    slower = compare(result(records(seed=1)), result(records(factor=0.8, seed=2)))
    assert verdicts(slower)["speedup"] == "worse"
    assert slower.has_regressions
    assert "worse" in str(slower)
    faster = compare(result(records(seed=1)), result(records(factor=1.3, seed=2)))
    assert verdicts(faster)["speedup"] == "better"
    assert not faster.has_regressions


def test_a_large_change_within_a_larger_spread_is_none():
    comparison = compare(result(records(noise=0.9, seed=3)), result(records(noise=0.9, seed=5)))
    assert verdicts(comparison)["speedup"] == "same"


def test_less_acceptance_is_a_regression_without_any_change_of_times():
    before, after = records(lengths=(4, 4, 4)), records(lengths=(3, 3, 3))
    assert verdicts(compare(result(before), result(after)))["tau"] == "worse"


def test_tokens_that_differ_now_are_a_regression_and_have_no_speedup():
    comparison = compare(result(records()), result(records(equal=False, is_tie=False)))
    assert comparison.has_regressions
    assert "speedup" not in verdicts(comparison)
    assert "token ids differ" in str(comparison)


def test_only_prompts_of_both_are_compared_and_the_difference_is_named():
    before = records(task="qa") + records(task="sum", factor=9.0)
    comparison = compare(result(before), result(records(task="qa", seed=4), draft={"name": "d", "weights": "2"}))
    assert {change.task for change in comparison.changes} == {"qa"}
    assert verdicts(comparison)["speedup"] == "same"
    assert "prompts: 12 are in both, of 24 and 12" in str(comparison)
    assert "draft: weights 1, then 2" in str(comparison)


def test_results_without_a_common_prompt_are_refused():
    with pytest.raises(ValueError, match="in common"):
        compare(result(records(task="qa")), result(records(task="sum")))
