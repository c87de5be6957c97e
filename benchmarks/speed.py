"""Measure step cost and speedup: `make bench`.

(a) What a step costs, on the pair of the golden vectors, in units of one token of plain `generate`: the time of a whole
    generation divided by the target's forwards, over the time of plain `generate` divided by its tokens. With
    `--compile` also with a static cache and compiled steps, against the same unit (plain `generate` compiles nothing
    on a CPU), once its first call, which compiles, is over.
(b) Speedup on the demo pair, greedy, on prompts that were not trained on; the tokens are checked to be equal.
(c) The same, sampled at temperature 1 with equal seeds. Both also with a tree of fixed size and nothing looked up.

Everything runs in one process; plain and drafted generations alternate, since clocks drift, and medians over the
repeats are reported. (b) and (c) are measured by `eagle_hf.evaluation`. The result is printed, and written with
`--json`, with versions and hardware.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from eagle_hf import DraftOptions, EagleDraftModel
from eagle_hf.evaluation import BenchmarkSettings, load_tasks, run_benchmark
from eagle_hf.evaluation.acceptance import summarize_lengths
from eagle_hf.evaluation.averages import ALL, spread
from eagle_hf.evaluation.environment import cpu_name, hardware, versions  # noqa: F401 (other scripts take it from here)
from eagle_hf.evaluation.methods import EAGLE, PLAIN, compile_config, make_methods
from eagle_hf.evaluation.timing import timed


ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "fixtures" / "golden"
FIXED_TREE = (15, 6, 4)  # nodes, depth and width, on the demo pair
TREES = {"59 nodes, depth 8, width 10": (59, 8, 10), "15 nodes, depth 5, width 4": (15, 5, 4)}


def golden_pair() -> tuple[Any, EagleDraftModel, torch.Tensor]:
    """Target and head of the golden vectors, and a prompt of shape `(1, length)`."""
    target = AutoModelForCausalLM.from_pretrained(GOLDEN / "targets" / "A").eval()
    draft = EagleDraftModel.from_pretrained(GOLDEN / "drafts" / "A_eagle3")
    case = json.loads((GOLDEN / "cases" / "A_eagle3_t60_d7_k10_p0.json").read_text())
    return target, draft, torch.tensor(case["prompt"]).view(1, -1)


def demo_pair() -> tuple[Any, EagleDraftModel, PreTrainedTokenizerBase]:
    """Target, head and tokenizer of the demo."""
    folder = ROOT / "hub_cards"
    target = AutoModelForCausalLM.from_pretrained(folder / "demo-llama-10m").eval()
    draft = EagleDraftModel.from_pretrained(folder / "EAGLE3-demo-llama-10m")
    return target, draft, AutoTokenizer.from_pretrained(folder / "demo-llama-10m")


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """Token ids of a user's turn, of shape `(1, length)`."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids


def step_cost(repeats: int, new_tokens: int = 192, compiles: bool = False) -> dict[str, Any]:
    """(a)"""
    kinds: dict[str, dict[str, Any]] = {"step_in_plain_tokens": {}}
    if compiles:
        compiled = {"cache_implementation": "static", "compile_config": compile_config("cpu")}
        kinds["compiled_step_in_plain_tokens"] = compiled
    target, draft, ids = golden_pair()
    options = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None}
    ratios: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in TREES} for kind in kinds}
    plain_times = []
    for repeat in range(repeats + 1):  # the first one warms up
        seconds, plain = timed(target, ids, **options)
        unit = seconds / new_tokens
        for kind, extra in kinds.items():
            for name, (nodes, depth, width) in TREES.items():
                tree = DraftOptions(num_assistant_tokens=nodes, draft_depth=depth, draft_width=width)
                draft.generation_config = tree.to_generation_config()
                seconds, output = timed(target, ids, draft, **options, **extra)
                if not torch.equal(output.sequences, plain.sequences):
                    raise SystemExit("tokens differ from plain generate")
                if repeat:
                    ratios[kind][name].append(seconds / output.target_forwards / unit)
        if repeat:
            plain_times.append(1000 * unit)
    steps = {kind: {name: spread(values) for name, values in trees.items()} for kind, trees in ratios.items()}
    return {"plain_ms_per_token": spread(plain_times), **steps}


def acceptance(lengths: list[int]) -> dict[str, Any]:
    """Tokens per verification, and in how many verifications at least `d` drafted tokens were accepted."""
    summary = summarize_lengths([lengths])
    return {"mean_acceptance_length": summary["tau"], "accepted_at_depth": summary["accepted_at_depth"]}


def speedups(prompts: Path, repeats: int, new_tokens: int) -> dict[str, Any]:
    """(b) and (c)"""
    target, draft, tokenizer = demo_pair()
    settings = BenchmarkSettings(max_new_tokens=new_tokens, repeats=repeats, metrics=False)
    methods = make_methods(draft, trees=[FIXED_TREE])
    result = run_benchmark(target, draft, tokenizer, load_tasks(prompts), settings, methods)
    rows = {(row["task"], row["temperature"], row["method"]): row for row in result["rows"]}
    tasks = list(dict.fromkeys(row["task"] for row in result["rows"]))
    everything = ALL if ALL in tasks else tasks[0]
    if any(row["texts_that_differ"] for row in rows.values()):
        raise SystemExit("tokens differ from plain generate: no speedup is reported")

    def figures(task: str, temperature: float, method: str = EAGLE) -> dict[str, Any]:
        row = rows[task, temperature, method]
        return {
            "speedup": row["speedup"],
            "mean_acceptance_length": row["tau"],
            "accepted_at_depth": row["accepted_at_depth"],
        }

    return {
        name: {
            "prompts": rows[everything, temperature, PLAIN]["prompts"],
            "new_tokens": rows[everything, temperature, PLAIN]["new_tokens"],
            "tokens_equal": True,
            "plain_tokens_per_second": rows[everything, temperature, PLAIN]["tokens_per_second"],
            "eagle_tokens_per_second": rows[everything, temperature, EAGLE]["tokens_per_second"],
            **figures(everything, temperature),
            "domains": {task: figures(task, temperature) for task in tasks if task != ALL},
            "other_methods": {
                method.name: figures(everything, temperature, method.name)
                for method in methods
                if method.name not in (PLAIN, EAGLE)
            },
        }
        for name, temperature in (("demo_greedy", 0.0), ("demo_sampled", 1.0))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=160, help="most tokens per prompt of the demo pair")
    parser.add_argument("--prompts", type=Path, default=ROOT / "benchmarks" / "held_out_prompts.jsonl")
    parser.add_argument("--compile", action="store_true", help="also measure what compiled steps cost")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()

    result = {
        "command": " ".join(["python", *sys.argv]),
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
        "dtype": "float32",
        "step_cost": step_cost(args.repeats, compiles=args.compile),
        **speedups(args.prompts, args.repeats, args.new_tokens),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
