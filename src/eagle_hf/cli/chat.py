"""Chat with a target and its EAGLE draft in the terminal, with the commands of `transformers chat`."""

import argparse
import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_threads, set_threads
from .demo import DRAFT, TARGET, own_folder
from .target_options import add_target_options, target_options


if TYPE_CHECKING:
    from transformers import GenerationConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "generate_flags", nargs="*", metavar="NAME=VALUE", help="options of generate, such as max_new_tokens=100"
    )
    parser.add_argument("--target", help="target: repository id or folder (default: the demo's)")
    parser.add_argument("--draft", help="EAGLE head: repository id or folder (default: the demo's)")
    parser.add_argument("--user", help="name of the user (default: that of the system)")
    parser.add_argument("--system_prompt", help="system prompt")
    parser.add_argument("--save_folder", type=Path, default=Path("chat_history"), help="where !save writes")
    parser.add_argument("--examples_path", type=Path, help="YAML file of examples: a mapping of names to {text: ...}")
    parser.add_argument("--generation_config", help="repository id, folder or file of a generation config")
    parser.add_argument("--seed", type=int, help="seed for sampling")
    add_threads(parser)
    add_target_options(parser)


def run(args: argparse.Namespace) -> int:
    """Chats until `!exit`, or the end of the input."""
    import torch
    from rich.console import Console
    from transformers.utils import logging

    from .chat_session import EXAMPLES, ChatSession, parse_flags, read_examples
    from .pair import Pair

    logging.disable_progress_bar()
    set_threads(args)
    flags = parse_flags(args.generate_flags)
    examples = read_examples(args.examples_path) if args.examples_path else EXAMPLES
    pair = Pair.load(args.target or own_folder(TARGET), args.draft or own_folder(DRAFT), **target_options(args))
    if args.generation_config:
        pair.target.generation_config = _load_generation_config(args.generation_config)
    session = ChatSession(
        pair,
        Console(highlight=False),
        name=Path(args.target or TARGET).name,
        user=args.user or getpass.getuser(),
        system_prompt=args.system_prompt,
        save_folder=args.save_folder,
        examples=examples,
    )
    session.set_flags(flags)
    if args.seed is not None:
        torch.manual_seed(args.seed)
    session.run()
    return 0


def _load_generation_config(name: str) -> "GenerationConfig":
    from transformers import GenerationConfig

    if name.endswith(".json"):
        return GenerationConfig.from_pretrained(str(Path(name).parent), Path(name).name)
    return GenerationConfig.from_pretrained(name)
