"""How much memory drafting needs on top of plain `generate`, head weights aside: `make bench-memory`.

A target with random weights and a head for it are made in a fresh process per run, generate once in short, so that
nothing imported or probed is measured, and then answer a prompt of random tokens, with the head or without it. The head
is there in both cases. What counts is the highest memory during the call: resident memory on Linux, allocated memory on
a GPU. Above plain generation are the head's cache, the features it reads, masks, and logits of a whole tree:

    above plain = (peak with the head - peak without) / (target's weights + what plain generation needs besides)

    python benchmarks/memory.py [--lengths 64 1024 4096] [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from conditions import conditions, resident_bytes
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from eagle_hf.training import new_head


KINDS = ("plain", "eagle")


class Peak:
    """The highest memory since this was made, less what was held then, in bytes."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size so far
            self.before = resident_bytes("VmRSS")

    def read(self) -> int:
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else resident_bytes("VmHWM")
        return peak - self.before


def measure(kind: str, length: int, args: argparse.Namespace) -> dict[str, int]:
    """One call in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=args.hidden_size, intermediate_size=args.hidden_size * 11 // 4,
        num_hidden_layers=args.layers, num_attention_heads=args.hidden_size // 64,
        num_key_value_heads=max(args.hidden_size // 256, 1), max_position_embeddings=2 * length + 1024,
        tie_word_embeddings=False,
    )  # fmt: skip
    target = LlamaForCausalLM(config).to(device).eval()
    draft = new_head(target, torch.arange(0, 32_000, 4)).to(device).eval()
    ids = torch.randint(3, 32_000, (1, length), device=device)
    options = {"assistant_model": draft if kind == "eagle" else None, "do_sample": False, "eos_token_id": None}
    target.generate(ids[:, :8], attention_mask=torch.ones_like(ids[:, :8]), max_new_tokens=8, **options)
    peak = Peak(device)
    target.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=args.new_tokens, **options)
    weights = [sum(p.numel() * p.element_size() for p in model.parameters()) for model in (target, draft)]
    return {"peak_bytes": peak.read(), "target_bytes": weights[0], "head_bytes": weights[1]}


def compare(length: int, args: argparse.Namespace) -> dict[str, float]:
    """Runs alternate, each in a process of its own."""
    runs: dict[str, list[dict[str, int]]] = {kind: [] for kind in KINDS}
    for _ in range(args.repeats):
        for kind in KINDS:
            sizes = ["--hidden-size", args.hidden_size, "--layers", args.layers, "--new-tokens", args.new_tokens]
            command = [sys.executable, __file__, "--measure", kind, "--lengths", length, "--threads", args.threads]
            done = subprocess.run([str(part) for part in command + sizes], capture_output=True, text=True, check=True)
            runs[kind].append(json.loads(done.stdout))
    plain, eagle = (statistics.median(run["peak_bytes"] for run in runs[kind]) for kind in KINDS)
    target, head = (runs["plain"][0][name] for name in ("target_bytes", "head_bytes"))
    mib = {"target_mib": target, "head_mib": head, "plain_mib": plain, "eagle_mib": eagle}
    above = {"above_plain": round((eagle - plain) / (target + plain), 4)}
    return {"length": length} | {name: round(value / 2**20, 1) for name, value in mib.items()} | above


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 1024, 4096])
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--measure", choices=KINDS, help="measure one call in this process")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not Path("/proc/self/clear_refs").exists():
        parser.error("Memory can be measured on a GPU, or on Linux, which tells the highest resident size (/proc).")
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    if args.measure:
        print(json.dumps(measure(args.measure, args.lengths[0], args)))
        return
    rows = [compare(length, args) for length in args.lengths]
    print("prompt   target MiB   head MiB   plain besides MiB   with the head MiB   above plain")
    for row in rows:
        print(
            "{length:>6} {target_mib:>12.0f}{head_mib:>11.0f}{plain_mib:>20.0f}{eagle_mib:>20.0f}"
            "{above_plain:>14.1%}".format(**row)
        )
    if args.json is not None:
        args.json.write_text(json.dumps(conditions() | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
