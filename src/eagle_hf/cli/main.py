"""Entry point of `eagle-hf`."""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from . import demo, env, generate, inspect


COMMANDS = {"demo": demo, "generate": generate, "inspect": inspect, "env": env}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="eagle-hf", description="EAGLE speculative decoding inside Hugging Face generate.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"eagle-hf {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").strip()
        subparser = subparsers.add_parser(
            name,
            help=summary.splitlines()[0],
            description=summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        return COMMANDS[args.command].run(args)
    except ImportError as error:
        print(f"eagle-hf {args.command}: {error}. Install it: pip install 'eagle-hf[demo]'", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"eagle-hf {args.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
