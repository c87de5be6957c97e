"""
Drafts on a CPU with faster products. PyTorch multiplies float32 matrices by MKL, which takes up to four times as long
as oneDNN for a few rows, on the AMD processor of docs/performance.md; in lower precision it asks oneDNN anyway. Only
the head is computed so: its rounding decides what is drafted, never what is generated.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import Cache

from ..drafting.levels import CompleteHead
from ..head.attention import Rotary


class CPUHead(CompleteHead):
    """A head whose large linear layers are products of oneDNN."""

    @staticmethod
    def suits(draft: nn.Module) -> bool:
        """Returns whether the weights of a head are such that it gains by this."""
        weights = list(draft.parameters())
        return _HAS_ONEDNN and all(each.device.type == "cpu" and each.dtype == torch.float32 for each in weights)

    def step(
        self, hidden: torch.Tensor, tokens: torch.Tensor, rotary: Rotary, mask: torch.Tensor | None, cache: Cache
    ) -> torch.Tensor:
        """Overrides [`CompleteHead.step`]."""
        with _OneDNNProducts():
            return super().step(hidden, tokens, rotary, mask, cache)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Overrides [`CompleteHead.logits`]."""
        with _OneDNNProducts():
            return super().logits(hidden)


class _OneDNNProducts(TorchFunctionMode):
    """Makes all linear layers within it [`linear`]."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replaces `torch.nn.functional.linear`."""
        return (linear if func is F.linear else func)(*args, **(kwargs or {}))


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """
    Computes `torch.nn.functional.linear`, by oneDNN where that is worth it and no gradients are wanted.

    Args:
        inputs (`torch.Tensor` of shape `(..., in_features)`): The rows.
        weight (`torch.Tensor` of shape `(out_features, in_features)`): The weight.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): The bias.

    Returns:
        `torch.Tensor` of shape `(..., out_features)`
    """
    if weight.numel() < _WORTH_ONEDNN or torch.is_grad_enabled() or not are_plain_float32(inputs, weight):
        return F.linear(inputs, weight, bias)
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], ""))


def are_plain_float32(inputs: torch.Tensor, weight: torch.Tensor) -> bool:
    """Returns whether these are float32 numbers on a CPU and nothing else; weights may be quantized or distributed."""
    is_plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.device.type == "cpu"
    return is_plain and weight.dtype == torch.float32 and inputs.dtype == torch.float32


_WORTH_ONEDNN = 2**18  # elements; below, finding oneDNN's kernel costs more than it saves
# What compiled models with frozen weights call for linear layers on a CPU; there is no public way to choose between the
# libraries.
_HAS_ONEDNN = bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
