"""Linear layers that read the same input, in one matrix product."""

import torch
from torch import nn

from .few_rows import linear


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
