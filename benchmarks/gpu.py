"""What a step costs on one GPU, and what that leaves of a speedup. Run piece by piece, ten minutes each at most:

    python benchmarks/gpu.py cost  --size 8b --json cost-8b.json    # step and its parts, launches
    python benchmarks/gpu.py speed --size 8b --json speed-8b.json   # tokens/s against plain, eager and compiled
    python benchmarks/gpu.py cost  --size 1b --json cost-1b.json
    python benchmarks/gpu.py speed --size 1b --json speed-1b.json
    python benchmarks/gpu_training.py --output pair                 # again until it says that the pair is trained
    python benchmarks/gpu.py speed --pair pair --json speed-trained.json

Targets of 8B and 1B shape (Llama 3.1 and 3.2) have random weights in bfloat16, and so have their heads: what a forward
costs does not depend on the weights. Their acceptance is injected: in every verification a path of the tree is made
the target's choice, to a depth that is drawn so that the acceptance length is about `--tau`. The text is then of no
meaning, all costs are real, and the acceptance length that was reached is in the result. With `--pair`, a trained
target and head are measured as they are, and the share of tokens that equal plain generation's is in the result.

`--tiny` runs every piece on a CPU with models of no size, to test this script.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from conditions import conditions
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from eagle_hf import DraftOptions, DraftTree, EagleDraftModel
from eagle_hf.evaluation.profiling import OperatorCount
from eagle_hf.target.target import Target, Verified
from eagle_hf.training import new_head


SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 8192,
    },
}  # fmt: skip
TREES = {
    "59 nodes, depth 8, width 10": DraftOptions(num_assistant_tokens=59, draft_depth=8, draft_width=10),
    "15 nodes, depth 5, width 4": DraftOptions(num_assistant_tokens=15, draft_depth=5, draft_width=4),
}


def random_pair(size: str, device: str) -> tuple[Any, EagleDraftModel]:
    """A random target of this shape and a random head, with a draft vocabulary of 32,000 tokens as published ones."""
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    config = LlamaConfig(**SHAPES[size], bos_token_id=1, eos_token_id=2, pad_token_id=0, rope_theta=5e5)
    with torch.device(device):
        target = LlamaForCausalLM._from_config(config, dtype=dtype).eval()
        draft = new_head(target, torch.arange(min(32000, config.vocab_size // 4)))
    draft = draft.to(device=device, dtype=dtype).eval()
    # Sure of itself, as a trained head is: without any preference its trees would be two levels deep.
    draft.lm_head.weight.data *= 50
    return target, draft


def trained_pair(folder: Path, device: str) -> tuple[Any, EagleDraftModel]:
    """What `gpu_training.py` has trained."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    target = AutoModelForCausalLM.from_pretrained(folder / "target", dtype=dtype, device_map=device).eval()
    return target, EagleDraftModel.from_pretrained(folder / "head", dtype=dtype, device_map=device)


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def timed(target: Any, inputs: torch.Tensor, new_tokens: int, **options: Any) -> tuple[float, Any]:
    synchronize(target.device.type)
    start = time.perf_counter()
    output = target.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new_tokens, do_sample=False, eos_token_id=None,
        pad_token_id=0, return_dict_in_generate=True, **options,
    )  # fmt: skip
    synchronize(target.device.type)
    return time.perf_counter() - start, output


# ---------------------------------------------------------------------- injected acceptance


def continuation_probability(tau: float, depth: int) -> float:
    """How likely each further node has to be accepted for an acceptance length of `tau` in trees of this depth."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 + sum(middle**d for d in range(1, depth + 1)) < tau else (low, middle)
    return low


def inject(tree: DraftTree, logits: torch.Tensor, probability: float, dice: random.Random) -> torch.Tensor:
    """
    Logits under which the target chooses the path to the first of the deepest nodes, as far as the dice say. A handful
    of operators, none of which waits for the device.
    """
    depths = [next((d for d in range(tree.max_depth) if dice.random() >= probability), tree.max_depth) for _ in logits]
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    deepest = tree.depths.argmax(dim=1)
    on_path = tree.ancestor_mask()[rows[:, 0], deepest] & (tree.depths > 0)
    on_path &= tree.depths <= torch.tensor(depths, device=logits.device)[:, None]
    bonus = on_path.to(logits.dtype) * 1e4
    return logits.index_put((rows, tree.parents.clamp(min=0), tree.tokens), bonus, accumulate=True)


@contextlib.contextmanager
def injected_acceptance(tau: float | None, depth: int, seed: int = 0) -> Iterator[None]:
    """Let every verification accept so much that `tau` tokens are emitted on average; nothing is done for `None`."""
    if tau is None:
        yield
        return
    verify, dice, probability = Target.verify, random.Random(seed), continuation_probability(tau, depth)

    @functools.wraps(verify)
    def injected(self: Target, tree: DraftTree) -> Verified:
        verified = verify(self, tree)
        return dataclasses.replace(verified, logits=inject(verified.tree, verified.logits, probability, dice))

    Target.verify = injected  # type: ignore[method-assign]
    try:
        yield
    finally:
        Target.verify = verify  # type: ignore[method-assign]


# ---------------------------------------------------------------------- what is counted


def launches(device: str, call: Callable[[], Any]) -> dict[str, int]:
    """Kernels and synchronisations of a call; on a CPU operators that are not views."""
    if device == "cpu":
        with OperatorCount() as count:
            call()
        return {"operators": count.number}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    counts = {"kernels": 0, "graphs": 0, "synchronisations": 0}
    for event in profiler.events():
        counts["kernels"] += event.name in ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel")
        counts["graphs"] += event.name == "cudaGraphLaunch"
        counts["synchronisations"] += event.name in ("cudaStreamSynchronize", "cudaEventSynchronize")
    return counts


@contextlib.contextmanager
def timed_verification(device: str) -> Iterator[list[float]]:
    """Times of the target's forwards over trees, each between two synchronisations."""
    verify, seconds = Target.verify, list[float]()

    @functools.wraps(verify)
    def timed_verify(self: Target, tree: DraftTree) -> Verified:
        synchronize(device)
        start = time.perf_counter()
        verified = verify(self, tree)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        return verified

    Target.verify = timed_verify  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Target.verify = verify  # type: ignore[method-assign]


def ways_of_generating(device: str) -> dict[str, dict[str, Any]]:
    """Eager; and compiled, with a cache of fixed size."""
    return {"eager": {}, "compiled": {"cache_implementation": "static"}}


def attempt(call: Callable[[], Any]) -> Any:
    """The result, or what `generate` says against it."""
    try:
        return call()
    except (ValueError, NotImplementedError) as refusal:
        return {"refused": str(refusal)}


# ---------------------------------------------------------------------- pieces


def cost(target: Any, draft: EagleDraftModel, args: argparse.Namespace) -> dict[str, Any]:
    """What a plain token and a step cost, and what of a step is not the target's own forward over the tree."""
    device, new_tokens = target.device.type, args.new_tokens
    prompt = prompts(target, 1, args)[0]

    def plain(**options: Any) -> dict[str, Any]:
        timed(target, prompt, new_tokens, **options)  # compiles and warms up
        seconds = [timed(target, prompt, new_tokens, **options)[0] for _ in range(args.repeats)]
        few = new_tokens // 4
        counts = launches(device, lambda: timed(target, prompt, few, **options))
        per_token = {name: round(value / few, 1) for name, value in counts.items()}
        return {"ms_per_token": round(1000 * statistics.median(seconds) / new_tokens, 3), "per_token": per_token}

    def step(options: DraftOptions, **more: Any) -> dict[str, Any]:
        draft.generation_config = options.to_generation_config()
        more |= {"assistant_model": draft}
        with injected_acceptance(args.tau, options.draft_depth):
            start = time.perf_counter()
            timed(target, prompt, new_tokens, **more)
            warm_up = time.perf_counter() - start
            steps = []
            for _ in range(args.repeats):
                seconds, output = timed(target, prompt, new_tokens, **more)
                steps.append(seconds / output.target_forwards)
            with timed_verification(device) as verifications:
                _, output = timed(target, prompt, new_tokens, **more)
            counts = launches(device, lambda: timed(target, prompt, new_tokens, **more))
        step_ms, verify_ms = (1000 * statistics.median(values) for values in (steps, verifications))
        return {
            "step_ms": round(step_ms, 3),
            "verify_ms": round(verify_ms, 3),
            "overhead_above_verification": round(step_ms / verify_ms - 1, 3),
            "acceptance_length": round(statistics.mean(output.acceptance_lengths[0]), 3),
            "per_step": {name: round(value / output.target_forwards, 1) for name, value in counts.items()},
            "first_call_s": round(warm_up, 2),
        }

    result: dict[str, Any] = {}
    for way, options in ways_of_generating(device).items():
        result[way] = {"plain": attempt(lambda options=options: plain(**options)), "trees": {}}
        for name, tree in TREES.items():
            figures = attempt(lambda tree=tree, options=options: step(tree, **options))
            if "step_ms" in figures and "ms_per_token" in result[way]["plain"]:
                figures["step_in_plain_tokens"] = round(figures["step_ms"] / result[way]["plain"]["ms_per_token"], 3)
            result[way]["trees"][name] = figures
            print(way, name, json.dumps(figures), flush=True)
    return result


def speed(target: Any, draft: EagleDraftModel, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of EAGLE against plain generation, eager and compiled; ways alternate."""
    device, result = target.device.type, {}
    tau = None if args.pair else args.tau
    ways = ways_of_generating(device)
    for size in args.batch_sizes:
        inputs = prompts(target, size, args)
        runs: dict[str, Callable[[], tuple[float, Any]]] = {}
        for way, options in ways.items():

            def plain(options: dict[str, Any] = options, inputs: list[torch.Tensor] = inputs) -> tuple[float, Any]:
                return timed(target, inputs[0], args.new_tokens, **options)  # the prompts of this round

            runs[f"plain {way}"] = plain
            for name, tree in TREES.items():

                def eagle(
                    tree: DraftOptions = tree, options: dict[str, Any] = options, inputs: list[torch.Tensor] = inputs
                ) -> tuple[float, Any]:
                    draft.generation_config = tree.to_generation_config()
                    with injected_acceptance(tau, tree.draft_depth):
                        return timed(target, inputs[0], args.new_tokens, assistant_model=draft, **options)

                runs[f"EAGLE {way}, {name}"] = eagle
        first = {name: attempt(run) for name, run in runs.items()}  # compiles and warms up
        figures: dict[str, dict[str, Any]] = {
            name: value if isinstance(value, dict) else {"seconds": [], "taus": []} for name, value in first.items()
        }
        for number in range(args.repeats):
            inputs[0] = inputs[1 + number % (len(inputs) - 1)]
            expected = None
            for name, run in runs.items():
                if "refused" in figures[name]:
                    continue
                seconds, output = run()
                figures[name]["seconds"].append(seconds)
                if name.startswith("plain"):
                    expected = output.sequences if expected is None else expected
                else:
                    lengths = sum(output.acceptance_lengths, [])
                    figures[name]["taus"].append(statistics.mean(lengths))
                    if tau is None and expected is not None:
                        figures[name].setdefault("equal_tokens", []).append(
                            round((output.sequences == expected).float().mean().item(), 4)
                        )
        for name, values in figures.items():
            if "refused" not in values:
                tokens = size * args.new_tokens
                values["tokens_per_second"] = round(tokens / statistics.median(values.pop("seconds")), 1)
                taus = values.pop("taus")
                if taus:
                    values["acceptance_length"] = round(statistics.mean(taus), 3)
            print(f"batch {size}", name, json.dumps(values), flush=True)
        result[f"batch {size}"] = figures
    return result


def prompts(target: Any, batch_size: int, args: argparse.Namespace) -> list[torch.Tensor]:
    """Batches of prompts: random tokens, or for a trained pair the beginnings of texts that it was not trained on."""
    generator = torch.Generator().manual_seed(0)
    if args.pair:
        tokenizer = AutoTokenizer.from_pretrained(args.pair / "target")
        texts = json.loads((args.pair / "held_out.json").read_text())
        ids = [tokenizer(text, add_special_tokens=False).input_ids[: args.prompt_length] for text in texts]
        rows = torch.tensor([row for row in ids if len(row) == args.prompt_length])
        batches = [rows[torch.randint(len(rows), (batch_size,), generator=generator)] for _ in range(4)]
    else:
        shape = (batch_size, args.prompt_length)
        batches = [torch.randint(3, target.config.vocab_size, shape, generator=generator) for _ in range(4)]
    return [batch.to(target.device) for batch in batches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=["cost", "speed"])
    parser.add_argument("--size", choices=["8b", "1b"], default="8b")
    parser.add_argument("--pair", type=Path, help="a trained pair, instead of a random one of a size")
    parser.add_argument("--tau", type=float, default=3.5, help="acceptance length to inject")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt-length", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with models of no size")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("No GPU was found. `--tiny` runs this script on a CPU, with models of no size.")
    logging.disable_progress_bar()
    device = "cpu" if args.tiny else "cuda"
    pair = trained_pair(args.pair, device) if args.pair else random_pair("tiny" if args.tiny else args.size, device)
    shape = {name: getattr(pair[0].config, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    result = conditions() | {
        "piece": args.piece, "target": shape | {"dtype": str(pair[0].dtype)}, "is_tiny": args.tiny,
        "acceptance": "of the trained head" if args.pair and args.piece == "speed" else f"injected, tau {args.tau}",
        "result": {"cost": cost, "speed": speed}[args.piece](*pair, args),
    }  # fmt: skip
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
