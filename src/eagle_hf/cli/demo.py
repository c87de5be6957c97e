"""Show EAGLE at work, offline: the demo pair with and without its draft, side by side."""

import argparse
from pathlib import Path

from . import values
from .common import add_threads, set_threads
from .target_options import add_target_options, target_options


TARGET, DRAFT = "demo-llama-10m", "EAGLE3-demo-llama-10m"
PROMPTS = (
    "Write a function to find the sum of all numbers in a list.\nUse Python.",
    "Tom has 12 apples. He buys 3 bags with 8 apples each and gives 10 apples away. How many apples does he have now?",
    "What is the capital of France?",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--target", help="another target: repository id or folder (default: the demo's)")
    parser.add_argument("--draft", help="another EAGLE head: repository id or folder (default: the demo's)")
    parser.add_argument(
        "--max_new_tokens", type=values.integer(1), default=160, help="most tokens per prompt (default: 160)"
    )
    parser.add_argument("--temperature", type=values.temperature, default=0.0, help="0 is greedy (default: 0)")
    add_threads(parser, default=2)
    add_target_options(parser)


def run(args: argparse.Namespace) -> int:
    """Generates for every prompt with and without the draft. A difference between both texts is a failure."""
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel
    from transformers.utils import logging

    from ..draft_options import DraftOptions
    from ..visualization import draw_text, draw_tree
    from .figures import speed_line
    from .pair import Pair

    console = Console()
    set_threads(args)
    logging.disable_progress_bar()
    pair = Pair.load(args.target or own_folder(TARGET), args.draft or own_folder(DRAFT), **target_options(args))
    pair.draft.generation_config.output_draft_trees = True
    options = {"max_new_tokens": args.max_new_tokens, "do_sample": args.temperature > 0}
    if args.temperature > 0:
        options |= {"temperature": args.temperature, "top_k": 0}
    sizes = [f"{model.num_parameters() / 1e6:.1f}M" for model in (pair.target, pair.draft)]
    console.print(
        f"Target of {sizes[0]} parameters, draft of {sizes[1]}, "
        f"{args.threads} threads, {'sampling' if args.temperature else 'greedy'}. "
        "Drafted tokens are green and underlined."
    )

    warm_up = pair.encode(PROMPTS[0])
    for with_draft in (False, True):
        pair.run(warm_up, with_draft, max_new_tokens=16, do_sample=False)
    plain_runs, eagle_runs = [], []
    for prompt in PROMPTS:
        input_ids = pair.encode(prompt)
        plain, eagle = (pair.run(input_ids, with_draft, **options) for with_draft in (False, True))
        plain_runs.append(plain)
        eagle_runs.append(eagle)
        console.rule()
        console.print(prompt, style="bold", highlight=False)
        texts = (
            draw_text(pair.tokenizer, plain.tokens),
            draw_text(pair.tokenizer, eagle.tokens, eagle.acceptance_lengths),
        )
        panels = [
            Panel(text, title=title) for text, title in zip(texts, ("plain generate", "with the draft"), strict=True)
        ]
        console.print(Columns(panels, width=console.width // 2 - 1, expand=True))
        same = "The same tokens" if plain.tokens == eagle.tokens else "DIFFERENT TOKENS"
        console.print(f"{same}; {speed_line([plain], [eagle])}")

    console.rule()
    console.print(
        "A draft tree, with the probability that the draft gives to each path; ✓ marks what the target accepted."
    )
    depth = DraftOptions.from_generation_config(pair.draft.generation_config).max_depth
    deepest = max((run.deepest_step(depth) for run in eagle_runs), key=lambda step: len(step[1]) if step else 0)
    if deepest is not None:
        console.print(draw_tree(deepest[0], pair.tokenizer, deepest[1]))
    equal = all(plain.tokens == eagle.tokens for plain, eagle in zip(plain_runs, eagle_runs, strict=True))
    console.rule()
    console.print(f"All {sum(len(run.tokens) for run in plain_runs)} tokens equal: {'yes' if equal else 'NO'}")
    console.print(speed_line(plain_runs, eagle_runs))
    return 0 if equal else 1


def own_folder(name: str) -> str:
    """Returns the folder of a model of ours, in a clone of the repository."""
    folder = Path(__file__).parents[3] / "hub_cards" / name
    if not folder.is_dir():
        raise OSError(
            f"The demo pair is part of the repository, and {folder} does not exist. Run the demo in a clone of the "
            "repository, or name a pair with --target and --draft."
        )
    return str(folder)
