"""Reports, figures and cards of a result: complete, readable without colour, and nothing that was not measured."""

import copy
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from target_dtype import NAME
from tiny_pair import tiny_pair, write_rows

from eagle_hf.evaluation import (
    BenchmarkSettings,
    load_result,
    load_tasks,
    make_methods,
    markdown_report,
    measurements,
    run_benchmark,
    save_figures,
    write_card,
)
from eagle_hf.evaluation.card import tables
from eagle_hf.evaluation.running import summary
from eagle_hf.hub import create_model_card


CARDS = Path(__file__).parents[2] / "hub_cards"
RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "demo_tasks_cpu_2_threads.json"


@pytest.fixture(scope="module")
def pair():
    return tiny_pair()


@pytest.fixture(scope="module")
def result(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_rows(folder / "one.jsonl", {"prompt": "abc"}, {"prompt": "a" * 125})
    write_rows(folder / "two.jsonl", {"prompt": "xyz"})
    settings = BenchmarkSettings(max_new_tokens=8, repeats=2, chain_depth=3)
    methods = make_methods(pair[1], ["prompt_lookup"], trees=[(3, 2, 2), (5, 3, 2)])
    return run_benchmark(*pair, load_tasks(folder), settings, methods, command="eagle-hf bench --seed 0")


def broken(result, method="eagle"):
    """The result with a text that differs at the first prompt."""
    records = [dict(record) for record in result["records"]]
    turn = dict(records[0]["turns"][0])
    turn["methods"] = turn["methods"] | {method: turn["methods"][method] | {"equal": False, "is_tie": False}}
    records[0]["turns"] = [turn]
    settings = BenchmarkSettings(**result["settings"])
    return result | {"records": records} | summary(records, list(result["methods"]), settings)


class TestReport:
    def test_it_says_how_what_and_what_not(self, result):
        report = markdown_report(result)
        for text in ("eagle-hf bench --seed 0", "threads", NAME, "torch ", "seed 0", "2 repeats", "n-alpha",
                     "expected calibration error", "Left out (1):", "one.jsonl, line 2: 125 tokens",
                     "| tokens/s |", "tokens per verification"):  # fmt: skip
            assert text in report

    def test_every_row_has_a_cell_per_column(self, result):
        for shown in (result, broken(result)):
            speed = markdown_report(shown).split("## Acceptance")[0]
            table = [line for line in speed.splitlines() if line.startswith("|")]
            assert {line.count("|") for line in table} == {11}
            assert len(table) == 2 + len(result["rows"])

    def test_no_speedup_is_printed_of_other_tokens(self, result):
        report = markdown_report(broken(result))
        (line,) = [line for line in report.splitlines() if line.startswith("| one | 0 | eagle |")]
        assert "none; throughput" in line
        assert "1 of 1 texts differ" in line


class TestFigures:
    def test_all_are_drawn(self, result, tmp_path):
        pytest.importorskip("matplotlib")
        paths = save_figures(result, tmp_path)
        assert {path.stem for path in paths} == {
            f"{name}_temperature_{temperature}"
            for name in ("speedup", "acceptance_by_depth", "acceptance_lengths", "tree_sizes")
            for temperature in (0, 1)
        } | {"n_alpha", "calibration"}
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)

    def test_axes_are_named_and_methods_differ_without_colour(self, result):
        pytest.importorskip("matplotlib")
        from eagle_hf.evaluation import figures

        ax = figures.draw_speedups(result)
        hatches = [container.patches[0].get_hatch() for container in ax.containers if hasattr(container, "patches")]
        assert len(hatches) == len(set(hatches)) == 4
        for draw in (
            figures.draw_speedups, figures.draw_acceptance_by_depth, figures.draw_acceptance_lengths,
            figures.draw_n_alpha, figures.draw_calibration, figures.draw_tree_sweep,
        ):  # fmt: skip
            ax = draw(result)
            assert ax.get_ylabel()
            assert ax.get_title()
            lines = [line for line in ax.get_lines() if line.get_linestyle() != "None"]  # error bars end in markers
            assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == len(lines)
        assert figures.draw_calibration(result).get_xlabel().startswith("confidence")

    def test_heights_are_the_figures_of_the_result(self, result):
        pytest.importorskip("matplotlib")
        from eagle_hf.evaluation import figures

        bars = figures.draw_speedups(result).containers[1]
        rows = [row for row in result["rows"] if row["method"] == "eagle" and row["temperature"] == 0]
        drawn = [round(float(patch.get_height()), 3) for patch in bars.patches]
        assert drawn == [row["speedup"]["median"] for row in rows]


class TestCard:
    def test_measurements_are_rows_of_the_head(self, result, pair):
        measured = measurements(result, datasets={"one": "org/one"})
        assert [(task.task, task.temperature) for task in measured.results] == [
            (task, temperature) for temperature in (0.0, 1.0) for task in ("one", "two", "all tasks")
        ]
        assert measured.results[0].dataset == "org/one"
        assert measured.tokens_compared == sum(
            turn["methods"]["eagle"]["num_tokens"] for record in result["records"] for turn in record["turns"]
        )
        card = str(create_model_card(pair[1], "org/head", measurements=measured))
        assert f"| one | 0 | 1 | {measured.results[0].acceptance_length:.2f} |" in card
        assert f"{measured.tokens_compared:,} tokens were compared" in card

    def test_other_tokens_go_on_no_card(self, result):
        with pytest.raises(ValueError, match=r"goes on no card"):
            measurements(broken(result))

    def test_a_folder_without_a_card_gets_one(self, result, pair, tmp_path):
        pair[1].save_pretrained(tmp_path)
        card = ModelCard.load(write_card(result, tmp_path))
        assert "eagle-hf bench --seed 0" in card.text
        assert len(card.data.eval_results) == 12

    def test_a_card_gets_the_tables_in_its_results_once(self, result, pair, tmp_path):
        pair[1].save_pretrained(tmp_path)
        readme = CARDS / "EAGLE3-demo-llama-10m" / "README.md"
        shutil.copy(readme, tmp_path)
        write_card(result, tmp_path)
        once = (tmp_path / "README.md").read_text()
        write_card(result, tmp_path)
        assert (tmp_path / "README.md").read_text() == once
        before = ModelCard.load(readme)
        after = ModelCard.load(tmp_path / "README.md")
        begin = after.text.index("| one | 0 |")
        assert after.text.index("## Results") < begin < after.text.index("## Losslessness")
        written = r"<!-- written by eagle-hf bench -->.*?<!-- end of what eagle-hf bench wrote -->"
        for line in re.sub(written, "", before.text, flags=re.DOTALL).splitlines():
            assert line in after.text
        assert (after.data.license, after.data.base_model) == (before.data.license, before.data.base_model)
        assert {evaluation.metric_type for evaluation in after.data.eval_results} == {"acceptance_length", "speedup"}

    def test_a_head_that_was_trained_again_is_refused(self, result, pair, tmp_path):
        draft = copy.deepcopy(pair[1])
        draft.lm_head.weight.data *= 1.01
        draft.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="are not those that were measured"):
            write_card(result, tmp_path)

    def test_the_result_of_another_head_is_refused(self, result):
        with pytest.raises(ValueError, match="Measure the head of this folder"):
            write_card(result, CARDS / "EAGLE3-demo-llama-10m")

    @pytest.mark.skipif(not RECORDED.exists(), reason="no run of `make bench-tasks` is recorded")
    def test_the_card_of_the_demo_head_holds_the_recorded_run(self):
        assert tables(load_result(RECORDED)) in (CARDS / "EAGLE3-demo-llama-10m" / "README.md").read_text()
