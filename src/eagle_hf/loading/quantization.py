"""Quantising the weights of a target while it is loaded, by the names of the libraries that do it."""

import difflib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:  # the command line names the quantisations before anything is loaded
    import torch


def _bnb_4bit(compute_dtype: "torch.dtype") -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)


def _quanto(weights: str) -> "Callable[[torch.dtype], Any]":
    def make(compute_dtype: "torch.dtype") -> Any:
        from transformers import QuantoConfig

        return QuantoConfig(weights=weights)

    return make


def _torchao_int8(compute_dtype: "torch.dtype") -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


# The name, the package, what it takes, and how it is configured. Weights only: where activations are rounded as well,
# the text depends on what else is computed in the same forward, with drafts and in batches.
QUANTIZATIONS: dict[str, tuple[str, str, "Callable[[torch.dtype], Any]"]] = {
    "bnb-4bit": ("bitsandbytes", "bitsandbytes", _bnb_4bit),
    "quanto-int8": ("optimum.quanto", "optimum-quanto", _quanto("int8")),
    "quanto-int4": ("optimum.quanto", "optimum-quanto", _quanto("int4")),
    "torchao-int8": ("torchao", "torchao", _torchao_int8),
}


def quantization_config(name: str, compute_dtype: "torch.dtype") -> Any:
    """
    Returns what `from_pretrained` takes as `quantization_config`.

    Args:
        name (`str`): One of `QUANTIZATIONS`.
        compute_dtype (`torch.dtype`): What the target computes in.

    Raises:
        `ValueError`: if the name is unknown, or one that would not keep the text of plain `generate`.
        `ModuleNotFoundError`: if the library is not installed; names the package.
    """
    if name not in QUANTIZATIONS:
        if name.replace("_", "-") in ("bnb-8bit", "llm-int8", "int8", "8bit"):
            raise ValueError(
                f"Got quantization {name!r}. LLM.int8 of bitsandbytes rounds activations as well, so that a text is "
                "another one with drafts, and in a batch; quanto-int8 and torchao-int8 round the weights alone. From "
                "Python `load_target(..., quantization_config=...)` takes any configuration of transformers."
            )
        close = difflib.get_close_matches(name, QUANTIZATIONS, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"Got quantization {name!r}. {hint}Known: {', '.join(QUANTIZATIONS)}.")
    module, package, make = QUANTIZATIONS[name]
    if not _is_installed(module):
        raise ModuleNotFoundError(
            f"quantization {name!r} needs the package {package}, which is not installed: pip install {package}",
            name=module,
        )
    return make(compute_dtype)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a part of a package that is not there itself
        return False
