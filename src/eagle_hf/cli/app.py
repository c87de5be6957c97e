"""A page in the browser: plain generate and EAGLE side by side, with coloured text and draft trees."""

import argparse

from .common import add_threads, set_threads
from .demo import DRAFT, TARGET, own_folder
from .target_options import add_target_options, target_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--target", help="target: repository id or folder (default: the demo's)")
    parser.add_argument("--draft", help="EAGLE head: repository id or folder (default: the demo's)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="port (default: 7860)")
    add_threads(parser)
    add_target_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serves the page until interrupted."""
    from transformers.utils import logging

    from .app_page import make_page
    from .pair import Pair

    logging.disable_progress_bar()
    set_threads(args)
    pair = Pair.load(args.target or own_folder(TARGET), args.draft or own_folder(DRAFT), **target_options(args))
    make_page(pair).launch(server_name=args.host, server_port=args.port)
    return 0
