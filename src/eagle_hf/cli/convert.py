"""Write a head in the layout that another engine reads, or say why that engine cannot run it."""

import argparse

from .common import add_dtype


LAYOUTS = (
    "eagle_hf", "safeailab", "speculators", "vllm", "sglang", "specforge", "modelopt", "tensorrt-llm", "llama.cpp",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("repo", help="EAGLE head in any layout: repository id or folder")
    parser.add_argument("--to", required=True, choices=LAYOUTS, help="layout, named by engine or inventor")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument(
        "--target", help="repository id of the target, where the head does not name it, or its folder, to check it"
    )
    add_dtype(parser, help="dtype to write, such as float16 (default: the head's)")
    parser.add_argument("--revision", help="revision of the repository")
    parser.add_argument(
        "--feature_layer_ids", type=int, nargs="+", help="hidden states that the head reads, if its files are wrong"
    )


def run(args: argparse.Namespace) -> int:
    """Reads, converts and writes the head."""
    from ..checkpoints import export_checkpoint
    from ..head.modeling_eagle import EagleDraftModel

    draft = EagleDraftModel.from_pretrained(
        args.repo, revision=args.revision, dtype=args.dtype, feature_layer_ids=args.feature_layer_ids
    )
    if args.to == "eagle_hf":
        draft.save_pretrained(args.output)
    else:
        export_checkpoint(draft, args.output, args.to, target=args.target)
    print(f"{args.output} holds the head in the layout {args.to}.")
    return 0
