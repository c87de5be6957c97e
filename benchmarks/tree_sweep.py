"""Which draft tree is fastest for a pair on this machine: `make sweep`.

Every tree generates for every prompt, greedily; trees alternate in one process with plain `generate`, and medians of
the ratios are printed. The default pair is the demo's, and its prompts are those of `make bench`.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from speed import ROOT, demo_pair, encode, timed
from transformers.utils import logging

from eagle_hf import DraftOptions


TREES = ((4, 4, 1), (6, 5, 2), (8, 5, 3), (12, 6, 3), (16, 6, 4), (20, 7, 4), (24, 8, 4), (32, 8, 5), (40, 8, 6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=96, help="most tokens per prompt")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--prompts", type=Path, default=ROOT / "benchmarks" / "held_out_prompts.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    target, draft, tokenizer = demo_pair()
    prompts = [encode(tokenizer, json.loads(line)["prompt"]) for line in args.prompts.read_text().splitlines()]
    options = {"max_new_tokens": args.new_tokens, "do_sample": args.temperature > 0}
    if args.temperature > 0:
        options |= {"temperature": args.temperature, "top_k": 0}

    speedups: dict[tuple[int, int, int], list[float]] = {tree: [] for tree in TREES}
    lengths: dict[tuple[int, int, int], list[int]] = {tree: [] for tree in TREES}
    for ids in prompts[:2]:
        timed(target, ids, **options)
        timed(target, ids, draft, **options)
    for _ in range(args.repeats):
        seconds = dict.fromkeys((None, *TREES), 0.0)
        for ids in prompts:
            for tree in seconds:
                if tree is not None:
                    nodes, depth, width = tree
                    shape = DraftOptions(num_assistant_tokens=nodes, draft_depth=depth, draft_width=width)
                    draft.generation_config = shape.to_generation_config()
                time, output = timed(target, ids, None if tree is None else draft, **options)
                seconds[tree] += time
                if tree is not None:
                    lengths[tree] += output.acceptance_lengths[0]
        for tree in TREES:
            speedups[tree].append(seconds[None] / seconds[tree])
    print(f"{'nodes':>5} {'depth':>5} {'width':>5} {'tokens per verification':>24} {'speedup':>8}")
    for tree in TREES:
        tokens = sum(lengths[tree]) / len(lengths[tree])
        print("{:>5} {:>5} {:>5}".format(*tree), f"{tokens:>24.2f} {statistics.median(speedups[tree]):>8.2f}")


if __name__ == "__main__":
    main()
