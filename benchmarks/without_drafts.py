"""What a call with a head takes where nothing is ever drafted: the bookkeeping of a step, which no text escapes.

Plain `generate` and these ways write the same text in turns, with the demo pair. How far plain `generate` is from
itself says what the machine's noise is. `make bench-without-drafts`.

    plain again     plain `generate` once more
    hooked          the same with a target that was asked for its hidden states before: `transformers` has left hooks
    no drafts       a call with the head that drafts nothing

    python benchmarks/without_drafts.py [--json FILE]
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from conditions import clock, conditions
from speed import demo_pair, encode
from transformers.utils import logging

from eagle_hf.drafting.auto_size import AutoPlan, AutoSize


PROMPTS = (
    "Write a function to find the sum of all numbers in a list.\nUse Python.",
    "Tom has 12 apples. He buys 3 bags with 8 apples each and gives 10 apples away. How many apples does he have now?",
)


def plan_plain_step(policy: AutoSize, max_depth: int) -> AutoPlan:
    """In place of `AutoSize.plan`: the step is a plain one, and its time is noted."""
    return AutoPlan(drafts=False, looks_up=False, started=clock(), pair=policy.pair, is_measured=True)


def measure(do_sample: bool, repeats: int, new_tokens: int) -> dict[str, Any]:
    """Speed of the other ways in units of plain `generate`: medians of neighbouring runs, and their quartiles."""
    target, draft, tokenizer = demo_pair()
    hooked = demo_pair()[0]
    texts = [encode(tokenizer, prompt) for prompt in PROMPTS]
    with torch.no_grad():
        hooked(texts[0], output_hidden_states=True)

    def seconds(ids: torch.Tensor, model: Any, assistant: Any) -> float:
        torch.manual_seed(0)
        start = clock()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), assistant_model=assistant, do_sample=do_sample,
            max_new_tokens=new_tokens, eos_token_id=None,
        )  # fmt: skip
        return clock() - start

    ways = {
        "plain": (target, None), "plain again": (target, None), "hooked": (hooked, None), "no drafts": (target, draft)
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    never = mock.patch.object(AutoSize, "plan", plan_plain_step)
    with never:
        for repeat in range(repeats + 1):
            for ids in texts:
                for name, way in ways.items():
                    took = seconds(ids, *way)
                    if repeat:  # the first one warms up
                        times[name].append(took)
    result: dict[str, Any] = {"plain_ms": 1000 * statistics.median(times["plain"]) / new_tokens}
    for name in list(ways)[1:]:
        ratios = [plain / other for plain, other in zip(times["plain"], times[name], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        result[name] = {"speed": round(median, 4), "quartiles": [round(low, 4), round(high, 4)]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    results = {}
    for name, do_sample in (("greedy", False), ("temperature 1", True)):
        results[name] = result = measure(do_sample, args.repeats, args.new_tokens)
        print(f"{name}: plain token {result['plain_ms']:.2f} ms; in units of its speed: ", end="")
        print(", ".join(f"{way} {result[way]['speed']:.3f} {result[way]['quartiles']}" for way in list(result)[1:]))
    if args.json is not None:
        args.json.write_text(json.dumps(conditions() | results, indent=2) + "\n")


if __name__ == "__main__":
    main()
