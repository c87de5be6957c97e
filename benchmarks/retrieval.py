"""What retrieved branches gain and cost: `make bench-retrieval`.

Summaries and code to be edited, from `copying_prompts.jsonl`, greedily, with the demo pair. The demo target is far too
small to do as it is told; so there are two measurements:

* `own`: what the target writes itself;
* `given`: the answers of the file. The target's logits are replaced so that it writes them: every forward is computed
  as usual, features and costs are real, only the text is given. This is what a model that follows such prompts writes;
  the head, trained on what the demo target writes, drafts worse than on a text of its own.

Plain generation, the head alone and the head with retrieval alternate; tokens are checked to be equal. Prompts without
an `answer` (`--prompts benchmarks/held_out_prompts.jsonl`) are measured with `own` text only.

    python benchmarks/retrieval.py [--retrieval 16] [--json FILE]
"""

import argparse
import contextlib
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from conditions import Timing, clock, conditions
from speed import ROOT, demo_pair, encode
from transformers.utils import logging

from eagle_hf.target.probe import can_verify_trees


@contextlib.contextmanager
def told_to_write(target: Any, prompt_len: int, answer: list[int]) -> Iterator[None]:
    """Let the target write this answer: at every position, logits that prefer the answer's next token."""
    tokens = torch.tensor([*answer, target.config.eos_token_id])

    def replace(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        positions = kwargs["position_ids"][:, -output.logits.shape[1] :]
        following = tokens[(positions + 1 - prompt_len).clamp(0, len(tokens) - 1)]
        output.logits = torch.full_like(output.logits, -20.0).scatter_(2, following[..., None], 0.0)
        return output

    hook = target.register_forward_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def read_prompts(args: argparse.Namespace) -> list[dict[str, str]]:
    rows = [json.loads(line) for line in args.prompts.read_text().splitlines()]
    return rows[:: args.every]


def measure(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    target, draft, tokenizer = demo_pair()
    can_verify_trees(target)  # found out on its real logits
    ways = {"head": 0, "head and retrieval": args.retrieval}
    sampling = (
        {"do_sample": True, "temperature": args.temperature, "top_k": 0} if args.temperature else {"do_sample": False}
    )
    rows = read_prompts(args)
    ratios: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in ways}
    lengths: dict[str, dict[str, list[int]]] = {way: defaultdict(list) for way in ways}
    for repeat in range(args.repeats):
        seconds: dict[str | None, dict[str, float]] = {way: defaultdict(float) for way in (None, *ways)}
        for row in rows:
            ids = encode(tokenizer, row["prompt"])
            answer = tokenizer(row.get("answer", ""), add_special_tokens=False).input_ids[: args.new_tokens]
            is_told = kind == "given"
            with told_to_write(target, ids.shape[1], answer) if is_told else contextlib.nullcontext():
                for way in (None, *ways):
                    if way is not None:
                        draft.generation_config.draft_retrieval = ways[way]
                    torch.manual_seed(repeat)
                    start = clock()
                    output = target.generate(
                        ids, attention_mask=torch.ones_like(ids), max_new_tokens=args.new_tokens, **sampling,
                        assistant_model=None if way is None else draft, return_dict_in_generate=True,
                    )  # fmt: skip
                    seconds[way][row["domain"]] += clock() - start
                    if way is None:
                        plain = output.sequences
                    elif not torch.equal(output.sequences, plain):
                        raise SystemExit("tokens differ from plain generate: nothing is reported")
                    elif repeat == 0:
                        lengths[way][row["domain"]] += output.acceptance_lengths[0]
        for way in ways:
            for domain, value in seconds[way].items():
                ratios[way][domain].append(seconds[None][domain] / value)
    return {
        domain: {
            way: {
                "mean_acceptance_length": round(statistics.mean(lengths[way][domain]), 3),
                "speedup": round(statistics.median(ratios[way][domain]), 3),
            }
            for way in ways
        }
        for domain in dict.fromkeys(row["domain"] for row in rows)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrieval", type=int, default=16, help="`draft_retrieval`")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=160, help="most tokens per prompt")
    parser.add_argument("--prompts", type=Path, default=ROOT / "benchmarks" / "copying_prompts.jsonl")
    parser.add_argument("--every", type=int, default=1, help="take every n-th prompt only")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="count processor time; for a machine that is shared")
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Timing.is_processor_time = args.cpu_time
    logging.disable_progress_bar()
    result = conditions() | {"draft_retrieval": args.retrieval}
    print(f"{'text':<7}{'prompts':<16}{'drafted by':<22}{'tokens per verification':>24}{'speedup':>9}")
    has_answers = all("answer" in row for row in read_prompts(args))
    for kind in ("given", "own") if has_answers else ("own",):
        result[kind] = measure(args, kind)
        for domain, ways in result[kind].items():
            for way, figures in ways.items():
                tau, speedup = figures["mean_acceptance_length"], figures["speedup"]
                print(f"{kind:<7}{domain:<16}{way:<22}{tau:>24.2f}{speedup:>9.2f}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
