"""From a result to a model card: the table of tasks and temperatures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard

from ..head.modeling_eagle import EagleDraftModel
from ..hub.card import create_model_card, eval_results
from ..hub.card_file import put_tables
from ..hub.measurements import Measurements, TaskResult
from ..hub.public_command import without_paths
from .averages import ALL
from .environment import weights_digest
from .methods import EAGLE, PLAIN
from .report import conditions, depth_table, number


def measurements(result: Mapping[str, Any], datasets: Mapping[str, str] | None = None) -> Measurements:
    """
    Returns what [`create_model_card`] shows of a result: a row per task and temperature, and one over all tasks.

    Args:
        result (`dict`): From [`run_benchmark`] or [`load_result`].
        datasets (`Mapping[str, str]`, *optional*): Data sets on the Hub that the tasks are, for the metadata.

    Raises:
        `ValueError`: if tokens differ from those of plain `generate` for another reason than ties: a card promises that
            they do not.
    """
    rows = {(row["task"], row["temperature"], row["method"]): row for row in result["rows"]}
    broken = [f"{task}, temperature {t:g}" for (task, t, method), row in rows.items()
              if method == EAGLE and "speedup" not in row]  # fmt: skip
    if broken:
        raise ValueError(
            f"Token ids differ from those of plain `generate` ({'; '.join(broken)}): such a result goes on no card."
        )
    tasks = []
    for (task, temperature, method), row in rows.items():
        if method != EAGLE or row["tau"] is None:
            continue
        low, high = row["speedup"]["first_quartile"], row["speedup"]["third_quartile"]
        tasks.append(
            TaskResult(
                "all tasks" if task == ALL else task,
                row["tau"],
                row["prompts"],
                temperature,
                row["accepted_at_depth"],
                plain_tokens_per_second=rows[task, temperature, PLAIN]["tokens_per_second"]["median"],
                eagle_tokens_per_second=row["tokens_per_second"]["median"],
                speedup=row["speedup"]["median"],
                speedup_quartiles=None if low is None else (low, high),
                dataset=(datasets or {}).get(task),
            )
        )
    settings = result["settings"]
    ties = sum(row["of_these_at_ties"] for row in rows.values() if row["method"] == EAGLE and row["task"] != ALL)
    skipped = len(result["skipped"])
    compared = sum(
        row["new_tokens"] for (task, _, method), row in rows.items() if method == EAGLE and _is_counted(task, rows)
    )
    return Measurements(
        results=tasks,
        command=without_paths(result["command"]),
        hardware=result["hardware"],
        dtype=result["dtype"],
        versions=result["versions"],
        tokens_compared=None if ties else compared,
        notes=f"Up to {settings['max_new_tokens']} new tokens; medians of {settings['repeats']} repeats, quartiles in "
        "brackets; plain `generate` and the head in turns on each prompt."
        + (f" {ties} texts differ from plain `generate` at ties of the target's scores." if ties else "")
        + (f" {skipped} prompts or turns were left out." if skipped else ""),
    )


def _is_counted(task: str, rows: Mapping[tuple[str, float, str], Any]) -> bool:
    """Checks that it is not the row over all tasks, which counts every token once more."""
    return task != ALL or all(other == ALL for other, _, _ in rows)


def write_card(result: Mapping[str, Any], folder: str | Path) -> Path:
    """
    Puts a result into the card of a head. Where `folder` has no `README.md`, a card is made; else the tables are put at
    the end of its section "Results", in place of those that an earlier call wrote, and the metadata list them.

    Args:
        result (`dict`): From [`run_benchmark`] or [`load_result`].
        folder (`str` or `Path`): Folder of the head.

    Returns:
        `Path`: The card.

    Raises:
        `ValueError`: as [`measurements`], and if the folder holds another head than the one that was measured.
    """
    folder = Path(folder)
    path = folder / "README.md"
    draft = EagleDraftModel.from_pretrained(folder)
    draft.to(getattr(torch, result["draft"]["dtype"]))
    if weights_digest(draft) != result["draft"]["weights"]:
        raise ValueError(
            f"The weights in {folder} are not those that were measured ({result['draft']['name']}, "
            f"{result['draft']['parameters']:,} parameters). Measure the head of this folder."
        )
    measured = measurements(result)
    if not path.exists():
        create_model_card(EagleDraftModel.from_pretrained(folder), folder.name, measurements=measured).save(path)
        return path
    card = ModelCard.load(path, ignore_metadata_errors=True)
    card.text = put_tables(card.text, tables(result))
    card.data.model_name = card.data.model_name or folder.name
    card.data.metrics = ["acceptance_length"]
    card.data.eval_results = [evaluation for task in measured.results for evaluation in eval_results(task)]
    card.save(path)
    return path


def tables(result: Mapping[str, Any]) -> str:
    """Returns both tables of a card, and how they were measured, as Markdown."""
    settings = result["settings"]
    lines = [
        f"{result['hardware']}; {result['dtype']}; {conditions(dict(result))}. Medians of "
        f"{settings['repeats']} repeats, quartiles in brackets; plain `generate` and the head in turns on each prompt. "
        "Tokens per verification: over all verifications, and the mean of the prompts' own.",
        "",
        "| task | temperature | prompts | speedup | plain, tokens/s | EAGLE, tokens/s "
        "| tokens per verification | token ids |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plain = {(row["task"], row["temperature"]): row for row in result["rows"] if row["method"] == PLAIN}
    for row in result["rows"]:
        if row["method"] != EAGLE or row["tau"] is None:
            continue
        ties = row["of_these_at_ties"]
        cells = [
            row["task"],
            f"{row['temperature']:g}",
            str(row["prompts"]),
            number(row["speedup"]),
            number(plain[row["task"], row["temperature"]]["tokens_per_second"], 0),
            number(row["tokens_per_second"], 0),
            f"{row['tau']:.2f}, {row['tau_mean_over_prompts']:.2f}",
            f"all of {row['new_tokens']:,} equal" if not ties else f"{ties} texts differ, at ties",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Share of verifications that accept at least 1, 2, ... drafted tokens:",
        "",
        *depth_table(dict(result)),
    ]
    return "\n".join([*lines, "", "Measured by:", "", "```bash", without_paths(result["command"]), "```", ""])
