"""Tokens per second of batches, with and without the draft: `make bench-batches`.

Prompts of the demo pair, left-padded, greedily. Plain and drafted generations of the same batch alternate; the tokens
are checked to be equal, and medians of the ratios of neighbouring runs are reported. `--parts` also says which part of
a step takes how much of its time.

    python benchmarks/batches.py [--sizes 1 2 4 8 16] [--json FILE]
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from conditions import Timing, clock, conditions
from speed import ROOT, demo_pair, spread
from transformers.utils import logging

from eagle_hf.evaluation.profiling import PARTS, Parts


def batches(tokenizer: Any, prompts: list[str], size: int) -> list[Any]:
    """The prompts in left-padded batches of a size; the last prompts are used again where it does not divide."""
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
        for p in prompts
    ]
    tokenizer.padding_side = "left"
    starts = range(0, max(len(texts) - size + 1, 1), size)
    groups = [[texts[(start + i) % len(texts)] for i in range(size)] for start in starts]
    return [tokenizer(group, return_tensors="pt", padding=True, add_special_tokens=False) for group in groups]


def generate(target: Any, inputs: Any, draft: Any, new_tokens: int) -> tuple[float, Any]:
    start = clock()
    output = target.generate(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, assistant_model=draft, do_sample=False,
        max_new_tokens=new_tokens, return_dict_in_generate=True,
    )  # fmt: skip
    return clock() - start, output


def measure(size: int, prompts: list[str], repeats: int, new_tokens: int, wants_parts: bool) -> dict[str, Any]:
    target, draft, tokenizer = demo_pair()
    groups = batches(tokenizer, prompts, size)
    generate(target, groups[0], None, 8)
    generate(target, groups[0], draft, 8)
    ratios, rates, lengths = [], [], list[int]()
    for repeat in range(repeats):
        seconds, tokens = [0.0, 0.0], 0
        for inputs in groups:
            plain_seconds, plain = generate(target, inputs, None, new_tokens)
            eagle_seconds, eagle = generate(target, inputs, draft, new_tokens)
            if not torch.equal(plain.sequences, eagle.sequences):
                raise SystemExit("tokens differ from plain generate: no speedup is reported")
            seconds = [seconds[0] + plain_seconds, seconds[1] + eagle_seconds]
            new = plain.sequences[:, inputs.input_ids.shape[1] :]
            tokens += int((new != tokenizer.pad_token_id).sum())  # a row that has finished yields none
            if repeat == 0:
                lengths += sum(eagle.acceptance_lengths, [])
        ratios.append(seconds[0] / seconds[1])
        rates.append((tokens / seconds[0], tokens / seconds[1]))
    result = {
        "batch_size": size,
        "speedup": spread(ratios),
        "plain_tokens_per_second": round(statistics.median(rate[0] for rate in rates), 1),
        "eagle_tokens_per_second": round(statistics.median(rate[1] for rate in rates), 1),
        "mean_acceptance_length": round(statistics.mean(lengths), 3),
    }
    if wants_parts:
        parts, steps = Parts(target.device, counts=False), 0
        for inputs in groups:
            with parts:
                steps += generate(target, inputs, draft, new_tokens)[1].target_forwards - 1
        milliseconds = {name: sum(sums.get(name, [0])[0] for sums in parts.steps) for name in PARTS}
        result["part_ms"] = {name: round(value / steps, 3) for name, value in milliseconds.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=96, help="most tokens per row")
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--prompts", type=Path, default=ROOT / "benchmarks" / "held_out_prompts.jsonl")
    parser.add_argument("--parts", action="store_true", help="also measure the parts of a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="count processor time; for a machine that is shared")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Timing.is_processor_time = args.cpu_time
    logging.disable_progress_bar()
    prompts = [json.loads(line)["prompt"] for line in args.prompts.read_text().splitlines()]
    prompts = prompts[:: max(len(prompts) // args.num_prompts, 1)][: args.num_prompts]
    rows = []
    print(f"{'batch':>5} {'plain tok/s':>12} {'EAGLE tok/s':>12} {'speedup':>8} {'tokens per verification':>24}")
    for size in args.sizes:
        row = measure(size, prompts, args.repeats, args.new_tokens, args.parts)
        rows.append(row)
        print(
            f"{size:>5} {row['plain_tokens_per_second']:>12.1f} {row['eagle_tokens_per_second']:>12.1f} "
            f"{row['speedup']['median']:>8.2f} {row['mean_acceptance_length']:>24.2f}"
        )
        if args.parts:
            print("      ms per step: " + ", ".join(f"{name} {ms:.2f}" for name, ms in row["part_ms"].items()))
    if args.json is not None:
        result = conditions() | {"tokens_equal": True, "rows": rows}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
