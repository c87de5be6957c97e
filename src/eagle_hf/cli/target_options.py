"""Options of how a target is loaded, the same for all commands that load one."""

import argparse
from typing import Any

from ..loading.quantization import QUANTIZATIONS
from . import values
from .common import add_dtype


OPTIONS = (
    "dtype", "device_map", "max_memory", "offload_folder", "gguf_file", "quantization", "attn_implementation",
    "target_revision", "target_subfolder", "cache_dir", "trust_remote_code",
)  # fmt: skip


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Adds how the target is loaded to the options of a command."""
    group = parser.add_argument_group("how the target is loaded")
    add = group.add_argument
    add_dtype(
        group,
        "--target_dtype",
        default="auto",
        help="dtype of the target: float32, bfloat16 (bf16), float16 (fp16); default: auto, that of the checkpoint",
    )
    add(
        "--device_map",
        "--target_device_map",
        type=values.device_map,
        help="devices of the target: auto, balanced, cuda:0, cpu, or JSON (default: the GPU if there is one)",
    )
    add("--max_memory", type=values.max_memory, help="with --device_map auto: most memory, such as 0=20GiB,cpu=60GiB")
    add("--offload_folder", help="folder for weights that fit into no memory")
    add("--gguf_file", help="GGUF file of the target's repository or folder; its weights are dequantised")
    add("--quantization", help=f"quantise the weights while they are loaded: {', '.join(QUANTIZATIONS)}")
    add("--attn_implementation", help="attention of the target, such as sdpa or eager")
    add("--target_revision", help="branch, tag or commit of the target's repository")
    add("--target_subfolder", help="folder inside of the target's repository")
    add("--cache_dir", help="folder for what is downloaded (default: that of the Hub's client)")
    add(
        "--trust_remote_code",
        action="store_true",
        help="run code of the target's repository, where transformers does not know the model",
    )


def target_options(args: argparse.Namespace, use_gpu: bool = True) -> dict[str, Any]:
    """
    Returns the options as [`~eagle_hf.loading.load_target`] takes them.

    Args:
        args (`argparse.Namespace`): The options as they were read.
        use_gpu (`bool`, *optional*, defaults to `True`): Whether a GPU, if any, is used without being named.
    """
    import torch

    options = {name.removeprefix("target_"): getattr(args, name) for name in OPTIONS}
    if use_gpu and options["device_map"] is None and torch.cuda.is_available():
        options["device_map"] = "auto"
    return {name: value for name, value in options.items() if value is not None}
