"""Time and memory of loading a head, against safetensors alone: `make bench-loading`.

A head of 0.4 GB (bfloat16, sizes of a head for a 3B target) is written to a temporary folder and loaded in a fresh
process per run:

map     `safetensors.torch.load_file`, which only maps the file: nothing is read until a tensor is used
read    the same, and every tensor is summed: the weights have been read once
eagle   `EagleDraftModel.from_pretrained`: the weights have been read once as well, to check that they are finite

Runs alternate, and medians are reported, once with the file in the page cache and once after it was dropped from it
(`posix_fadvise`, Linux). Memory is the highest resident size during the load less that before, in multiples of the
file's size. Every process loads a tiny head first, so that lazy imports are not measured.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from conditions import resident_bytes
from safetensors.torch import load_file
from transformers.utils import logging

from eagle_hf import EagleConfig, EagleDraftModel


WAYS = ("map", "read", "eagle")


def write_head(folder: Path, hidden_size: int) -> None:
    """A random head in bfloat16, in the proportions of one for Llama-3.2-3B."""
    config = EagleConfig(
        vocab_size=40 * hidden_size,
        draft_vocab_size=5 * hidden_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
    )
    draft = EagleDraftModel(config).bfloat16()
    draft.set_draft_vocabulary(torch.arange(5 * hidden_size) * 8)
    draft.save_pretrained(folder)


def load(way: str, folder: Path) -> object:
    if way == "eagle":
        return EagleDraftModel.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    if way == "read":
        for tensor in weights.values():
            tensor.sum()
    return weights


def measure(way: str, folder: Path, tiny: Path) -> dict[str, float]:
    """One load in this process: seconds, and the highest resident size less that before."""
    load(way, tiny)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size so far
    before = resident_bytes("VmRSS")
    start = time.perf_counter()
    kept = load(way, folder)
    seconds = time.perf_counter() - start
    peak = resident_bytes("VmHWM") - before
    del kept
    return {"seconds": seconds, "bytes": peak}


def drop_from_page_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_all(folder: Path, tiny: Path, repeats: int, is_cold: bool) -> dict[str, Any]:
    file = folder / "model.safetensors"
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            if is_cold:
                drop_from_page_cache(file)
            arguments = [sys.executable, __file__, "--measure", way, str(folder), str(tiny)]
            done = subprocess.run(arguments, capture_output=True, text=True, check=True)
            runs[way].append(json.loads(done.stdout))
    size = file.stat().st_size
    result: dict[str, Any] = {
        way: {
            "seconds": round(statistics.median(run["seconds"] for run in runs[way]), 4),
            "memory_in_file_sizes": round(statistics.median(run["bytes"] for run in runs[way]) / size, 3),
        }
        for way in WAYS
    }
    ratios = [eagle["seconds"] / read["seconds"] for eagle, read in zip(runs["eagle"], runs["read"], strict=True)]
    result["eagle_over_read"] = round(statistics.median(ratios), 3)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each way (default: 7)")
    parser.add_argument("--hidden-size", type=int, default=3072, help="width of the head (default: 3072, 0.4 GB)")
    parser.add_argument("--cached-only", action="store_true", help="leave out the runs without the page cache")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--measure", nargs=3, metavar=("WAY", "FOLDER", "TINY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable_progress_bar()
    if args.measure:
        way, folder, tiny = args.measure
        print(json.dumps(measure(way, Path(folder), Path(tiny))))
        return 0
    with tempfile.TemporaryDirectory() as root:
        folder, tiny = Path(root) / "head", Path(root) / "tiny"
        write_head(folder, args.hidden_size)
        write_head(tiny, 64)
        size = (folder / "model.safetensors").stat().st_size
        result = {
            "file_bytes": size,
            "repeats": args.repeats,
            "torch": torch.__version__,
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
            "cached": run_all(folder, tiny, args.repeats, is_cold=False),
        }
        if not args.cached_only:
            result["not_cached"] = run_all(folder, tiny, args.repeats, is_cold=True)
    print(f"{size / 1e9:.2f} GB, {args.repeats} runs of each, medians; load average {os.getloadavg()[0]:.1f}")
    for cache in ("cached",) if args.cached_only else ("cached", "not_cached"):
        for way in WAYS:
            row = result[cache][way]
            print(f"{cache:<11} {way:<6} {row['seconds']:8.3f} s   memory {row['memory_in_file_sizes']:.2f} x file")
        print(f"{cache:<11} eagle / read: {result[cache]['eagle_over_read']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
