"""Every Python block of the documentation runs; blocks of one page share their names, as a reader's would."""

import json
import re
import shlex
import statistics
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from eagle_hf import EagleDraftModel
from eagle_hf.cli.main import COMMANDS, main
from eagle_hf.versions import CACHE


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from figures import CARD, PERFORMANCE, README, RETRIEVAL, TARGETS, with_figures  # noqa: E402


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "hub_cards").glob("*/README.md"))]

# What readers load from the Hub is the demo pair here.
OFFLINE = {
    "meta-llama/Llama-3.1-8B-Instruct": "hub_cards/demo-llama-10m",
    "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B": "hub_cards/EAGLE3-demo-llama-10m",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for folder in ("hub_cards", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    for cls in (AutoModelForCausalLM, AutoTokenizer, EagleDraftModel):
        real = cls.from_pretrained

        def from_pretrained(name, *args, real=real, **kwargs):
            return real(OFFLINE.get(str(name), name), *args, **kwargs)

        monkeypatch.setattr(cls, "from_pretrained", from_pretrained)
    names: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks:
        if CACHE != "cache":  # as docs/targets.md tells readers with an older version
            block = re.sub(r"\bcache=", f"{CACHE}=", block).replace(".cache", f".{CACHE}")
        exec(compile(block, str(page), "exec"), names)  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_options_that_are_shown(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["eagle-hf"]:
            monkeypatch.setattr(COMMANDS[words[1]], "run", lambda args: 0)
            assert main(words[1:]) == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_of_commands_are_spelt_with_underscores(page):
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^.*eagle-hf .*$", text, flags=re.MULTILINE):
        assert not re.findall(r"--[a-z]+(?:-[a-z]+)+", line), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_index_and_the_navigation_name_all_pages():
    index, navigation = ((ROOT / name).read_text() for name in ("docs/index.md", "mkdocs.yml"))
    for page in (ROOT / "docs").glob("*.md"):
        assert f"({page.name})" in index or page.name == "index.md", f"docs/index.md has no link to {page.name}"
        assert f"- {page.name}" in navigation, f"mkdocs.yml does not list {page.name}"


@pytest.mark.parametrize(
    "page", [README, PERFORMANCE, RETRIEVAL, CARD, TARGETS], ids=lambda page: str(page.relative_to(ROOT))
)
def test_tables_of_figures_are_those_of_the_recorded_runs(page):
    assert page.read_text(encoding="utf-8") == with_figures(page), "Run `make figures`."


METHODS = ("plain", "eagle compiled")


def test_what_is_said_of_compiled_steps_and_the_first_call_is_as_recorded():
    text = (ROOT / "docs" / "performance.md").read_text()
    results = {
        name: json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        for name in ("demo_tasks_compiled_cpu_2_threads", "first_call")
    }
    rows = [row for row in results["demo_tasks_compiled_cpu_2_threads"]["rows"] if row["task"] == "all"]
    assert {row["method"] for row in rows} == {"plain", "plain compiled", "eagle", "eagle compiled"}
    for row in rows:
        assert row["texts_that_differ"] == 0
    by_name = {(row["method"], row["temperature"]): row.get("speedup", {}).get("median") for row in rows}
    head, plain = ([by_name[f"{method} compiled", t] for t in (0, 1)] for method in ("eagle", "plain"))
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"answered {head[0]:.2f} times as fast greedily and {head[1]:.2f} times sampled" in readme
    assert f"compiled is {plain[0]:.2f} and {plain[1]:.2f} times as fast" in readme
    slowest = min(
        statistics.median(a / b for a, b in zip(*(turn["methods"][m]["seconds"] for m in METHODS), strict=True))
        for record in results["demo_tasks_compiled_cpu_2_threads"]["records"]
        for turn in record["turns"]
        if turn["methods"]["plain"]["num_tokens"] >= 50
    )
    assert f"at least {slowest:.2f} times as fast at either temperature" in " ".join(text.split())
    first_call, text = results["first_call"], " ".join(text.split())
    median, (low, _, high) = first_call["median"], first_call["quartiles"]["first"]
    pairs = sum(len(run["first"]) for run in first_call["runs"])
    assert f"medians of {pairs} pairs" in text
    claim = f"a first call takes {median['first']:.1f} plain tokens' time longer (quartiles {low:.1f} and {high:.1f})"
    assert claim in text.replace("A first", "a first")
    assert f"of these the probe takes {median['probe']:.1f}" in text


def test_what_is_said_of_single_answers_is_as_recorded():
    text = " ".join((ROOT / "docs" / "performance.md").read_text().split())
    result, sampled = (
        json.loads((ROOT / "benchmarks" / "results" / f"demo_tasks{name}_cpu_2_threads.json").read_text())
        for name in ("", "_sampled")
    )
    claims = (
        (result, 0, 50, "{below} of {number} were below 0.95 greedily, the slowest at {slowest:.2f}"),
        (result, 1, 50, "and {below} of {number} sampled, the slowest at {slowest:.2f}"),
        (sampled, 1, 0, "of all {number} answers, the shortest of six tokens included, {below} were below 0.95, "
                        "the slowest at {slowest:.2f}."),
    )  # fmt: skip
    for run, temperature, least, claim in claims:
        speedups = [
            statistics.median(
                a / b for a, b in zip(*(turn["methods"][m]["seconds"] for m in ("plain", "eagle")), strict=True)
            )
            for record in run["records"]
            for turn in record["turns"]
            if record["temperature"] == temperature and turn["methods"]["plain"]["num_tokens"] >= least
        ]
        below = sum(round(speedup, 2) < 0.95 for speedup in speedups)
        assert claim.format(below=below, number=len(speedups), slowest=min(speedups)) in text
    plain = [turn["methods"]["plain"]["seconds"] for record in result["records"] for turn in record["turns"]]
    assert f"took down to {min(min(times) / max(times) for times in plain):.2f} times as long" in text


def test_the_training_tables_are_those_of_the_recorded_runs():
    text = (ROOT / "docs" / "training.md").read_text()
    results = json.loads((ROOT / "benchmarks" / "results" / "training_variants.json").read_text())
    for name, result in results.items():
        cells = [f"{task['mean_acceptance_length']:.2f}" for task in result["tasks"].values()]
        assert f"| {name} | {' | '.join(cells)} | {result['all']['mean_acceptance_length']:.2f} |" in text, name
    for row in json.loads((ROOT / "benchmarks" / "results" / "training_cost.json").read_text())["rows"]:
        assert f"| {row['length']:,} | {row['tokens_per_second']:,.0f} | {row['peak_memory_mib']:,.0f} |" in text
