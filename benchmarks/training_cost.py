"""Throughput and memory of training a head against the length of its texts: `make bench-training`.

Every length is measured in a process of its own: the demo target, a new head, one text per step, forward of the target,
loss, gradients and AdamW. Memory is the peak of the process less what it held before the first step.

    python benchmarks/training_cost.py [--lengths 512 1024 2048 4096] [--num_unrolls 7] [--json FILE]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from eagle_hf.training import FrozenTarget, new_head, training_time_test_loss


ROOT = Path(__file__).parents[1]


def measure(length: int, num_unrolls: int, steps: int, draft_vocab_size: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(ROOT / "hub_cards" / "demo-llama-10m", dtype=torch.float32)
    head = new_head(model, torch.arange(draft_vocab_size)).train()
    target = FrozenTarget(model, head.config, torch.device("cpu"))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(steps + 1):  # the first one warms up
        tokens = torch.randint(3, draft_vocab_size, (1, length))
        start = time.perf_counter()
        signal = target.read({"input_ids": tokens})
        output = training_time_test_loss(
            head, signal.features, tokens, signal.logits, torch.ones_like(tokens), target.embed_tokens,
            num_steps=num_unrolls, document_ids=torch.zeros_like(tokens),
        )  # fmt: skip
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "length": length,
        "tokens_per_second": round(length / statistics.median(seconds[1:]), 1),
        "peak_memory_mib": round((peak - before) / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--num_unrolls", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--draft_vocab_size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one is not None:
        print(json.dumps(measure(args.one, args.num_unrolls, args.steps, args.draft_vocab_size)))
        return
    rows = []
    for length in args.lengths:
        command = [sys.executable, *sys.argv, "--one", str(length)]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        print("{length:6d} tokens: {tokens_per_second:8.1f} tokens/s, {peak_memory_mib:8.1f} MiB".format(**rows[-1]))
    if args.json is not None:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
