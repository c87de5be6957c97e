"""
Write the tables of measured figures into the pages that show them, from the runs recorded in benchmarks/results:
`make figures`. A table is known by its first line; everything else on a page stays as it is. A test compares the pages
with the records.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README, PERFORMANCE, RETRIEVAL = ROOT / "README.md", ROOT / "docs" / "performance.md", ROOT / "docs" / "retrieval.md"
TARGETS = ROOT / "docs" / "targets.md"
CARD = ROOT / "hub_cards" / "EAGLE3-demo-llama-10m" / "README.md"


def record(name: str) -> Any:
    """A recorded run."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def spread(figure: dict[str, float], form: str = ".2f") -> str:
    """Median and quartiles."""
    median, first, third = (format(figure[name], form) for name in ("median", "first_quartile", "third_quartile"))
    return f"{median} [{first}, {third}]"


def hundredths(figure: float) -> str:
    """With two decimals."""
    return f"{figure:.2f}"


def speedups() -> Iterator[list[str]]:
    """Of the demo pair, greedily and sampled."""
    for run, name in (("demo_greedy", "greedy"), ("demo_sampled", "temperature 1, the same seeds")):
        result = record("cpu_2_threads")[run]
        rates = (spread(result[f"{method}_tokens_per_second"], ".0f") for method in ("plain", "eagle"))
        equal = f"all of {result['new_tokens']:,}" if result["tokens_equal"] else "NO"
        yield [name, spread(result["speedup"]), *rates, hundredths(result["mean_acceptance_length"]), equal]


def domains() -> Iterator[list[str]]:
    """The same by kind of prompt."""
    for temperature, run in enumerate(("demo_greedy", "demo_sampled")):
        result = record("cpu_2_threads")[run]
        for name, row in [*result["domains"].items(), ("all", result)]:
            shares = (row["accepted_at_depth"] + [0.0] * 5)[:5]
            figures = (row["speedup"]["median"], row["mean_acceptance_length"], *shares)
            yield [name, str(temperature), *map(hundredths, figures)]


def kinds_of_drafts() -> Iterator[list[str]]:
    """The published way to draft, and a tree of fixed size."""
    runs = [record("cpu_2_threads")[run] for run in ("demo_greedy", "demo_sampled")]
    fixed = "eagle 15/6/4"
    for name, results in (
        ("as the head is published: trees sized while generating, up to 16 nodes looked up", runs),
        (
            f"a tree of 15 nodes, depth 6 and width 4 in every step, nothing looked up (`{fixed}`)",
            [run["other_methods"][fixed] for run in runs],
        ),
    ):
        yield [name] + [
            cell
            for result in results
            for cell in (spread(result["speedup"]), hundredths(result["mean_acceptance_length"]))
        ]


def steps() -> Iterator[list[str]]:
    """Cost of a step on the golden pair."""
    cost = record("cpu_2_threads")["step_cost"]
    for tree, figure in cost["step_in_plain_tokens"].items():
        yield [tree, spread(figure), spread(cost["compiled_step_in_plain_tokens"][tree])]


def _methods(name: str) -> Iterator[list[str]]:
    for row in record(name)["rows"]:
        if row["task"] == "all" and row["method"] != "plain":
            tokens = hundredths(row.get("tau", row["tokens_per_target_forward"]))
            speedup = spread(row["speedup"]) if "speedup" in row else "none: other tokens"
            yield [row["method"], f"{row['temperature']:.0f}", speedup, tokens]


def baselines() -> Iterator[list[str]]:
    """The head beside what `transformers` has, on six task sets."""
    return _methods("demo_tasks_cpu_2_threads")


def compiled() -> Iterator[list[str]]:
    """The head and plain `generate` with compiled steps, on six task sets."""
    for *row, tokens in _methods("demo_tasks_compiled_cpu_2_threads"):
        yield [*row, "" if row[0].startswith("plain") else tokens]


def batches() -> Iterator[list[str]]:
    """Tokens per second by batch size."""
    for row in record("batches_cpu_2_threads")["rows"]:
        rates = (f"{row[f'{method}_tokens_per_second']:.0f}" for method in ("plain", "eagle"))
        figures = (row["speedup"]["median"], row["mean_acceptance_length"])
        yield [str(row["batch_size"]), *rates, *map(hundredths, figures)]


def memory() -> Iterator[list[str]]:
    """Peak memory above plain generation."""
    for row in record("memory")["rows"]:
        sizes = [f"{row[f'{name}_mib']:,.0f}" for name in ("target", "head", "plain", "eagle")]
        yield [f"{row['length']:,}", *sizes, f"{row['above_plain']:.1%}"]


def contexts() -> Iterator[list[str]]:
    """Cost of a step by length of the context."""
    for row in record("context_growth_cpu_2_threads")["rows"]:
        times = (f"{row[f'{name}_ms']:.2f}" for name in ("plain", "verify", "step"))
        growth = (row[f"{name}_growth"] for name in ("plain", "verify", "step", "step_over_verify"))
        yield [f"{row['length']:,}", *times, *map(hundredths, growth)]


def undrafted() -> Iterator[list[str]]:
    """Speed of calls in which nothing is drafted."""
    result = record("without_drafts")
    for way in ("greedy", "temperature 1"):
        figures = (result[way][name] for name in ("plain again", "hooked", "no drafts"))
        yield [way, *("{speed:.3f} [{quartiles[0]:.3f}, {quartiles[1]:.3f}]".format(**figure) for figure in figures)]


def looked_up() -> Iterator[list[str]]:
    """What looking up adds to the head, by kind of text."""
    for run, suffix in (
        ("copying", ""),
        ("greedy", ", held-out prompts"),
        ("sampled", " at temperature 1, held-out prompts"),
    ):
        result = record(f"retrieval_{run}_cpu_2_threads")
        for kind in ("given", "own"):
            for domain, ways in result.get(kind, {}).items():
                figures = [
                    ways[way][name]
                    for name in ("mean_acceptance_length", "speedup")
                    for way in ("head", "head and retrieval")
                ]
                yield [kind + suffix, domain, *map(hundredths, figures)]


def quantisations() -> Iterator[list[str]]:
    """Texts that differ by the target's quantisation, and the largest gap in percent of the largest logit."""
    for row in record("quantized_targets")["rows"]:
        cells = [row["quantisation"], row["version"] or ""]
        if "not_run" in row:
            yield [*cells, f"not run: {row['not_run']}", "", ""]
            continue
        unit = {"float32": 2**-23, "bfloat16": 2**-7, "float16": 2**-10}[row["dtype"]]  # of resolution, as recorded
        for gaps in row["gaps"].values():
            largest = f" ({max(gaps) * unit:.2%})" if gaps else ""
            cells.append(f"{len(gaps)} of {row['texts']}{largest}")
        yield cells


# The first line of every table, what writes its rows, and the pages that it stands on.
TABLES: tuple[tuple[str, Callable[[], Iterator[list[str]]], tuple[Path, ...]], ...] = (
    (
        "| demo pair, 2 threads | speedup | plain, tokens/s | EAGLE, tokens/s "
        "| tokens per verification | tokens equal |",
        speedups,
        (README, PERFORMANCE, CARD),
    ),
    (
        "| prompts | temperature | speedup | tokens per verification | 1 | 2 | 3 | 4 | 5 |",
        domains,
        (PERFORMANCE, CARD),
    ),
    (
        "| drafts | greedy | tokens per verification | temperature 1 | tokens per verification |",
        kinds_of_drafts,
        (PERFORMANCE,),
    ),
    ("| draft tree | step, in plain tokens | compiled (`--compile`), in the same unit |", steps, (PERFORMANCE,)),
    (
        "| method, six task sets | temperature | speedup over plain `generate` | tokens per forward of the target |",
        baselines,
        (PERFORMANCE,),
    ),
    (
        "| method | temperature | speedup over plain `generate` as it is | tokens per verification |",
        compiled,
        (PERFORMANCE,),
    ),
    (
        "| batch size | plain, tokens/s | EAGLE, tokens/s | speedup | tokens per verification |",
        batches,
        (PERFORMANCE,),
    ),
    (
        "| prompt | target, MiB | head, MiB | plain besides, MiB | with the head, MiB | above plain |",
        memory,
        (PERFORMANCE,),
    ),
    (
        "| context | plain token, ms | verification, ms | step, ms | growth of plain | of verification | of the step "
        "| step / verification |",
        contexts,
        (PERFORMANCE,),
    ),
    (
        "| text | plain `generate` again | on a target that returned hidden states before | with the head, no drafts |",
        undrafted,
        (PERFORMANCE,),
    ),
    (
        "| text | prompts | tokens per verification: head | and retrieval | speedup: head | and retrieval |",
        looked_up,
        (RETRIEVAL,),
    ),
    (
        "| quantisation | package | with the draft | plain, two copies in a batch | plain, beside another prompt |",
        quantisations,
        (TARGETS,),
    ),
)


def with_figures(page: Path) -> str:
    """
    The text of a page with the recorded figures in its tables.

    Raises:
        `ValueError`: if a table that belongs on this page is not there.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    for first_line, rows, pages in TABLES:
        if page in pages:
            if first_line not in lines:
                raise ValueError(f"{page.name} has no table that begins with {first_line!r}.")
            start = lines.index(first_line) + 2
            end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
            lines[start:end] = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path in (README, PERFORMANCE, RETRIEVAL, CARD, TARGETS):
        path.write_text(with_figures(path), encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
