"""
Whether `generate` with a draft returns what plain `generate` returns, in many random calls: `make lossless`.

A case is one call (architecture, prompts, options, seed) with one draft tree. Calls are drawn from a seeded generator
(`tests/lossless_cases.py` is the space) and run once plainly and once per tree: sequences, the state of the global
generator, what was streamed, scores, logits, hidden states, attentions and the cache's length have to agree. A
difference that starts where float32 rounding decides between the target's two best tokens is counted as a near tie and
shown; any other is a mismatch, and makes the command fail.

Call `i` depends on `--seed` and `i` only. `--first` goes on where an earlier run stopped.
"""

import argparse
import collections
import contextlib
import itertools
import json
import multiprocessing
import random
import sys
import time
import traceback
import warnings
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
from lossless_cases import draw_call, draw_tree, run_call  # noqa: E402
from transformers.utils import logging  # noqa: E402


TREES_PER_CALL = 4


def run(seed: int, index: int) -> dict:
    """Draw and run one call with its trees."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    rng = random.Random(f"{seed}-{index}")
    call, trees = draw_call(rng), [draw_tree(rng) for _ in range(TREES_PER_CALL)]
    result = {"index": index, "call": repr(call), "architecture": call.architecture, "cases": len(trees),
              "new_tokens": 0, "accepted": 0, "verifications": 0, "near_ties": [], "mismatches": []}  # fmt: skip
    try:
        outcomes = run_call(call, trees)
    except Exception:  # shown in full, and counted
        result["mismatches"] = [traceback.format_exc()]
        return result
    for tree, outcome in zip(trees, outcomes, strict=True):
        result["new_tokens"] += outcome.new_tokens
        result["accepted"] += outcome.accepted
        result["verifications"] += outcome.verifications
        if outcome.mismatch:
            result["near_ties" if outcome.is_near_tie else "mismatches"].append(f"{outcome.mismatch}: {tree}")
    return result


def _star(arguments: tuple[int, int]) -> dict:
    return run(*arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="at least so many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, help="write the figures here, too; renewed every 100 calls")
    args = parser.parse_args()

    started, calls = time.time(), -(-args.cases // TREES_PER_CALL)
    totals: dict = collections.Counter(near_ties=0, mismatches=0)
    architectures: dict[str, int] = collections.Counter()

    def figures() -> dict:
        seconds = round(time.time() - started, 1)
        per_verification = round(totals["accepted"] / max(totals["verifications"], 1), 2)
        return {"seed": args.seed, "first": args.first, **totals, "tokens_per_verification": per_verification,
                "architectures": len(architectures), "seconds": seconds, "workers": args.workers}  # fmt: skip

    jobs = zip(itertools.repeat(args.seed), range(args.first, args.first + calls), strict=False)
    with contextlib.ExitStack() as stack:
        results = map(_star, jobs)
        if args.workers > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(args.workers))
            results = pool.imap_unordered(_star, jobs, chunksize=4)
        for result in results:
            architectures[result["architecture"]] += result["cases"]
            totals["calls"] += 1
            for name in ("cases", "new_tokens", "accepted", "verifications"):
                totals[name] += result[name]
            for name in ("near_ties", "mismatches"):
                totals[name] += len(result[name])
                for text in result[name]:
                    print(f"{name}: call {result['index']}: {result['call']}\n  {text}", flush=True)
            if args.json is not None and totals["calls"] % 100 == 0:
                args.json.write_text(json.dumps(figures(), indent=1))
    final = figures()
    if args.json is not None:
        args.json.write_text(json.dumps(final, indent=1))
    print(
        f"{final['cases']} cases ({final['calls']} calls, {len(architectures)} architectures, {final['new_tokens']} "
        f"columns of new tokens): {final['mismatches']} mismatches, {final['near_ties']} near ties, "
        f"{final['tokens_per_verification']} tokens per verification, {final['seconds']} s"
    )
    return 1 if final["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
