"""
Whether `generate` with a draft returns what plain `generate` returns, in many random calls: `make lossless`.

A case is one call (target, prompts, cache, options, seed) with one draft tree. All dimensions are drawn jointly
(`tests/lossless_space.py` has them, `tests/lossless_cases.py` runs a case) from a generator that is seeded by `--seed`
and the number of the call; besides, every pair of values of two dimensions takes its turn. Each call runs once plainly
and once per tree: sequences, the state of the global generator, what was streamed, scores, logits, hidden states,
attentions and the cache's length have to agree.

* A greedy text that leaves the plain one where the target's two best tokens tie is a near tie: in float32 to within its
  rounding, in half precision to within 4 units of the dtype's resolution. It is counted and shown.
* A sampled text in half precision may leave the plain one anywhere, as a draw flips at any rounding. It is counted.
* What is refused must be refused before anything was drawn, for a reason that such calls may be refused for. It is
  counted by reason, as are calls in which plain `generate` itself fails.
* Anything else is a mismatch, and makes the command fail. So does a full run (10,000 cases) in which a pair of values
  that is not always refused was compared in fewer than ten cases.

Call `i` depends on `--seed` and `i` only. `--first` goes on where an earlier run stopped.
"""

import argparse
import collections
import contextlib
import itertools
import json
import logging as std_logging
import multiprocessing
import sys
import time
import traceback
import warnings
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
from lossless_cases import TREES_PER_CALL, draw_case, run_call  # noqa: E402
from lossless_space import Pair, pairs, pairs_of  # noqa: E402
from transformers.utils import logging  # noqa: E402


FULL_RUN = 10_000  # cases
LEAST = 10  # of them with each pair of values
KINDS = ("mismatch", "near_tie", "sampled_apart", "refusal", "plain_failure")  # of outcomes that are not equal


def run(seed: int, index: int) -> dict:
    """Draw and run one call with its trees."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    std_logging.getLogger("eagle_hf").setLevel(std_logging.ERROR)
    call, trees = draw_case(seed, index)
    result = {"index": index, "call": repr(call), "architecture": call.architecture, "cases": []}
    try:
        outcomes = run_call(call, trees)
    except Exception:  # shown in full, and counted
        text = traceback.format_exc()
        return result | {"cases": [{"traits": {}, "kind": "mismatch", "what": text, "tree": "any"}]}
    for tree, outcome in zip(trees, outcomes, strict=True):
        kind = next((kind for kind in KINDS if getattr(outcome, kind)), "equal")
        result["cases"].append({
            "traits": call.traits() | tree.traits(), "kind": kind, "what": getattr(outcome, kind, ""),
            "tree": repr(tree), "new_tokens": outcome.new_tokens, "accepted": outcome.accepted,
            "verifications": outcome.verifications,
        })  # fmt: skip
    return result


def _star(arguments: tuple[int, int]) -> dict:
    return run(*arguments)


class PairTable:
    """How often each pair of values of two dimensions was compared, refused, and met a failure of plain `generate`."""

    def __init__(self) -> None:
        self.compared: dict[Pair, int] = dict.fromkeys(pairs(), 0)
        self.reasons: dict[Pair, collections.Counter] = collections.defaultdict(collections.Counter)

    def add(self, case: dict) -> None:
        """Counts a case for all of its pairs."""
        for pair in pairs_of(case["traits"]) if case["traits"] else ():
            if case["kind"] in ("refusal", "plain_failure"):
                self.reasons[pair][case["what"]] += 1
            else:
                self.compared[pair] += 1

    def never_compared(self) -> dict[Pair, collections.Counter]:
        """Pairs of which every case was refused, or failed plainly, with the reasons."""
        return {pair: self.reasons[pair] for pair, count in self.compared.items() if not count and self.reasons[pair]}

    def too_few(self) -> list[Pair]:
        """Pairs that were drawn too rarely to tell anything."""
        never = self.never_compared()
        drawn = {pair: sum(never[pair].values()) if pair in never else count for pair, count in self.compared.items()}
        return [pair for pair, count in drawn.items() if count < LEAST]

    def figures(self) -> dict:
        """For the JSON file."""
        names = {pair: _name(pair) for pair in self.compared}
        return {
            "allowed": len(self.compared) - len(self.never_compared()),
            "never_compared": {names[pair]: dict(reasons) for pair, reasons in self.never_compared().items()},
            "compared": {names[pair]: count for pair, count in sorted(self.compared.items()) if count},
        }

    def show(self) -> None:
        """Prints the smallest counts, and what is never compared: values as a whole first, then single pairs."""
        never = self.never_compared()
        counts = sorted((count, _name(pair)) for pair, count in self.compared.items() if pair not in never)
        print(f"{len(counts)} allowed pairs of values of two dimensions. The rarest:")
        for count, name in counts[:12]:
            print(f"  {count:5} {name}")
        partners: dict = collections.defaultdict(set)
        for pair in self.compared:
            for value in pair:
                partners[value].add(pair)
        whole = {value for value, of_value in partners.items() if of_value <= never.keys()}
        by_reason: dict = collections.defaultdict(list)
        for value in sorted(whole):
            reasons = sum((never[pair] for pair in partners[value]), collections.Counter())
            by_reason[_words(reasons)].append(f"{_value(value)} with anything")
        for pair, reasons in never.items():
            if not whole & set(pair):
                by_reason[_words(reasons)].append(_name(pair))
        print(f"{len(never)} pairs that were never compared, by reason:")
        for reason, names in sorted(by_reason.items()):
            print(f"  {reason}\n    {'; '.join(names)}")


def _value(value: tuple[str, str]) -> str:
    return f"{value[0]}: {value[1]}"


def _name(pair: Pair) -> str:
    return f"{_value(pair[0])} + {_value(pair[1])}"


def _words(reasons: collections.Counter) -> str:
    return " | ".join(reason for reason, _ in reasons.most_common(3))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=FULL_RUN, help="at least so many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, help="write the figures here, too; renewed every 100 calls")
    args = parser.parse_args()

    started, calls = time.time(), -(-args.cases // TREES_PER_CALL)
    totals: dict = collections.Counter(near_ties=0, mismatches=0)
    architectures: dict[str, int] = collections.Counter()
    reasons: dict[str, collections.Counter] = {kind: collections.Counter() for kind in ("refusal", "plain_failure")}
    plurals = {"mismatch": "mismatches", "near_tie": "near_ties", "refusal": "refused", "plain_failure": "fail_plainly"}
    table = PairTable()

    def figures() -> dict:
        seconds = round(time.time() - started, 1)
        per_verification = round(totals["accepted"] / max(totals["verifications"], 1), 2)
        return {"seed": args.seed, "first": args.first, **totals, "tokens_per_verification": per_verification,
                "architectures": len(architectures), "seconds": seconds, "workers": args.workers,
                "reasons": {kind: dict(counts) for kind, counts in reasons.items()},
                "pairs": table.figures()}  # fmt: skip

    jobs = zip(itertools.repeat(args.seed), range(args.first, args.first + calls), strict=False)
    with contextlib.ExitStack() as stack:
        results = map(_star, jobs)
        if args.workers > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(args.workers))
            results = pool.imap_unordered(_star, jobs, chunksize=4)
        for result in results:
            totals["calls"] += 1
            for case in result["cases"]:
                table.add(case)
                totals["cases"] += 1
                architectures[result["architecture"]] += 1
                for name in ("new_tokens", "accepted", "verifications"):
                    totals[name] += case.get(name, 0)
                if case["kind"] != "equal":
                    totals[plurals.get(case["kind"], case["kind"])] += 1
                if case["kind"] in reasons:
                    reasons[case["kind"]][case["what"]] += 1
                if case["kind"] in ("mismatch", "near_tie"):
                    print(f"{case['kind']}: call {result['index']}: {result['call']}\n  {case['what']}: {case['tree']}",
                          flush=True)  # fmt: skip
            if args.json is not None and totals["calls"] % 100 == 0:
                args.json.write_text(json.dumps(figures(), indent=1))
    final = figures()
    if args.json is not None:
        args.json.write_text(json.dumps(final, indent=1))
    for kind, title in (("refusal", "refused before anything ran"), ("plain_failure", "fail in plain `generate` too")):
        print(f"{sum(reasons[kind].values())} cases {title}:")
        for reason, count in reasons[kind].most_common():
            print(f"  {count:5} {reason}")
    table.show()
    print(
        f"{final['cases']} cases ({final['calls']} calls, {len(architectures)} targets, {final['new_tokens']} columns "
        f"of new tokens): {final['mismatches']} mismatches, {final['near_ties']} near ties, "
        f"{totals['sampled_apart']} sampled texts in half precision that part, "
        f"{final['tokens_per_verification']} tokens per verification, {final['seconds']} s"
    )
    too_few = table.too_few() if final["cases"] >= FULL_RUN else []
    if too_few:
        print(f"Fewer than {LEAST} cases with: {'; '.join(map(_name, too_few))}")
    return 1 if final["mismatches"] or too_few else 0


if __name__ == "__main__":
    sys.exit(main())
