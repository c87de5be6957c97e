"""What the first call with a head takes longer than later ones: the probe of the target, packed weights, sized trees.

Every run is a process of its own: it generates plainly twice, then with the demo head four times, the same 64 tokens.
The unit is a plain token's time. `make bench-first-call`.

    first - later     what the first call takes longer than the median of the third and fourth
    second - later    the same for the second one: what was found out is kept
    python benchmarks/first_call.py [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from conditions import clock, conditions
from speed import demo_pair, encode
from transformers.utils import logging


PROMPT = "Write a function to find the sum of all numbers in a list.\nUse Python."


def measure(new_tokens: int) -> dict[str, float]:
    """The calls of one process, in plain tokens."""
    target, draft, tokenizer = demo_pair()
    ids = encode(tokenizer, PROMPT)
    seconds = []
    for assistant in (None, None, draft, draft, draft, draft):
        start = clock()
        target.generate(
            ids, attention_mask=torch.ones_like(ids), assistant_model=assistant, do_sample=False,
            max_new_tokens=new_tokens, min_new_tokens=new_tokens, eos_token_id=None,
        )  # fmt: skip
        seconds.append(clock() - start)
    _, plain, first, second, *later = seconds
    unit, usual = plain / new_tokens, statistics.mean(later)
    return {"first": (first - usual) / unit, "second": (second - usual) / unit, "plain_ms": 1000 * unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--measure", action="store_true", help="measure in this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    if args.measure:
        print(json.dumps(measure(args.new_tokens)))
        return
    command = [sys.executable, __file__, "--measure", f"--new-tokens={args.new_tokens}", f"--threads={args.threads}"]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(args.repeats)
    ]
    median = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    print("plain token {plain_ms:.2f} ms; in plain tokens: first - later {first:.1f}".format(**median), end=", ")
    print("second - later {second:.1f}".format(**median))
    if args.json is not None:
        args.json.write_text(json.dumps(conditions() | {"median": median, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
