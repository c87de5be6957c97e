"""What a step costs as the context grows, beside what the target's own forwards cost: `make bench-long`.

For every length of the prompt, on the demo pair with random tokens (their cost is that of any others):

* `plain`: a token of plain `generate`;
* `verify`: the target's own forward over the nodes of a tree, a part of the step;
* `step`: a whole step of EAGLE, the first one left out;
* `prompt`: what the head adds to the prompt, in plain prefills.

Growth is the cost at a length over that at the shortest one. A step grows as its target does where `step/verify`, the
growth of the one over that of the other, is 1. Plain and drafted generations alternate, and medians are reported.

    python benchmarks/context_growth.py [--lengths 512 2048 8192] [--json FILE]
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from conditions import Timing, clock, conditions
from speed import demo_pair
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from eagle_hf import DraftOptions
from eagle_hf.drafting.true_rows import TrueRows
from eagle_hf.target.target import Target


class Clock(BaseStreamer):
    """When every token came. The first `put` is the prompt."""

    def __init__(self) -> None:
        self.start = clock()
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(clock())

    def end(self) -> None:
        pass


class Stopwatch:
    """Adds up the time spent in a method, call by call."""

    def __init__(self, owner: type, name: str):
        self.owner, self.name, self.seconds = owner, name, list[float]()

    def __enter__(self) -> "Stopwatch":
        self.original = original = getattr(self.owner, self.name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            result = original(*args, **kwargs)
            self.seconds.append(clock() - start)
            return result

        setattr(self.owner, self.name, timed)
        return self

    def __exit__(self, *exception: object) -> None:
        setattr(self.owner, self.name, self.original)


def plain_token(target: Any, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of a token, and of the prefill."""
    watch = Clock()
    target.generate(
        ids, attention_mask=torch.ones_like(ids), streamer=watch, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
        do_sample=False, eos_token_id=None,
    )  # fmt: skip
    times = watch.times[1:]
    return (times[-1] - times[0]) / (len(times) - 1), times[0] - watch.start


def eagle_step(target: Any, draft: Any, ids: torch.Tensor, new_tokens: int) -> tuple[float, float, float]:
    """Seconds of a step, of the target's forward in it, and of reading the prompt's features."""
    watch = Clock()
    with Stopwatch(Target, "verify") as verify, Stopwatch(TrueRows, "read_prompt") as prompt:
        output = target.generate(
            ids, attention_mask=torch.ones_like(ids), streamer=watch, max_new_tokens=new_tokens, do_sample=False,
            eos_token_id=None, assistant_model=draft, return_dict_in_generate=True,
        )  # fmt: skip
    lengths = output.acceptance_lengths[0]
    # Tokens come at the end of the step that accepts them: the first is the prefill's, then `lengths[0]` of step one.
    first_step = watch.times[1 + lengths[0]]
    seconds = (watch.times[-1] - first_step) / (len(lengths) - 1)
    return seconds, statistics.median(verify.seconds[1:]), sum(prompt.seconds)


def measure(lengths: list[int], repeats: int, new_tokens: int, nodes: int) -> list[dict[str, float]]:
    target, draft, _ = demo_pair()
    target.config.max_position_embeddings = max(lengths) + new_tokens  # the cost at a position is that of any other
    draft.generation_config = DraftOptions(
        num_assistant_tokens=nodes, draft_depth=6, draft_width=4
    ).to_generation_config()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths:
        ids = torch.randint(3, target.config.vocab_size, (1, length), generator=generator)
        runs = []
        for repeat in range(repeats + 1):  # the first one warms up
            run = (*plain_token(target, ids, new_tokens), *eagle_step(target, draft, ids, new_tokens))
            runs += [run] if repeat else []
        plain, prefill, step, verify, prompt = (statistics.median(column) for column in zip(*runs, strict=True))
        row = {"length": length, "plain_ms": 1000 * plain, "verify_ms": 1000 * verify, "step_ms": 1000 * step}
        row |= {"step_in_plain_tokens": step / plain, "prompt_in_prefills": prompt / prefill}
        first = rows[0] if rows else row
        for name in ("plain", "verify", "step"):
            row[f"{name}_growth"] = row[f"{name}_ms"] / first[f"{name}_ms"]
        row["step_over_verify_growth"] = row["step_growth"] / row["verify_growth"]
        rows.append({name: round(value, 3) for name, value in row.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--nodes", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="count processor time; for a machine that is shared")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Timing.is_processor_time = args.cpu_time
    logging.disable_progress_bar()
    rows = measure(args.lengths, args.repeats, args.new_tokens, args.nodes)
    print("          plain ms  verify ms  step ms   growth: plain  verify   step   step/verify   prompt")
    for row in rows:
        print(
            "{length:>6} {plain_ms:>11.2f}{verify_ms:>11.2f}{step_ms:>9.2f}{plain_growth:>16.2f}{verify_growth:>8.2f}"
            "{step_growth:>7.2f}{step_over_verify_growth:>14.2f}{prompt_in_prefills:>9.2f}".format(**row)
        )
    if args.json is not None:
        result = conditions() | {"rows": rows}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
