"""Measure whether a head is worth using: speed against other methods, acceptance, calibration.

Every prompt is answered by plain `generate`, by the head, and by the baselines asked for, in turns in one process. A
speedup is stated only where the token ids are those of plain `generate`. The folder of `--output` gets results.json
(everything, prompt by prompt), report.md and figures. An interrupted run goes on when the same command is given again.

    eagle-hf bench --target T --draft D --tasks FILES            measure
    eagle-hf bench --compare before.json after.json              what became worse; status 1 if anything did
    eagle-hf bench --report results.json --write_card FOLDER     report, figures and card of a result, without measuring
    eagle-hf bench --target T --draft D --profile                where the time of a step goes
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from ..evaluation.settings import BASELINES
from .common import add_threads, set_threads
from .target_options import add_target_options, target_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add = parser.add_argument
    add("--target", help="target: repository id or folder")
    add("--draft", help="EAGLE head: repository id or folder")
    add(
        "--tasks",
        nargs="+",
        help="task sets: .jsonl files, folders of them, or ids of datasets (org/name, org/name:config); rows hold "
        "turns, messages or prompt",
    )
    add("--split", default="train", help="split of a dataset (default: train)")
    add("--prompt_field", default="prompt", help="field of single prompts (default: prompt)")
    add("--max_prompts", type=int, help="so many prompts of every task (default: all)")
    add("--temperatures", type=float, nargs="+", default=[0.0, 1.0], help="0 is greedy (default: 0 1)")
    add(
        "--baselines",
        nargs="+",
        choices=BASELINES,
        default=["plain"],
        help="other methods of transformers; plain is always measured",
    )
    add("--assistant_model", help="small model of the baseline assisted")
    add(
        "--trees",
        nargs="+",
        default=[],
        metavar="NODES/DEPTH/WIDTH",
        help="draft with these trees as well as with that of the head",
    )
    add("--compile", action="store_true", help="plain and head also with a static cache and compiled steps")
    add("--max_new_tokens", type=int, default=256, help="most tokens of an answer (default: 256)")
    add("--repeats", type=int, default=3, help="how often every method answers a prompt (default: 3)")
    add("--warm_up", type=int, default=1, help="generations of every method that do not count (default: 1)")
    add("--seed", type=int, default=0, help="seed of the first prompt of a task (default: 0)")
    add("--no_metrics", action="store_true", help="leave out n-alpha and calibration, which take longer")
    add_threads(parser)
    add("--output", type=Path, default=Path("runs/bench"), help="folder for the results (default: runs/bench)")
    add("--restart", action="store_true", help="throw away what an interrupted run has left in --output")
    add("--write_card", type=Path, metavar="FOLDER", help="put the tables into the card of this head")
    add("--report", type=Path, metavar="RESULT", help="report and figures of this result, without measuring")
    add("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="compare two results")
    add("--profile", action="store_true", help="split a step of the head into its parts")
    add_target_options(parser)


def run(args: argparse.Namespace) -> int:
    """
    Measures, compares, reports or profiles. The status is 1 where tokens differ that have to be equal, or where
    `--compare` finds a regression.
    """
    from ..evaluation import (
        BenchmarkSettings,
        compare,
        load_result,
        load_tasks,
        make_methods,
        run_benchmark,
        save_result,
    )
    from ..evaluation.methods import parse_tree
    from ..evaluation.profiling import profile
    from ..loading.targets import load_target
    from .pair import Pair

    if args.compare:
        comparison = compare(*(load_result(path) for path in args.compare))
        print(comparison)
        return int(comparison.has_regressions)
    if args.report:
        return _report(load_result(args.report), args)
    missing = [f"--{name}" for name in ("target", "draft") if getattr(args, name) is None]
    if not args.tasks and not args.profile:
        missing.append("--tasks")
    if missing:
        raise ValueError(f"{', '.join(missing)} must be given, or --compare or --report with results.")
    set_threads(args)
    if args.profile:
        pair = Pair.load(args.target, args.draft, **target_options(args))
        text, facts = profile(pair.target, pair.draft, pair.encode(PROFILE_PROMPT), args.max_new_tokens, args.repeats)
        print(text)
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "profile.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return 0
    settings = BenchmarkSettings(
        temperatures=tuple(args.temperatures),
        max_new_tokens=args.max_new_tokens,
        repeats=args.repeats,
        warm_up=args.warm_up,
        seed=args.seed,
        metrics=not args.no_metrics,
    )
    trees = [parse_tree(text) for text in args.trees]
    tasks = load_tasks(args.tasks, args.max_prompts, args.split, args.prompt_field)  # before models are loaded
    for place, reason in tasks.skipped:
        print(f"Left out: {place}: {reason}", file=sys.stderr)
    pair = Pair.load(args.target, args.draft, **target_options(args))
    assistant = None
    if args.assistant_model is not None:
        assistant = load_target(args.assistant_model, dtype=pair.target.dtype).to(pair.target.device)
    methods = make_methods(pair.draft, args.baselines, assistant, trees=trees, compiles=args.compile)
    finished = args.output / "finished_prompts.jsonl"
    try:
        result = run_benchmark(
            pair.target,
            pair.draft,
            pair.tokenizer,
            tasks,
            settings,
            methods,
            finished_path=finished,
            restart=args.restart,
            command=shlex.join(["eagle-hf", *args.argv]),
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished prompts are kept in {finished}: the same command goes on.", file=sys.stderr)
        return 130
    save_result(result, args.output / "results.json")
    finished.unlink(missing_ok=True)  # complete: the next run measures anew
    return _report(result, args)


PROFILE_PROMPT = "Explain in a few sentences how a bicycle stays upright, and why it falls when it stands still."


def _report(result: dict[str, Any], args: argparse.Namespace) -> int:
    """Writes and prints the report, draws the figures, and fills the card."""
    from transformers.utils import logging

    from ..evaluation import markdown_report, save_figures, write_card
    from ..evaluation.methods import EAGLE

    logging.disable_progress_bar()
    args.output.mkdir(parents=True, exist_ok=True)
    report = markdown_report(result)
    (args.output / "report.md").write_text(report, encoding="utf-8")
    print(report)
    try:
        paths = save_figures(result, args.output / "figures")
        print(f"{len(paths)} figures in {args.output / 'figures'}")
    except ModuleNotFoundError as error:
        print(f"No figures: {error}. They need pip install 'eagle-hf[viz]'", file=sys.stderr)
    if args.write_card is not None:
        print(f"Wrote {write_card(result, args.write_card)}")
    is_exact_dtype = result["dtype"] in ("float32", "float64")
    broken = [row for row in result["rows"] if row["method"].startswith(EAGLE) and "speedup" not in row]
    for row in broken:
        print(
            f"{row['task']}, temperature {row['temperature']:g}, {row['method']}: {row['texts_that_differ']} texts "
            "differ from plain generate, so that no speedup is stated."
            + ("" if is_exact_dtype else " In half precision the texts may part where scores are close."),
            file=sys.stderr,
        )
    return int(bool(broken) and is_exact_dtype)
