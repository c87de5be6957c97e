"""A page in the browser: plain generate and EAGLE side by side, with coloured text and draft trees."""

import argparse

import torch
from transformers.utils import logging

from .demo import DRAFT, TARGET, own_folder
from .pair import Pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--target", help="target: repository id or folder (default: the demo's)")
    parser.add_argument("--draft", help="EAGLE head: repository id or folder (default: the demo's)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="port (default: 7860)")
    parser.add_argument("--dtype", default="auto", help="dtype of the target, such as bfloat16 (default: auto)")
    parser.add_argument("--threads", type=int, help="CPU threads")


def run(args: argparse.Namespace) -> int:
    """Serve the page until interrupted."""
    from .app_page import make_page

    logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    pair = Pair.load(args.target or own_folder(TARGET), args.draft or own_folder(DRAFT), dtype=args.dtype)
    make_page(pair).launch(server_name=args.host, server_port=args.port)
    return 0
