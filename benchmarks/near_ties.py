"""
How often half precision changes a greedy text, with the draft and without one.

A forward over many nodes rounds differently from one over a single token. So does plain `generate` at another batch
size, here two copies of a prompt in one batch instead of one: that is the noise floor. Where a text leaves that of
plain `generate`, the target's two best tokens must be a near tie; how near is given in units of the dtype's resolution
at the largest logit.

    python benchmarks/near_ties.py
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from speed import ROOT, demo_pair, encode
from transformers import AutoModelForCausalLM, PreTrainedModel


@torch.no_grad()
def gap(target: PreTrainedModel, text: torch.Tensor, other: torch.Tensor) -> float | None:
    """
    Distance of the target's two best logits where two texts first differ, in units of resolution; `None` if they are
    equal.

    Args:
        target: The target, which continues the common beginning.
        text, other (`torch.LongTensor` of shape `(length,)`): The texts, prompt included.
    """
    length = min(len(text), len(other))
    differences = (text[:length] != other[:length]).nonzero()
    if not len(differences):
        return None
    logits = target(text[None, : int(differences[0])]).logits[0, -1].float()
    best = logits.topk(2).values
    return float((best[0] - best[1]) / (torch.finfo(target.dtype).eps * logits.abs().max()))


def compare(
    target: PreTrainedModel, draft: PreTrainedModel, prompts: list[torch.Tensor], **kwargs: Any
) -> dict[str, list[float]]:
    """Gaps of all greedy texts that differ from plain `generate` on a single prompt, by what was different."""
    gaps: dict[str, list[float]] = {"with the draft": [], "plain, two copies": []}
    for prompt in prompts:
        kwargs = {"do_sample": False} | kwargs
        plain = target.generate(prompt, **kwargs)[0]
        others = {
            "with the draft": target.generate(prompt, assistant_model=draft, **kwargs)[0],
            "plain, two copies": target.generate(prompt.repeat(2, 1), **kwargs)[0],
        }
        for name, other in others.items():
            found = gap(target, plain, other)
            if found is not None:
                gaps[name].append(found)
    return gaps


def main() -> None:
    """Print a line per dtype and comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", default=ROOT / "benchmarks" / "held_out_prompts.jsonl")
    parser.add_argument("--new-tokens", type=int, default=64)
    args = parser.parse_args()
    _, draft, tokenizer = demo_pair()
    prompts = [encode(tokenizer, json.loads(line)["prompt"]) for line in Path(args.prompts).read_text().splitlines()]
    print("dtype | comparison | texts | different | largest gap in units of resolution")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        target = AutoModelForCausalLM.from_pretrained(ROOT / "hub_cards" / "demo-llama-10m", dtype=dtype).eval()
        for name, found in compare(target, draft, prompts, max_new_tokens=args.new_tokens).items():
            largest = f"{max(found):.2f}" if found else "-"
            print(f"{str(dtype).removeprefix('torch.')} | {name} | {len(prompts)} | {len(found)} | {largest}")


if __name__ == "__main__":
    main()
