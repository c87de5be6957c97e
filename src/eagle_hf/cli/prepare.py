"""Let a target write the answers that its head will be trained on.

Prompts are taken from the data: conversations (`messages`), `prompt` with or without `completion`. Every turn of the
assistant is written again by the target, in order. What is written is one JSON line per answer, which
`eagle_hf.training.make_samples` takes as it is. An interrupted run goes on when the same command is given again.
"""

import argparse
import json

from .common import add_threads, set_threads
from .target_options import add_target_options, target_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--target", required=True, help="target: repository id or folder")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        help="prompts: .jsonl or .json files (also .gz, .xz), folders of them, or names of datasets on the Hub",
    )
    parser.add_argument("--output", required=True, help="file for the answers, such as answers.jsonl")
    parser.add_argument("--split", default="train", help="split of a dataset that has several (default: train)")
    parser.add_argument("--max_new_tokens", type=int, default=1024, help="most tokens of an answer (default: 1024)")
    parser.add_argument(
        "--max_length",
        type=int,
        help="most tokens of prompt and answer; longer prompts are left out (default: all positions of the target)",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        help="sample from the likeliest tokens up to this probability (default: 1, all)",
    )
    parser.add_argument("--top_k", type=int, default=0, help="sample from this many likeliest tokens (default: 0, all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling and of the order (default: 0)")
    parser.add_argument("--batch_size", type=int, default=8, help="conversations answered at once (default: 8)")
    parser.add_argument(
        "--turns",
        choices=["all", "first"],
        default="all",
        help="write every turn of the assistant again, or only the first of a conversation (default: all)",
    )
    parser.add_argument("--num_prompts", type=int, help="answer so many prompts, chosen at random (default: all)")
    parser.add_argument(
        "--max_malformed",
        type=float,
        default=0.01,
        help="share of malformed rows above which nothing is written (default: 0.01)",
    )
    parser.add_argument(
        "--chat_template_kwargs",
        type=json.loads,
        default={},
        metavar="JSON",
        help="variables of the chat template, such as '{\"enable_thinking\": false}'",
    )
    parser.add_argument("--draft", help="an EAGLE head that makes it faster: repository id or folder")
    add_threads(parser)
    add_target_options(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the answers, then prints what was written."""
    from ..head.modeling_eagle import EagleDraftModel
    from ..loading.targets import check_target, file_options, load_target, load_tokenizer
    from ..training.answers import AnswerSettings, write_answers

    set_threads(args)
    settings = AnswerSettings(
        max_new_tokens=args.max_new_tokens,
        max_length=args.max_length,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        batch_size=args.batch_size,
        turns=args.turns,
        num_prompts=args.num_prompts,
        chat_template_kwargs=args.chat_template_kwargs,
    )
    options = target_options(args)
    check_target(args.target, **file_options(options))
    draft = EagleDraftModel.from_pretrained(args.draft) if args.draft else None
    tokenizer = load_tokenizer(args.target, **file_options(options))
    target = load_target(args.target, **options)
    report = write_answers(
        target,
        tokenizer,
        args.data,
        args.output,
        settings,
        draft=draft,
        max_malformed=args.max_malformed,
        split=args.split,
    )
    print(report)
    return 0
