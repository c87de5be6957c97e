"""What a first call with a head takes longer than later ones: the probe of the target, sized trees.

Every process answers the held-out prompts with the demo pair, 64 tokens each: plainly, with a head that was loaded anew
while nothing is known of the target either, and with a head that has answered before, in turns. The unit is a plain
token's time. Single calls vary by more than what is measured; the median of many does not. `make bench-first-call`.

    first         what a first call takes longer than a later one with the same text
    probe         what of it finding out takes whether the target verifies trees
    in_process    the same as `first`, of the call before which nothing of this library had run: one per process
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
from eagle_hf.target import probe


PROMPTS = Path(__file__).parent / "held_out_prompts.jsonl"


def measure(new_tokens: int, every: int) -> dict[str, list[float]]:
    """The differences of one process, in plain tokens."""
    target, draft, tokenizer = demo_pair()
    texts = [encode(tokenizer, json.loads(line)["prompt"]) for line in PROMPTS.read_text().splitlines()[::every]]

    def seconds(ids: torch.Tensor, assistant: Any) -> float:
        start = clock()
        target.generate(
            ids, attention_mask=torch.ones_like(ids), assistant_model=assistant, do_sample=False,
            max_new_tokens=new_tokens, min_new_tokens=new_tokens, eos_token_id=None,
        )  # fmt: skip
        return clock() - start

    probing: list[float] = []
    can_verify_trees = decoding.can_verify_trees

    def timed_probe(model: Any, **kwargs: Any) -> bool:
        start = clock()
        verdict = can_verify_trees(model, **kwargs)
        probing.append(clock() - start)
        return verdict

    def first_call(ids: torch.Tensor) -> float:
        """Seconds of a call in which nothing is known of the target, nor of the head."""
        _, unused_draft, _ = demo_pair()
        probe._VERDICTS.pop(target, None)
        return seconds(ids, unused_draft)

    seconds(texts[0], None)
    plain = seconds(texts[0], None)
    in_process = seconds(texts[0], draft)
    for ids in texts:  # until trees have their sizes
        seconds(ids, draft)
    in_process -= seconds(texts[0], draft)
    differences: dict[str, list[float]] = {"first": [], "probe": [], "plain_ms": []}
    with mock.patch.object(decoding, "can_verify_trees", timed_probe):
        for ids in texts:
            unit = seconds(ids, None) / new_tokens
            first, later = first_call(ids), seconds(ids, draft)
            differences["first"].append((first - later) / unit)
            differences["probe"].append((probing[-2] - probing[-1]) / unit)
            differences["plain_ms"].append(1000 * unit)
    return differences | {"in_process": [in_process * new_tokens / plain]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--every", type=int, default=1, help="take every n-th prompt only")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--measure", action="store_true", help="measure in this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    if args.measure:
        print(json.dumps(measure(args.new_tokens, args.every)))
        return
    options = [f"--{name}={getattr(args, name.replace('-', '_'))}" for name in ("new-tokens", "every", "threads")]
    runs = [
        json.loads(
            subprocess.run(
                [sys.executable, __file__, "--measure", *options], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(args.processes)
    ]
    all_values = {name: [value for run in runs for value in run[name]] for name in runs[0]}
    median = {name: round(statistics.median(values), 2) for name, values in all_values.items()}
    quartiles = {
        name: [round(value, 2) for value in statistics.quantiles(values, n=4)]
        for name, values in all_values.items()
        if len(values) > 1
    }
    print("plain token {plain_ms:.2f} ms; in plain tokens: first call {first:.1f}".format(**median), end=" ")
    print("({probe:.1f} of them the probe), the first of a process {in_process:.1f}".format(**median))
    if args.json is not None:
        args.json.write_text(
            json.dumps(conditions() | {"median": median, "quartiles": quartiles, "runs": runs}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
