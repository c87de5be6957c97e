"""Print the versions and hardware that a bug report needs."""

import argparse
import importlib.metadata
import platform


PACKAGES = ("torch", "transformers", "huggingface_hub", "safetensors", "accelerate", "tokenizers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no options."""


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    import torch

    from ..versions import __version__

    print(f"eagle_hf {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        print(f"{package} {importlib.metadata.version(package)}")
    if torch.cuda.is_available():
        print(f"GPU {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    print(f"{torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}")
    return 0
