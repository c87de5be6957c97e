"""Which draft tree is fastest for a pair on this machine: `make sweep`.

The trees take turns with plain `generate` on every prompt, greedily by default, and medians are printed. The pair is
the demo's, and its prompts are those of `make bench`. For any other pair: `eagle-hf bench --trees`.
"""

import argparse
from pathlib import Path

import torch
from speed import ROOT, demo_pair
from transformers.utils import logging

from eagle_hf.evaluation import BenchmarkSettings, load_tasks, make_methods, run_benchmark


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
    settings = BenchmarkSettings((args.temperature,), args.new_tokens, args.repeats, metrics=False)
    methods = make_methods(draft, trees=TREES)
    result = run_benchmark(target, draft, tokenizer, load_tasks(args.prompts), settings, methods)
    rows = {row["method"]: row for row in result["rows"]}  # the last rows are those over all prompts
    print(f"{'nodes':>5} {'depth':>5} {'width':>5} {'tokens per verification':>24} {'speedup':>8}")
    for method in methods:
        if method.tree is not None:
            row = rows[method.name]
            print("{:>5} {:>5} {:>5}".format(*method.tree), f"{row['tau']:>24.2f} {row['speedup']['median']:>8.2f}")


if __name__ == "__main__":
    main()
