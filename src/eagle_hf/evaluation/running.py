"""A whole benchmark: every prompt at every temperature, what is finished kept, and the result."""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..generation.converted_heads import align_draft
from ..generation.pairing import check_pair
from ..head.modeling_eagle import EagleDraftModel
from . import environment
from .averages import ALL, head_metrics, ratios, summarize
from .finished_prompts import FinishedPrompts
from .measuring import CannotMeasure, Measuring
from .methods import EAGLE, Method, make_methods
from .results import FORMAT
from .settings import BenchmarkSettings
from .tasks import Prompt, Tasks


logger = logging.get_logger(__name__)


def run_benchmark(
    target: PreTrainedModel,
    draft: EagleDraftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    settings: BenchmarkSettings | None = None,
    methods: Sequence[Method] | None = None,
    finished_path: str | Path | None = None,
    restart: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """
    Measures a head on task sets.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        draft ([`EagleDraftModel`]): The head.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's.
        tasks ([`Tasks`]): From [`load_tasks`].
        settings ([`BenchmarkSettings`], *optional*): How to measure.
        methods (`Sequence[Method]`, *optional*): From [`make_methods`]. Plain `generate` and the head by default.
        finished_path (`str` or `Path`, *optional*):
            File that keeps finished prompts until the run is complete. An interrupted run goes on with them.
        restart (`bool`, *optional*, defaults to `False`): Throw away what an interrupted run has left there.
        command (`str`, *optional*): What to type to measure again. Defaults to the command line.

    Returns:
        `dict`: The result: see `docs/benchmarking.md`. [`save_result`] writes it, [`load_result`] reads it back.

    Raises:
        `ValueError`: if the pair does not fit, no prompt can be measured, or `finished_path` holds prompts of a run
            with other settings.
    """
    settings = settings or BenchmarkSettings()
    check_pair(target, draft)
    draft = align_draft(target, draft)  # once, and not in every call
    methods = list(methods if methods is not None else make_methods(draft))
    measuring = Measuring(target, draft, tokenizer, methods, settings)
    jobs = [(prompt, t) for prompts in tasks.prompts.values() for prompt in prompts for t in settings.temperatures]
    fingerprint = _fingerprint(measuring)
    skipped = list(tasks.skipped)
    records: list[dict[str, Any]] = []
    finished = FinishedPrompts(Path(finished_path), fingerprint, restart) if finished_path is not None else None
    started = time.time()
    left_out = measuring.warm_up(_first_that_fits(measuring, tasks))
    for name, reason in left_out.items():
        logger.warning(f"The baseline {name} is not measured: {reason}")
    with finished or nullcontext():
        progress = logging.tqdm(jobs, desc="bench", unit="prompt")
        for prompt, temperature in progress:
            record = finished.get(prompt.task, prompt.digest, temperature) if finished is not None else None
            if record is None:
                try:
                    record = measuring.measure(prompt, temperature)
                except CannotMeasure as error:
                    if (entry := (prompt.place, str(error))) not in skipped:
                        skipped.append(entry)
                    continue
                except Exception as error:
                    error.add_note(f"This happened at {prompt.place}, temperature {temperature:g}.")
                    raise
                if finished is not None:
                    finished.add(record)
            if "skipped" in record:
                skipped.append((f"{prompt.place}, temperature {temperature:g}", record["skipped"]))
            records.append(record)
            progress.set_postfix(_running_figures(records))
    result = {
        "format": FORMAT,
        "command": command or shlex.join(sys.argv),
        "date": time.strftime("%Y-%m-%d", time.gmtime(started)),
        "versions": environment.versions(),
        "hardware": environment.hardware(target.device),
        "load_average_at_end": environment.load_average(),
        "threads": torch.get_num_threads(),
        "dtype": str(target.dtype).removeprefix("torch."),
        "resumed_prompts": finished.num_resumed if finished is not None else 0,
        **fingerprint,
        "skipped": [{"place": place, "reason": reason} for place, reason in skipped],
        "baselines_left_out": left_out,
        **summary(records, [method.name for method in measuring.methods], settings),
        "records": records,
    }
    return json.loads(json.dumps(result))  # what is returned is what a file gives back


def summary(records: Sequence[dict[str, Any]], methods: Sequence[str], settings: BenchmarkSettings) -> dict[str, Any]:
    """Returns the rows by task, temperature and method, and what was measured of the head over all tasks."""
    rows, heads = [], []
    for temperature in settings.temperatures:
        measured = [record for record in records if record["temperature"] == temperature]
        names = list(dict.fromkeys(record["task"] for record in measured))
        for task in [*names, ALL] if len(names) > 1 else names:
            rows += [summarize(measured, task, temperature, method) for method in methods]
        if settings.metrics and measured:
            heads.append(head_metrics(measured, temperature))
    return {"rows": rows, "head": heads}


def _fingerprint(measuring: Measuring) -> dict[str, Any]:
    """Returns everything that a figure of a prompt depends on."""
    return {
        "settings": asdict(measuring.settings),
        "target": environment.describe_model(measuring.target),
        "draft": environment.describe_model(measuring.draft),
        "methods": {
            method.name: {"tree": method.tree, **method.facts} if method.tree else method.facts
            for method in measuring.methods
        },
        "attention": str(measuring.target.config._attn_implementation),
        "measured_on": {
            "hardware": environment.hardware(measuring.target.device),
            "versions": environment.versions(),
        },
    }


def _first_that_fits(measuring: Measuring, tasks: Tasks) -> Prompt:
    reasons = []
    for prompts in tasks.prompts.values():
        for prompt in prompts:
            try:
                measuring.encode(prompt.turns[0])
            except CannotMeasure as error:
                reasons.append(f"{prompt.place}: {error}")
            else:
                return prompt
    raise ValueError("No prompt can be measured.\n" + "\n".join(reasons[:5]))


def _running_figures(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns, at the temperature of the last prompt so far, the ratio to plain `generate`, and tau."""
    temperature = records[-1]["temperature"]
    chosen = [record for record in records if record["temperature"] == temperature]
    lengths = [n for record in chosen for turn in record["turns"] for n in turn["methods"][EAGLE]["acceptance_lengths"]]
    values = sorted(ratios(chosen, EAGLE))
    figures = {"temperature": f"{temperature:g}", "x plain": f"{values[len(values) // 2]:.2f}"}
    return figures | ({"tau": f"{sum(lengths) / len(lengths):.2f}"} if lengths else {})
