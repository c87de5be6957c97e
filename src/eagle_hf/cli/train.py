"""
Train a head for a target.

    eagle-hf prepare --target TARGET --data conversations.jsonl --output answers.jsonl
    eagle-hf train --target TARGET --data answers.jsonl --output_dir runs/head

The first lets the target write the answers, which is what a head learns best from; see `eagle-hf prepare --help`.
Options can stand in a YAML file, `--config recipe.yaml`; command-line options override it. A run that was interrupted
goes on when it is started again. The folder `head` in the output folder is ready to be pushed.
"""

import argparse

from .target_options import add_target_options
from .training_options import make_parser


def argument_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's options, all of `TrainingArguments` among them."""
    parser = make_parser(add_help=False)
    add_target_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Prepares everything that can fail, trains, evaluates, and saves the head."""
    from .training_run import train

    return train(args)
