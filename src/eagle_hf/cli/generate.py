"""Generate text with a target and its EAGLE draft, from the Hub or from folders."""

import argparse
from typing import Any

from . import values
from .common import add_threads, set_threads
from .target_options import add_target_options, target_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("prompt", help="the prompt; the user's turn of a chat, if the target has a chat template")
    parser.add_argument("--target", required=True, help="target: repository id or folder")
    parser.add_argument("--draft", required=True, help="EAGLE head: repository id or folder")
    parser.add_argument(
        "--max_new_tokens", type=values.integer(1), default=256, help="most tokens to generate (default: 256)"
    )
    parser.add_argument("--temperature", type=values.temperature, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument(
        "--top_p", type=values.top_p, default=1.0, help="sample from the likeliest tokens up to this probability"
    )
    parser.add_argument(
        "--top_k",
        type=values.integer(0),
        default=0,
        help="sample from this many likeliest tokens (default: 0, all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for sampling (default: 0)")
    parser.add_argument(
        "--image",
        type=values.image,
        action="append",
        metavar="FILE",
        help="image of the prompt, for targets that read images; may be repeated",
    )
    parser.add_argument("--raw", action="store_true", help="do not apply the chat template")
    add_threads(parser)
    parser.add_argument("--compare", action="store_true", help="generate without the draft as well, and compare")
    parser.add_argument("--show_tree", action="store_true", help="draw the draft tree that was accepted deepest")
    add_target_options(parser)


def run(args: argparse.Namespace) -> int:
    """Streams the text, then prints the figures. With `--compare`, a difference between both texts is a failure."""
    from rich.console import Console
    from transformers import TextStreamer

    from ..visualization import draw_text, draw_tree
    from .figures import mean_acceptance_length, speed_line
    from .pair import Pair

    console = Console()
    set_threads(args)
    if missing := [str(path) for path in args.image or () if not path.is_file()]:
        raise FileNotFoundError(f"--image: there is no file {', '.join(missing)}.")
    options = target_options(args)
    processor = _load_processor(args.target, options) if args.image else None  # before any weights
    pair = Pair.load(args.target, args.draft, **options)
    pair.draft.generation_config.output_draft_trees = args.show_tree
    inputs: dict[str, Any] = {}
    if processor is None:
        input_ids = pair.encode(args.prompt, raw=args.raw)
    else:
        inputs = pair.encode_with_images(processor, args.prompt, args.image, raw=args.raw)
        input_ids = inputs.pop("input_ids")
    options = {"inputs": inputs, "max_new_tokens": args.max_new_tokens, "do_sample": args.temperature > 0}
    if args.temperature > 0:
        options |= {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}

    streamer = TextStreamer(pair.tokenizer, skip_prompt=True, skip_special_tokens=True)
    eagle = pair.run(input_ids, with_draft=True, seed=args.seed, streamer=streamer, **options)
    if args.show_tree and (step := eagle.deepest_step()):
        console.print(draw_tree(step[0], pair.tokenizer, step[1]))
    if not args.compare:
        console.print(
            f"\n{len(eagle.tokens)} tokens, {eagle.tokens_per_second:.1f} tokens/s, "
            f"{mean_acceptance_length([eagle]):.2f} tokens per verification"
        )
        return 0
    plain = pair.run(input_ids, with_draft=False, seed=args.seed, **options)
    eagle = pair.run(input_ids, with_draft=True, seed=args.seed, **options)  # again, now that everything is warm
    equal = plain.tokens == eagle.tokens
    if console.is_terminal:
        console.print("\nThe same, drafted tokens green and underlined:\n")
        console.print(draw_text(pair.tokenizer, eagle.tokens, eagle.acceptance_lengths))
    console.print(f"\ntokens equal to plain generate: {'yes' if equal else 'NO'} ({len(plain.tokens)} tokens)")
    console.print(speed_line([plain], [eagle]))
    return 0 if equal else 1


def _load_processor(target: str, options: dict[str, Any]) -> Any:
    """Returns the processor of a target that reads images; others are refused by name."""
    from ..loading.targets import check_target, file_options, load_processor, reads_images

    files = file_options(options)
    config = check_target(target, **files)
    if not reads_images(config):
        named_as = ", ".join(config.architectures or []) or type(config).__name__
        raise ValueError(
            f"--image: {target} is a {config.model_type} model ({named_as}), which reads no images. Leave --image out, "
            "or take a multimodal target; docs/multimodal.md names some."
        )
    return load_processor(target, **files)
