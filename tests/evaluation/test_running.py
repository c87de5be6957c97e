"""A whole benchmark on a tiny pair: the same tokens, resumed after interruptions, and no average of what went wrong."""

import copy

import pytest
import torch
from architectures import tiny_target
from tiny_pair import tiny_pair, write_rows
from transformers import AutoModelForCausalLM, CompileConfig

from eagle_hf.evaluation import BenchmarkSettings, load_result, load_tasks, make_methods, run_benchmark, save_result
from eagle_hf.evaluation.measuring import Measuring


SETTINGS = BenchmarkSettings(max_new_tokens=8, repeats=2, chain_depth=3)
ROWS = {
    "one": [{"prompt": "abc"}, {"prompt": "hello"}],
    "two": [{"turns": ["question", "next"]}],
}


@pytest.fixture(scope="module")
def pair():
    return tiny_pair()


@pytest.fixture
def tasks(tmp_path):
    return load_tasks([write_rows(tmp_path / f"{name}.jsonl", *rows) for name, rows in ROWS.items()])


@pytest.fixture(scope="module")
def result(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in ROWS.items():
        write_rows(folder / f"{name}.jsonl", *rows)
    methods = make_methods(pair[1], ["prompt_lookup", "assisted"], tiny_target("llama"), trees=[(3, 2, 2)])
    return run_benchmark(*pair, load_tasks(folder), SETTINGS, methods, command="eagle-hf bench")


def row(result, task, temperature, method):
    found = [
        row for row in result["rows"] if (row["task"], row["temperature"], row["method"]) == (task, temperature, method)
    ]
    assert len(found) == 1
    return found[0]


def facts(result):
    """A result without times, which differ from run to run."""
    records = copy.deepcopy(result["records"])
    for record in records:
        for turn in record["turns"]:
            for answer in turn["methods"].values():
                answer.pop("seconds")
    return records, result["head"], [(row["task"], row.get("tau")) for row in result["rows"]]


class TestTokens:
    def test_there_is_a_row_per_task_temperature_and_method_and_one_over_all(self, result):
        assert len(result["rows"]) == 3 * 2 * 5
        assert {row["task"] for row in result["rows"]} == {"one", "two", "all"}
        assert row(result, "two", 1.0, "eagle")["turns"] == 2

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("method", ["eagle", "eagle 3/2/2"])
    def test_the_head_gives_the_tokens_of_plain_generate_seed_for_seed(self, result, method, temperature):
        found = row(result, "all", temperature, method)
        assert found["texts_that_differ"] == 0
        assert found["speedup"]["median"] > 0
        assert found["tau"] >= 1

    def test_plain_tokens_are_those_of_generate(self, result, pair):
        target, _, tokenizer = pair
        turn = result["records"][0]["turns"][0]
        ids = tokenizer("abc", return_tensors="pt").input_ids
        assert turn["prompt_length"] == ids.shape[1]
        output = target.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        assert output[0, ids.shape[1] :].tolist() == turn["tokens"]

    def test_a_later_turn_follows_the_answer_of_plain_generate(self, result, pair):
        tokenizer = pair[2]
        turns = result["records"][4]["turns"]
        answer = tokenizer.decode(turns[0]["tokens"], skip_special_tokens=True)
        assert turns[1]["prompt_length"] == len(tokenizer(f"question\n{answer}\nnext").input_ids)

    def test_baselines_of_other_random_numbers_are_not_called_exact(self, result):
        assert row(result, "all", 0.0, "prompt_lookup")["texts_that_differ"] == 0
        for method in ("prompt_lookup", "assisted"):
            found = row(result, "all", 1.0, method)
            assert ("speedup" in found) == (found["texts_that_differ"] == 0)
            assert found["tokens_per_second"]["median"] > 0

    def test_the_target_forwards_are_counted_for_every_method(self, result):
        for record in result["records"]:
            for turn in record["turns"]:
                assert turn["methods"]["plain"]["target_forwards"] == len(turn["tokens"])
                lengths = turn["methods"]["eagle"]["acceptance_lengths"]
                assert turn["methods"]["eagle"]["target_forwards"] == 1 + len(lengths)
                assert sum(lengths) + 1 == len(turn["tokens"])

    def test_the_head_is_left_as_it_was(self, result, pair):
        assert pair[1].generation_config.num_assistant_tokens == 5
        assert pair[1].generation_config.output_draft_trees is False

    def test_metrics_are_there_for_every_temperature(self, result):
        assert [head["temperature"] for head in result["head"]] == [0.0, 1.0]
        for head in result["head"]:
            assert head["n_alpha"][0]["trials"] > 0
            assert head["calibration"]["tokens"] > 0

    def test_a_result_is_the_same_after_writing_and_reading(self, result, tmp_path):
        save_result(result, tmp_path / "new" / "results.json")
        assert load_result(tmp_path / "new") == result
        for name in ("versions", "hardware", "threads", "command", "settings", "methods", "target", "draft"):
            assert result[name]


def test_a_head_with_a_tree_of_automatic_size_is_measured_like_any_other(pair, tasks):
    target, draft, tokenizer = pair
    draft = copy.deepcopy(draft)
    draft.generation_config.draft_tree = "auto"
    settings = BenchmarkSettings((0.0,), max_new_tokens=12, repeats=2, chain_depth=2)
    result = run_benchmark(target, draft, tokenizer, tasks, settings, make_methods(draft, trees=[(3, 2, 2)]))
    assert result["methods"]["eagle"]["draft_tree"] == "auto"
    for method in ("eagle", "eagle 3/2/2"):
        assert row(result, "all", 0.0, method)["texts_that_differ"] == 0
    for record in result["records"]:
        for turn in record["turns"]:
            assert sum(turn["methods"]["eagle"]["acceptance_lengths"]) + 1 == len(turn["tokens"])


class TestInterruption:
    def test_finished_prompts_are_not_measured_again(self, pair, tasks, tmp_path, monkeypatch):
        path = tmp_path / "finished.jsonl"
        real, measured = Measuring.measure, []

        def measure(self, prompt, temperature):
            if len(measured) == 3:
                raise KeyboardInterrupt
            measured.append((prompt.place, temperature))
            return real(self, prompt, temperature)

        monkeypatch.setattr(Measuring, "measure", measure)
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(*pair, tasks, SETTINGS, finished_path=path)
        assert len(path.read_text().splitlines()) == 1 + 3
        first = list(measured)
        measured.clear()
        resumed = run_benchmark(*pair, tasks, SETTINGS, finished_path=path)
        assert resumed["resumed_prompts"] == 3
        assert len(measured) == 3
        assert not set(first) & set(measured)
        measured.clear()
        monkeypatch.setattr(Measuring, "measure", real)
        assert facts(resumed) == facts(run_benchmark(*pair, tasks, SETTINGS))

    def test_a_head_with_other_weights_does_not_go_on(self, pair, tasks, tmp_path):
        target, draft, tokenizer = pair
        path = tmp_path / "finished.jsonl"
        greedy = BenchmarkSettings(temperatures=(0.0,), max_new_tokens=3, repeats=1, metrics=False)
        run_benchmark(*pair, tasks, greedy, finished_path=path)
        other = copy.deepcopy(draft)
        other.lm_head.weight.data[0, 0] += 1
        with pytest.raises(ValueError, match="draft was"):
            run_benchmark(target, other, tokenizer, tasks, greedy, finished_path=path)


class TestBadInput:
    greedy = BenchmarkSettings(temperatures=(0.0,), max_new_tokens=8, repeats=1, metrics=False)

    def test_prompts_longer_than_the_context_are_named_and_left_out(self, pair, tmp_path):
        path = write_rows(tmp_path / "p.jsonl", {"prompt": "a" * 125}, {"prompt": "abc"})
        result = run_benchmark(*pair, load_tasks(path), self.greedy)
        assert row(result, "p", 0.0, "eagle")["prompts"] == 1
        assert [entry["place"] for entry in result["skipped"]] == [f"{path}, line 1"]
        assert "125 tokens of prompt and 8 new ones exceed the 128 positions" in result["skipped"][0]["reason"]

    def test_a_later_turn_that_does_not_fit_is_named_and_the_first_counts(self, pair, tmp_path):
        path = write_rows(tmp_path / "p.jsonl", {"turns": ["abc", "b" * 115]})
        result = run_benchmark(*pair, load_tasks(path), self.greedy)
        assert row(result, "p", 0.0, "plain")["turns"] == 1
        assert result["skipped"][0]["reason"].startswith("turn 2: ")

    def test_nothing_that_fits_is_an_error(self, pair, tmp_path):
        path = write_rows(tmp_path / "p.jsonl", {"prompt": "a" * 125})
        with pytest.raises(ValueError, match=r"No prompt can be measured(.|\n)*line 1: 125 tokens"):
            run_benchmark(*pair, load_tasks(path), self.greedy)

    def test_a_baseline_that_does_not_fit_is_left_out_by_name(self, pair, tasks):
        config = tiny_target("llama").config
        config.vocab_size = 50
        other = AutoModelForCausalLM.from_config(config).eval()
        result = run_benchmark(*pair, tasks, self.greedy, make_methods(pair[1], ["assisted"], other))
        assert set(result["baselines_left_out"]) == {"assisted"}
        assert {row["method"] for row in result["rows"]} == {"plain", "eagle"}

    def test_a_baseline_that_fails_later_has_no_average(self, pair, tasks, monkeypatch):
        real = Measuring._generate

        def generate(self, method, ids, temperature, seed):
            if method.name == "prompt_lookup" and ids.shape[1] == 5:
                raise RuntimeError("out of memory")
            return real(self, method, ids, temperature, seed)

        monkeypatch.setattr(Measuring, "_generate", generate)
        result = run_benchmark(*pair, tasks, self.greedy, make_methods(pair[1], ["prompt_lookup"]))
        assert row(result, "one", 0.0, "prompt_lookup")["first_failure"] == "RuntimeError: out of memory"
        assert "tokens_per_second" not in row(result, "all", 0.0, "prompt_lookup")
        assert "tokens_per_second" in row(result, "two", 0.0, "prompt_lookup")

    def test_a_head_that_fails_is_an_error_that_says_where(self, pair, tasks, monkeypatch):
        real = Measuring._generate

        def generate(self, method, ids, temperature, seed):
            if method.is_eagle and ids.shape[1] == 5:
                raise RuntimeError("broken")
            return real(self, method, ids, temperature, seed)

        monkeypatch.setattr(Measuring, "_generate", generate)
        with pytest.raises(RuntimeError, match="broken") as error:
            run_benchmark(*pair, tasks, self.greedy)
        assert "one.jsonl, line 2, temperature 0" in error.value.__notes__[0]

    def test_no_speedup_is_stated_for_other_tokens(self, pair, tasks, monkeypatch):
        real = Measuring._generate

        def generate(self, method, ids, temperature, seed):
            seconds, output, forwards = real(self, method, ids, temperature, seed)
            if method.is_eagle:
                output.sequences[0, -1] = 3 + (output.sequences[0, -1] - 2) % 20
            return seconds, output, forwards

        monkeypatch.setattr(Measuring, "_generate", generate)
        result = run_benchmark(*pair, tasks, self.greedy)
        assert "speedup" not in row(result, "all", 0.0, "eagle")
        assert row(result, "all", 0.0, "eagle")["texts_that_differ"] == 4

    def test_settings_out_of_range_are_refused(self):
        for wrong in (
            {"temperatures": ()}, {"temperatures": (-1.0,)}, {"temperatures": (1.0, 1.0)}, {"repeats": 0},
            {"max_new_tokens": 1}, {"warm_up": -1}, {"chain_depth": 0},
        ):  # fmt: skip
            with pytest.raises(ValueError, match=next(iter(wrong))):
                BenchmarkSettings(**wrong)

    def test_baselines_need_to_be_known_and_to_have_their_model(self, pair):
        with pytest.raises(ValueError, match="Unknown baselines"):
            make_methods(pair[1], ["medusa"])
        with pytest.raises(ValueError, match="go together"):
            make_methods(pair[1], ["assisted"])

    def test_another_file_is_no_result(self, tmp_path):
        (tmp_path / "results.json").write_text('{"format": "other"}')
        with pytest.raises(ValueError, match="format is 'other'"):
            load_result(tmp_path)
        (tmp_path / "results.json").write_text("[")
        with pytest.raises(ValueError, match="not JSON"):
            load_result(tmp_path)


@pytest.mark.parametrize("name", ["plain compiled", "eagle compiled"])
def test_compiled_methods_compile_and_write_the_same_tokens(pair, tasks, monkeypatch, name):
    torch._dynamo.reset()
    config = CompileConfig(backend="eager", mode="default")
    config._compile_all_devices = True
    monkeypatch.setattr("eagle_hf.evaluation.methods.compile_config", lambda device_type: config)
    calls = []
    monkeypatch.setattr(
        type(pair[0]), "get_compiled_call", lambda model, config: calls.append(config) or model.__call__
    )
    methods = make_methods(pair[1], compiles=True)
    assert [method.name for method in methods] == ["plain", "eagle", "plain compiled", "eagle compiled"]
    methods = [method for method in methods if method.name in ("plain", "eagle", name)]
    result = run_benchmark(*pair, tasks, BenchmarkSettings(max_new_tokens=8, repeats=1, metrics=False), methods)
    rows = {row["method"]: row for row in result["rows"] if row["task"] == "one" and row["temperature"] == 1}
    assert set(rows) == {"plain", "eagle", name}
    assert not any(row["texts_that_differ"] for row in rows.values())
    assert calls  # by this method: the others compile nothing
    torch._dynamo.reset()
