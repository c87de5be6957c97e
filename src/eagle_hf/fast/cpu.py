"""
Linear layers over few rows on a CPU: the same sums by faster products.

A compiled step multiplies every weight with the rows of a tree, or of a level of one. Where PyTorch asks MKL for that
with up to eight rows, on the AMD processor of docs/performance.md, the weight on the left is faster:

```text
rows @ weight.T      =  (weight @ rows.T).T
```
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .cpu_head import are_plain_float32


class FewRowProducts(TorchFunctionMode):
    """
    Makes all linear layers of a graph that is being compiled within it [`linear`], whoever wrote them. Methods of
    tensors that PyTorch writes in Python, such as `unflatten`, end a graph here.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Replaces `torch.nn.functional.linear`."""
        return (linear if func is F.linear else func)(*args, **(kwargs or {}))


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """
    Computes `torch.nn.functional.linear`, with float32 weights on a CPU as above.

    Args:
        inputs (`torch.Tensor` of shape `(..., in_features)`): The rows.
        weight (`torch.Tensor` of shape `(out_features, in_features)`): The weight.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): The bias.

    Returns:
        `torch.Tensor` of shape `(..., out_features)`
    """
    if not are_plain_float32(inputs, weight) or not _HAS_MKL or inputs.dim() < 2:
        return F.linear(inputs, weight, bias)
    rows = inputs.flatten(0, -2)
    if len(rows) > _FEW_ROWS:
        return F.linear(inputs, weight, bias)
    output = _weight_on_the_left(rows, weight).view(*inputs.shape[:-1], len(weight))
    return output if bias is None else output + bias


def _weight_on_the_left(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if len(rows) == 1:  # twice: a product of a matrix and a vector takes longer than one with two
        return _weight_on_the_left(torch.cat([rows, rows]), weight)[:1]
    return (weight @ rows.t()).t().contiguous()  # (num_rows, out_features)


_FEW_ROWS = 8
_HAS_MKL = torch.backends.mkl.is_available()
