"""Entry point of `eagle-hf`."""

import argparse
import sys
from collections.abc import Sequence

from ..versions import __version__
from . import app, bench, chat, convert, demo, env, generate, inspect, prepare, push, train
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="eagle-hf", description="EAGLE speculative decoding inside Hugging Face generate.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"eagle-hf {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").strip()
        # Building the parser of `train`, which has all of `TrainingArguments`, takes as long as the rest together.
        parents = [module.argument_parser()] if hasattr(module, "argument_parser") and name in argv[:1] else []
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
        subparser.add_argument("--config", help="YAML file of options; those of the command line go before it")
        _accept_both_spellings(subparser)
    try:
        args = parser.parse_args(with_config(argv))
        args.argv = argv
        return COMMANDS[args.command].run(args)
    except ModuleNotFoundError as error:
        print(f"eagle-hf {argv[0]}: {error}{_how_to_install(error)}", file=sys.stderr)
        return 1
    except (ImportError, OSError, ValueError, FloatingPointError) as error:
        print(f"eagle-hf {argv[0]}: {error}", file=sys.stderr)
        return 1


def _accept_both_spellings(parser: argparse.ArgumentParser) -> None:
    """Accepts every option with underscores and with hyphens; the help shows the spelling it was added with."""
    for option, action in list(parser._option_string_actions.items()):
        for twin in (option[2:].replace("_", "-"), option[2:].replace("-", "_")):
            if option.startswith("--"):
                parser._option_string_actions.setdefault(f"--{twin}", action)


EXTRAS = {
    "datasets": "train", "gguf": "gguf", "gradio": "demo", "matplotlib": "viz", "peft": "peft", "PIL": "images",
    "rich": "viz",
}  # fmt: skip


def _how_to_install(error: ModuleNotFoundError) -> str:
    """The extra that brings a missing package, where the error does not say it."""
    if "pip install" in str(error):
        return ""
    module = (error.name or "").partition(".")[0]
    package = f"'eagle-hf[{EXTRAS[module]}]'" if module in EXTRAS else module
    return f". Install it: pip install {package}"


if __name__ == "__main__":
    sys.exit(main())
