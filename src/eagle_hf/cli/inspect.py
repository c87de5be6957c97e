"""Say what a head is and, with its target, measure whether it is read correctly."""

import argparse
import json
from pathlib import Path

from . import values
from .common import add_threads, set_threads
from .target_options import add_target_options, target_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("repo", help="EAGLE head: repository id or folder")
    parser.add_argument("--target", help="its target: repository id or folder; without it nothing is measured")
    parser.add_argument("--revision", help="revision of the head")
    parser.add_argument("--prompt", action="append", help="measure on this prompt instead; may be repeated")
    parser.add_argument("--prompts", type=Path, help="measure on the lines of this file instead")
    parser.add_argument(
        "--max_new_tokens", type=values.integer(1), default=96, help="tokens of each answer (default: 96)"
    )
    parser.add_argument("--depth", type=values.integer(1), default=5, help="tokens of a chain (default: 5)")
    add_threads(parser)
    parser.add_argument("--json", type=Path, help="write the result to this file as well")
    parser.add_argument("--save", type=Path, help="save the head in its best reading to this folder, in our own layout")
    add_target_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the report. Where the published reading is not the best one, the status is 2."""
    from transformers.utils import logging

    from ..inspection import inspect_head
    from ..inspection.prompts import PROMPTS

    logging.disable_progress_bar()
    set_threads(args)
    prompts = list(args.prompt or ())
    if args.prompts:
        prompts += [line for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    inspection = inspect_head(
        args.repo,
        args.target,
        prompts=prompts or PROMPTS,
        max_new_tokens=args.max_new_tokens,
        depth=args.depth,
        target_options=target_options(args),
        revision=args.revision,
    )
    print(inspection)
    if args.json:
        args.json.write_text(json.dumps(inspection.to_dict(), indent=2) + "\n", encoding="utf-8")
    if args.save:
        inspection.load_best(revision=args.revision).save_pretrained(args.save)
    return 2 if inspection.is_read_rightly is False else 0
