"""Linear layers in drafting: those that read the same input in one matrix product, and large ones faster on CPUs."""

import torch
import torch.nn.functional as F
from torch import nn


class PackedLinear:
    """
    Computes several linear layers of a module at once. Their weights become views of one tensor, which costs no memory,
    and stay parameters of their own for saving, loading and training; `torch.nn.LSTM.flatten_parameters` does the same.
    Moving or casting the module takes the views apart; `pack` puts them together again.

    Args:
        owner (`torch.nn.Module`): The module that holds the layers.
        names (`str`): Attributes of `owner`, layers with the same input size, all with a bias or all without.
    """

    def __init__(self, owner: nn.Module, *names: str):
        self.owner = owner
        self.names = names
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self._views: list[int] = []  # addresses of the layers' weights and biases when they were packed

    def __call__(self, inputs: torch.Tensor, packed: bool = False) -> torch.Tensor:
        """
        All outputs, concatenated, of shape `(..., sum of output sizes)`. With `packed`, which needs `pack` to have been
        called since the layers last changed, from one product without gradients.
        """
        if packed and self._weight is not None:
            return linear(inputs, self._weight, self._bias)
        return torch.cat([getattr(self.owner, name)(inputs) for name in self.names], dim=-1)

    @torch.inference_mode(False)  # inference tensors could never be trained again
    def pack(self) -> None:
        """Join the weights, unless they are joined. Layers that are no plain linear layers any more stay apart."""
        linears = [getattr(self.owner, name) for name in self.names]
        if any(type(linear) is not nn.Linear for linear in linears):
            self._weight = None
        elif self._weight is None or self._views != self._addresses(linears):
            with torch.no_grad():
                self._weight = self._join([linear.weight for linear in linears])
                self._bias = None if linears[0].bias is None else self._join([linear.bias for linear in linears])
            self._views = self._addresses(linears)

    @staticmethod
    def _addresses(linears: list[nn.Linear]) -> list[int]:
        addresses = [linear.weight.data_ptr() for linear in linears]
        return addresses + [linear.bias.data_ptr() for linear in linears if linear.bias is not None]

    @staticmethod
    def _join(parameters: list[torch.Tensor]) -> torch.Tensor:
        packed = torch.cat([parameter.data for parameter in parameters])
        for parameter, part in zip(parameters, packed.split([len(p) for p in parameters]), strict=True):
            parameter.data = part
        return packed


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """
    `torch.nn.functional.linear` without gradients. On a CPU it multiplies large float32 weights with oneDNN, as it does
    in lower precision anyway, where `torch` asks MKL. On the AMD processor of docs/performance.md that took half to two
    thirds of the time for the rows of a tree's level.

    Args:
        inputs (`torch.Tensor` of shape `(..., in_features)`): The rows.
        weight (`torch.Tensor` of shape `(out_features, in_features)`): The weight.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): The bias.
    """
    is_plain = type(weight) in (torch.Tensor, nn.Parameter)  # others may be quantized or distributed
    if not is_plain or weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.numel() < _LARGE:
        return F.linear(inputs, weight, bias)
    if not torch.compiler.is_compiling():
        return _onednn_linear(inputs, weight, bias)
    rows = inputs.flatten(0, -2)
    if not 1 < len(rows) <= _FEW_ROWS or bias is not None:
        return F.linear(inputs, weight, bias)
    return (weight @ rows.t()).t().reshape(*inputs.shape[:-1], -1)  # MKL is faster with the weight on the left


_LARGE = 2**18  # elements; below, finding oneDNN's kernel costs more than it saves
_FEW_ROWS = 8
# What compiled models with frozen weights call for linear layers on a CPU. It can be compiled for these only, and there
# is no public way to choose between the libraries.
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if not _HAS_ONEDNN:
        return F.linear(inputs, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
