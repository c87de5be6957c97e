"""Show EAGLE at work, offline: the demo pair with and without its draft, side by side."""

import argparse
import shutil
import textwrap
from pathlib import Path

import torch
from transformers.utils import logging

from .pair import Pair, Run
from .render import colored_text, speed_line, tree_of_best_step, uses_color


TARGET, DRAFT = "demo-llama-7m", "EAGLE3-demo-llama-7m"
PROMPTS = (
    "Write a function to find the sum of squares of all numbers in a list.\nUse Python.",
    "Tom has 12 apples. He buys 3 bags with 8 apples each and gives 10 apples away. How many apples does he have now?",
    "What is a good way to learn to play the guitar?",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--target", help="another target: repository id or folder (default: the demo's)")
    parser.add_argument("--draft", help="another EAGLE head: repository id or folder (default: the demo's)")
    parser.add_argument("--max-new-tokens", type=int, default=160, help="most tokens per prompt (default: 160)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")


def run(args: argparse.Namespace) -> int:
    """Generate for every prompt with and without the draft. A difference between both texts is a failure."""
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    pair = Pair.load(args.target or _own(TARGET), args.draft or _own(DRAFT))
    pair.draft.generation_config.output_draft_trees = True
    options = {"max_new_tokens": args.max_new_tokens, "do_sample": args.temperature > 0}
    if args.temperature > 0:
        options |= {"temperature": args.temperature, "top_k": 0}
    size = f"{pair.target.num_parameters() / 1e6:.1f}M parameters, draft {pair.draft.num_parameters() / 1e6:.1f}M"
    print(f"Target: {size}; {args.threads} threads; {'sampling' if args.temperature else 'greedy'}.\n")

    warm_up = pair.encode(PROMPTS[0])
    for with_draft in (False, True):
        pair.run(warm_up, with_draft, max_new_tokens=16, do_sample=False)
    plain_runs, eagle_runs, color = [], [], uses_color()
    for prompt in PROMPTS:
        input_ids = pair.encode(prompt)
        plain_runs.append(pair.run(input_ids, with_draft=False, **options))
        eagle_runs.append(pair.run(input_ids, with_draft=True, **options))
        _print_prompt(pair, prompt, plain_runs[-1], eagle_runs[-1], color)
    print("A draft tree, with the probability that the draft gives to each path; ✓ marks what the target accepted:\n")
    best = max(eagle_runs, key=lambda eagle: max(eagle.acceptance_lengths, default=0))
    print("\n".join(tree_of_best_step(pair.tokenizer, best, color)))
    equal = all(a.tokens == b.tokens for a, b in zip(plain_runs, eagle_runs, strict=True))
    print(f"\nAll {sum(len(r.tokens) for r in plain_runs)} tokens equal: {'yes' if equal else 'NO'}")
    print(speed_line(plain_runs, eagle_runs))
    return 0 if equal else 1


def _own(name: str) -> str:
    folder = Path(__file__).parents[3] / "hub_cards" / name
    if not folder.is_dir():
        raise OSError(
            f"The demo pair is part of the repository, and {folder} does not exist. Run the demo in a clone of the "
            "repository, or name a pair with --target and --draft."
        )
    return str(folder)


def _print_prompt(pair: Pair, prompt: str, plain: Run, eagle: Run, color: bool) -> None:
    print("\n".join(f"> {line}" for line in prompt.splitlines()) + "\n")
    width = (min(shutil.get_terminal_size((120, 24)).columns, 160) - 3) // 2
    left = _wrap(colored_text(pair.tokenizer, plain, color=False), width)
    right = _wrap(colored_text(pair.tokenizer, eagle, color=False), width)
    print(f"{'plain generate':{width}} | with the draft")
    print(f"{'-' * width} | {'-' * width}")
    for i in range(max(len(left), len(right))):
        print(f"{left[i] if i < len(left) else '':{width}} | {right[i] if i < len(right) else ''}")
    if color:
        print(f"\nDrafted tokens in green:\n{colored_text(pair.tokenizer, eagle, color)}")
    equal = "the same tokens" if plain.tokens == eagle.tokens else "DIFFERENT TOKENS"
    print(f"\n{equal}; {speed_line([plain], [eagle])}\n")


def _wrap(text: str, width: int) -> list[str]:
    lines = []
    for line in text.split("\n"):
        lines += textwrap.wrap(line, width, drop_whitespace=False, replace_whitespace=False) or [""]
    return lines
