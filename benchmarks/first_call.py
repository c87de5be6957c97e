"""What the first call with a head takes longer than later ones: the probe of the target, packed weights, sized trees.

Every run is a process of its own: it generates plainly, then answers two prompts in turns with the demo head, four
times each, 64 tokens every time. The unit is a plain token's time. `make bench-first-call`.

    first     what the first call takes longer than the later ones that write the same text (their median)
    second    what the second one takes longer than later ones with its text: what was found out is kept
    probe     what of the first call it takes to find out whether the target verifies trees
    python benchmarks/first_call.py [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from conditions import clock, conditions
from speed import demo_pair, encode
from transformers.utils import logging

from eagle_hf.generation import decoding


PROMPTS = (
    "Write a function to find the sum of all numbers in a list.\nUse Python.",
    "Tom has 12 apples. He buys 3 bags with 8 apples each and gives 10 apples away. How many apples does he have now?",
)


def measure(new_tokens: int) -> dict[str, float]:
    """The calls of one process, in plain tokens."""
    target, draft, tokenizer = demo_pair()
    texts = [encode(tokenizer, prompt) for prompt in PROMPTS]

    def seconds(ids: torch.Tensor, assistant: Any) -> float:
        start = clock()
        target.generate(
            ids, attention_mask=torch.ones_like(ids), assistant_model=assistant, do_sample=False,
            max_new_tokens=new_tokens, min_new_tokens=new_tokens, eos_token_id=None,
        )  # fmt: skip
        return clock() - start

    plain = [seconds(ids, None) for ids in (*texts, *texts)][2:]
    probing: list[float] = []
    can_verify_trees = decoding.can_verify_trees

    def timed_probe(model: Any) -> bool:
        start = clock()
        verdict = can_verify_trees(model)
        probing.append(clock() - start)
        return verdict

    with mock.patch.object(decoding, "can_verify_trees", timed_probe):
        first, second, *later = (seconds(ids, draft) for ids in 4 * texts)
    unit = statistics.mean(plain) / new_tokens
    parts = {
        "first": first - statistics.median(later[::2]),
        "second": second - statistics.median(later[1::2]),
        "probe": probing[0] - statistics.median(probing[1:]),
    }
    return {name: value / unit for name, value in parts.items()} | {"plain_ms": 1000 * unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
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
    print("plain token {plain_ms:.2f} ms; in plain tokens: first call {first:.1f}".format(**median), end=" ")
    print("({probe:.1f} of them the probe), second {second:.1f}".format(**median))
    if args.json is not None:
        args.json.write_text(json.dumps(conditions() | {"median": median, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
