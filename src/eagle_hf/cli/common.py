"""Options that several commands have, each declared once, and both spellings of all of them."""

import argparse

from . import values


def add_threads(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """Adds `--threads` to the options of a command."""
    said = "" if default is None else f" (default: {default})"
    parser.add_argument("--threads", type=values.integer(1), default=default, help=f"CPU threads{said}")


def set_threads(args: argparse.Namespace) -> None:
    """Uses as many CPU threads as `--threads` says, if it says so."""
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)


def add_dtype(parser: argparse._ActionsContainer, *other_names: str, help: str, default: str | None = None) -> None:
    """Adds `--dtype`, also by other names, to the options of a command."""
    parser.add_argument("--dtype", *other_names, type=values.dtype, default=default, help=help)


def accept_both_spellings(parser: argparse.ArgumentParser) -> None:
    """
    Accepts every option of a command with underscores, as the arguments of `generate` and of the trainer are spelt, and
    with hyphens. Help shows the spelling that it was declared with: underscores.
    """
    for option, action in list(parser._option_string_actions.items()):
        for twin in (option[2:].replace("_", "-"), option[2:].replace("-", "_")):
            if option.startswith("--"):
                parser._option_string_actions.setdefault(f"--{twin}", action)
