"""Measure step cost and speedup: `make bench`.

(a) What a step costs, on the pair of the golden vectors, in units of one token of plain `generate`: the time of a whole
    generation divided by the target's forwards, over the time of plain `generate` divided by its tokens.
(b) Speedup on the demo pair, greedy, on prompts that were not trained on; the tokens are checked to be equal.
(c) The same, sampled at temperature 1 with equal seeds.

Everything runs in one process; plain and drafted generations alternate, and medians of the ratios of neighbouring runs
are reported, since clocks drift. The result is printed and, with `--json`, written with versions and hardware.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

import eagle_hf
from eagle_hf import DraftOptions, EagleDraftModel


ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "fixtures" / "golden"
TREES = {"59 nodes, depth 8, width 10": (59, 8, 10), "15 nodes, depth 5, width 4": (15, 5, 4)}


def timed(target: Any, ids: torch.Tensor, draft: Any = None, seed: int = 0, **options: Any) -> tuple[float, Any]:
    torch.manual_seed(seed)
    start = time.perf_counter()
    output = target.generate(
        ids, attention_mask=torch.ones_like(ids), assistant_model=draft, return_dict_in_generate=True, **options
    )
    return time.perf_counter() - start, output


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 3), "first_quartile": round(low, 3), "third_quartile": round(high, 3)}


def golden_pair() -> tuple[Any, EagleDraftModel, torch.Tensor]:
    """Target and head of the golden vectors, and a prompt of shape `(1, length)`."""
    target = AutoModelForCausalLM.from_pretrained(GOLDEN / "targets" / "A").eval()
    draft = EagleDraftModel.from_pretrained(GOLDEN / "drafts" / "A_eagle3")
    case = json.loads((GOLDEN / "cases" / "A_eagle3_t60_d7_k10_p0.json").read_text())
    return target, draft, torch.tensor(case["prompt"]).view(1, -1)


def demo_pair() -> tuple[Any, EagleDraftModel, PreTrainedTokenizerBase]:
    """Target, head and tokenizer of the demo."""
    folder = ROOT / "hub_cards"
    target = AutoModelForCausalLM.from_pretrained(folder / "demo-llama-7m").eval()
    draft = EagleDraftModel.from_pretrained(folder / "EAGLE3-demo-llama-7m")
    return target, draft, AutoTokenizer.from_pretrained(folder / "demo-llama-7m")


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """Token ids of a user's turn, of shape `(1, length)`."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids


def step_cost(repeats: int, new_tokens: int = 192) -> dict[str, Any]:
    """(a)"""
    target, draft, ids = golden_pair()
    options = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None}
    ratios: dict[str, list[float]] = {name: [] for name in TREES}
    plain_times = []
    for repeat in range(repeats + 1):  # the first one warms up
        seconds, plain = timed(target, ids, **options)
        unit = seconds / new_tokens
        for name, (nodes, depth, width) in TREES.items():
            tree = DraftOptions(num_assistant_tokens=nodes, draft_depth=depth, draft_width=width)
            draft.generation_config = tree.to_generation_config()
            seconds, output = timed(target, ids, draft, **options)
            if not torch.equal(output.sequences, plain.sequences):
                raise SystemExit("tokens differ from plain generate")
            if repeat:
                ratios[name].append(seconds / output.target_forwards / unit)
        if repeat:
            plain_times.append(1000 * unit)
    return {
        "plain_ms_per_token": spread(plain_times),
        "step_in_plain_tokens": {name: spread(values) for name, values in ratios.items()},
    }


def acceptance(lengths: list[int]) -> dict[str, Any]:
    """Tokens per verification, and in how many verifications at least `d` drafted tokens were accepted."""
    steps = len(lengths)
    return {
        "mean_acceptance_length": round(sum(lengths) / steps, 3),
        "accepted_at_depth": [
            round(sum(length > depth for length in lengths) / steps, 3) for depth in range(1, max(lengths))
        ],
    }


def cpu_name() -> str:
    """What the machine calls its processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def speedup(prompts: list[dict[str, str]], repeats: int, new_tokens: int, **sampling: Any) -> dict[str, Any]:
    """(b) and (c)"""
    target, draft, tokenizer = demo_pair()
    options = {"max_new_tokens": new_tokens, **sampling}
    encoded = [encode(tokenizer, prompt["prompt"]) for prompt in prompts]
    for assistant in (None, draft):
        timed(target, encoded[0], assistant, **options)
    speedups, rates, equal = [], [], True
    lengths: dict[str, list[int]] = {prompt["domain"]: [] for prompt in prompts}
    domain_speedups: dict[str, list[float]] = {domain: [] for domain in lengths}
    for repeat in range(repeats):
        totals, tokens = [0.0, 0.0], 0
        domain_totals = {domain: [0.0, 0.0] for domain in lengths}
        for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
            plain_seconds, plain = timed(target, ids, seed=number, **options)
            eagle_seconds, eagle = timed(target, ids, draft, seed=number, **options)
            equal &= torch.equal(plain.sequences, eagle.sequences)
            totals[0] += plain_seconds
            totals[1] += eagle_seconds
            for i, seconds in enumerate((plain_seconds, eagle_seconds)):
                domain_totals[prompt["domain"]][i] += seconds
            tokens += plain.sequences.shape[1] - ids.shape[1]
            if repeat == 0:
                lengths[prompt["domain"]] += eagle.acceptance_lengths[0]
        speedups.append(totals[0] / totals[1])
        for domain, (plain_total, eagle_total) in domain_totals.items():
            domain_speedups[domain].append(plain_total / eagle_total)
        rates.append((tokens / totals[0], tokens / totals[1]))
    if not equal:
        raise SystemExit("tokens differ from plain generate: no speedup is reported")
    return {
        "prompts": len(prompts),
        "new_tokens": tokens,
        "tokens_equal": equal,
        "speedup": spread(speedups),
        "plain_tokens_per_second": spread([rate[0] for rate in rates]),
        "eagle_tokens_per_second": spread([rate[1] for rate in rates]),
        **acceptance(sum(lengths.values(), [])),
        "domains": {
            domain: {"speedup": spread(domain_speedups[domain])} | acceptance(lengths[domain]) for domain in lengths
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=160, help="most tokens per prompt of the demo pair")
    parser.add_argument("--prompts", type=Path, default=ROOT / "benchmarks" / "held_out_prompts.jsonl")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()

    result = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {
            "eagle_hf": eagle_hf.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "hardware": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {args.threads} threads",
        "dtype": "float32",
        "step_cost": step_cost(args.repeats),
    }
    prompts = [json.loads(line) for line in args.prompts.read_text().splitlines()]
    result["demo_greedy"] = speedup(prompts, args.repeats, args.new_tokens, do_sample=False)
    result["demo_sampled"] = speedup(prompts, args.repeats, args.new_tokens, do_sample=True, temperature=1.0, top_k=0)
    text = json.dumps(result, indent=2)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
