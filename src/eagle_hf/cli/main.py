"""
Entry point of `eagle-hf`. Commands import what they need when they run: their help comes at once, without `torch` and
`transformers`.
"""

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from . import app, bench, chat, convert, demo, env, generate, inspect, prepare, push, train
from .common import accept_both_spellings
from .config import with_config


COMMANDS = {
    "demo": demo,
    "generate": generate,
    "chat": chat,
    "app": app,
    "prepare": prepare,
    "train": train,
    "inspect": inspect,
    "bench": bench,
    "push": push,
    "convert": convert,
    "env": env,
}


def main(argv: Sequence[str] | None = None, before: Callable[[], None] | None = None) -> int:
    """
    Runs a command and returns the exit status.

    Args:
        argv (`Sequence[str]`, *optional*): The command and its options; by default those of the process.
        before (`Callable[[], None]`, *optional*): What is called once the options are read, before the command runs.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser(argv[:1])
    try:
        args = parser.parse_args(with_config(argv))
        args.argv = argv
        if before is not None:
            before()
        return COMMANDS[args.command].run(args)
    except ModuleNotFoundError as error:
        print(f"eagle-hf {argv[0]}: {error}{_how_to_install(error)}", file=sys.stderr)
        return 1
    except (ImportError, OSError, ValueError, FloatingPointError) as error:
        print(f"eagle-hf {argv[0]}: {error}", file=sys.stderr)
        return 1


def make_parser(complete: Collection[str] = COMMANDS) -> argparse.ArgumentParser:
    """
    Returns the parser of all commands.

    Args:
        complete (`Collection[str]`, *optional*):
            Commands whose options are all needed: those of `train`, which has all of `TrainingArguments`, take longer
            than the rest together.
    """
    parser = argparse.ArgumentParser(
        prog="eagle-hf", description="EAGLE speculative decoding inside Hugging Face generate.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, dest=argparse.SUPPRESS, help="print the version")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").strip()
        parents = [module.argument_parser()] if hasattr(module, "argument_parser") and name in complete else []
        subparser = subparsers.add_parser(
            name,
            help=summary.splitlines()[0],
            description=summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            parents=parents,
        )
        if hasattr(module, "add_arguments"):
            module.add_arguments(subparser)
        subparser.add_argument("--config", help="YAML file of options; command-line options override it")
        accept_both_spellings(subparser)
    return parser


class _Version(argparse.Action):
    """Prints the version, which is looked up only now: it stands beside those of `transformers`."""

    def __call__(self, *args: Any) -> None:
        from ..versions import __version__

        print(f"eagle-hf {__version__}")
        sys.exit(0)


EXTRAS = {
    "datasets": "train", "gguf": "gguf", "gradio": "demo", "matplotlib": "viz", "peft": "peft", "PIL": "images",
    "rich": "viz",
}  # fmt: skip


def _how_to_install(error: ModuleNotFoundError) -> str:
    """Returns how to install a missing package, where the error does not say it."""
    if "pip install" in str(error):
        return ""
    module = (error.name or "").partition(".")[0]
    package = f"'eagle-hf[{EXTRAS[module]}]'" if module in EXTRAS else module
    return f". Install it: pip install {package}"


if __name__ == "__main__":
    sys.exit(main())
