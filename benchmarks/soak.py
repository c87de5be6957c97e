"""Whether memory stays flat over many calls: `make soak` generates a million tokens.

Tiny random models with drafts, round after round: greedy and sampled, single prompts and ragged batches, all kinds of
trees, with and without retrieval, a sliding window, processors that read the prefix, full results, a cache that goes on
over several turns, and calls that end in an exception. After a warm-up and every tenth of the way it prints

* the resident memory of the process,
* the number and bytes of live tensors,
* the objects that Python's collector tracks.

The verdict compares the end with the first half: no more live tensors, and resident memory and objects within
`--tolerance`. A leak of one tensor per call, or of a few bytes per token, does not pass.

    python benchmarks/soak.py [--tokens 1000000] [--json FILE]
"""

import argparse
import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from conditions import conditions
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from eagle_hf import DraftOptions, EagleConfig, EagleDraftModel
from eagle_hf.versions import CACHE


VOCAB_SIZE = 64


def tiny_pair(model_type: str, **extra: Any) -> tuple[Any, EagleDraftModel]:
    """A random target and a random head that fits it."""
    settings = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2,
    }  # fmt: skip
    target = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings, **extra)).eval()
    config = EagleConfig(
        vocab_size=VOCAB_SIZE, draft_vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48,
        num_attention_heads=4, num_key_value_heads=2, feature_layer_ids=[0, 1, 2], initializer_range=0.3,
    )  # fmt: skip
    return target, EagleDraftModel(config).eval()


class Interruption(Exception):
    pass


class InterruptingStreamer(BaseStreamer):
    """Fails in the middle of a call, as a closed connection does."""

    def __init__(self, calls: int):
        self.left = calls

    def put(self, value: torch.Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interruption

    def end(self) -> None:
        pass


def scenarios(new_tokens: int, rows: int) -> Iterator[Callable[[], int]]:
    """Endless calls of `generate`; each returns how many tokens it yielded."""
    pairs = [tiny_pair("llama"), tiny_pair("mistral", sliding_window=16)]
    trees = [
        DraftOptions(num_assistant_tokens=12, draft_depth=4, draft_width=3),
        DraftOptions(num_assistant_tokens=12, draft_depth=4, draft_width=3, draft_retrieval=8),
        DraftOptions(draft_tree="auto", num_assistant_tokens=12, draft_depth=4, draft_width=4),
        DraftOptions(draft_tree="static"),
        DraftOptions(draft_tree="chain", num_assistant_tokens=4, draft_depth=4),
    ]
    kinds: list[dict[str, Any]] = [
        {"do_sample": False},
        {"do_sample": True, "top_k": 0},
        {"do_sample": False, "repetition_penalty": 1.2},
        {"do_sample": True, "return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    ]
    for (target, draft), batch_size, tree, options in itertools.cycle(
        itertools.product(pairs, (1, rows), trees, kinds)
    ):
        ids = torch.randint(3, VOCAB_SIZE, (batch_size, 12))
        mask = torch.ones_like(ids)
        mask[1::2, :5] = 0  # every other row is padded on the left

        def call(
            target: Any = target, draft: Any = draft, tree: Any = tree, options: Any = options, ids: Any = ids,
            mask: Any = mask, **more: Any,
        ) -> int:  # fmt: skip
            draft.generation_config = tree.to_generation_config()
            output = target.generate(
                ids, attention_mask=mask, assistant_model=draft, max_new_tokens=new_tokens, eos_token_id=None,
                pad_token_id=0, **options, **more,
            )  # fmt: skip
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            return sequences[:, ids.shape[1] :].numel()

        yield call
        if options["do_sample"]:
            continue

        def turns(target: Any = target, draft: Any = draft, ids: Any = ids, mask: Any = mask) -> int:
            cache, tokens = DynamicCache(config=target.config), 0
            for _ in range(3):
                output = target.generate(
                    ids, attention_mask=mask, assistant_model=draft, max_new_tokens=new_tokens // 4,
                    **{CACHE: cache}, do_sample=False, eos_token_id=None, pad_token_id=0,
                )  # fmt: skip
                tokens += output.shape[1] - ids.shape[1]
                ids, mask = output, torch.ones_like(output)
            return tokens

        def interrupted(call: Callable[..., int] = call) -> int:
            try:
                return call(streamer=InterruptingStreamer(new_tokens // 2))
            except Interruption:
                return 0

        if batch_size == 1:
            yield lambda turns=turns: turns(mask=torch.ones(1, 12, dtype=torch.long))
            yield interrupted


def resident_mib() -> float:
    """Resident memory of this process, in MiB; where the system does not say it, the peak so far."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def snapshot() -> dict[str, float]:
    gc.collect()
    objects = gc.get_objects()
    tensors = [o for o in objects if type(o) in (torch.Tensor, torch.nn.Parameter)]  # no stand-ins of compilers
    return {
        "resident_mib": round(resident_mib(), 1),
        "tensors": len(tensors),
        "tensor_mib": round(sum(t.numel() * t.element_size() for t in tensors) / 2**20, 3),
        "objects": len(objects),
    }


def soak(
    num_tokens: int, new_tokens: int, batch_size: int, warm_up_calls: int, leak: bool = False
) -> list[dict[str, float]]:
    """Snapshots: after the warm-up, and after every tenth of the tokens."""
    torch.manual_seed(0)
    calls, start = scenarios(new_tokens, batch_size), time.perf_counter()
    leaked = []
    for _ in range(warm_up_calls):
        next(calls)()
    tokens, count, snapshots = 0, 0, []
    for tenth in range(11):
        while tokens < tenth * num_tokens / 10:
            tokens += next(calls)()
            count += 1
            if leak:
                leaked.append(torch.zeros(1000))
        seconds = round(time.perf_counter() - start, 1)
        snapshots.append({"tokens": tokens, "calls": count, "seconds": seconds} | snapshot())
        print(
            "{tokens:>9,} tokens {calls:>6,} calls {seconds:>8.1f} s {resident_mib:>8.1f} MiB resident {tensors:>5} "
            "tensors {tensor_mib:>7.3f} MiB {objects:>8,} objects".format(**snapshots[-1]),
            flush=True,
        )
    return snapshots


def verdict(snapshots: list[dict[str, float]], tolerance: float) -> list[str]:
    """What grew: least of the last three snapshots above most of the first half. Nothing if memory is flat."""
    first, last = snapshots[: len(snapshots) // 2 + 1], snapshots[-3:]
    limits = {"tensors": 1.0, "tensor_mib": 1.0, "resident_mib": 1 + tolerance, "objects": 1 + tolerance}
    reasons = []
    for name, limit in limits.items():
        before, after = max(row[name] for row in first), min(row[name] for row in last)
        if after > before * limit:
            reasons.append(f"{name} grew from {before:,} to {after:,}")
    return reasons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--new-tokens", type=int, default=192, help="most tokens per row and call")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of every other call")
    parser.add_argument("--warm-up-calls", type=int, default=96, help="calls before the first snapshot")
    parser.add_argument("--tolerance", type=float, default=0.02, help="growth of memory and objects that is none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--leak", action="store_true", help="keep a tensor per call: the verdict has to find it")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    snapshots = soak(args.tokens, args.new_tokens, args.batch_size, args.warm_up_calls, args.leak)
    reasons = verdict(snapshots, args.tolerance)
    print("memory is flat" if not reasons else "memory GREW: " + "; ".join(reasons))
    if args.json is not None:
        result = conditions() | {"is_flat": not reasons, "snapshots": snapshots}
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if reasons:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
