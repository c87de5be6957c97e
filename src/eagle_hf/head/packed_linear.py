"""Linear layers that read the same input, in one matrix product."""

import torch
from torch import nn

from ..fast.cpu import linear


class PackedLinear:
    """
    Computes several linear layers of a module at once. `pack` makes their weights views of one tensor, which costs no
    memory; they stay parameters of their own for saving, loading and training, as with
    `torch.nn.LSTM.flatten_parameters`. Moving or casting the module takes the views apart, as whatever else gives the
    layers other memory does; then `is_packed` is `False`, until `pack` puts them together again.

    Args:
        names (`str`): Attributes of a module, layers with the same input size, all with a bias or all without.
    """

    def __init__(self, *names: str):
        self.names = names
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None

    def __deepcopy__(self, memo: dict) -> "PackedLinear":
        return PackedLinear(*self.names)  # the layers of a copy have memory of their own

    def __call__(self, owner: nn.Module, inputs: torch.Tensor, packed: bool = False) -> torch.Tensor:
        """
        All outputs of the layers of `owner`, concatenated, of shape `(..., sum of output sizes)`. With `packed`, which
        is for layers that are packed, from one product without gradients.
        """
        if packed and self._weight is not None:
            return linear(inputs, self._weight, self._bias)
        return torch.cat([getattr(owner, name)(inputs) for name in self.names], dim=-1)

    def is_packed(self, owner: nn.Module) -> bool:
        """Whether `packed=True` may be passed: the layers are packed, or were never plain linear layers."""
        linears = self._linears(owner)
        if not linears:
            return self._weight is None
        joined = [(self._weight, [linear.weight for linear in linears])]
        if linears[0].bias is not None:
            joined.append((self._bias, [linear.bias for linear in linears]))
        return all(_are_views(whole, parts) for whole, parts in joined)

    @torch.inference_mode(False)  # inference tensors could never be trained again
    def pack(self, owner: nn.Module) -> None:
        """Join the weights, unless they are joined. Layers that are no plain linear layers any more stay apart."""
        linears = self._linears(owner)
        if not linears:
            self._weight = None
        elif not self.is_packed(owner):
            with torch.no_grad():
                self._weight = self._join([linear.weight for linear in linears])
                self._bias = None if linears[0].bias is None else self._join([linear.bias for linear in linears])

    def _linears(self, owner: nn.Module) -> list[nn.Linear]:
        """The layers, if their weights can be joined."""
        linears = [getattr(owner, name) for name in self.names]
        is_plain = all(
            type(linear) is nn.Linear and type(linear.weight) is nn.Parameter and not linear.weight.is_meta
            for linear in linears
        )
        return linears if is_plain and len({(each.weight.dtype, each.weight.device) for each in linears}) == 1 else []

    @staticmethod
    def _join(parameters: list[torch.Tensor]) -> torch.Tensor:
        packed = torch.cat([parameter.data for parameter in parameters])
        for parameter, part in zip(parameters, packed.split([len(p) for p in parameters]), strict=True):
            parameter.data = part
        return packed


def _are_views(whole: torch.Tensor | None, parts: list[torch.Tensor]) -> bool:
    """Whether parts lie one behind the other in the memory of a tensor."""
    if whole is None or whole.dtype != parts[0].dtype or sum(map(len, parts)) != len(whole):
        return False
    address = whole.data_ptr()
    for part in parts:
        if part.data_ptr() != address or not part.is_contiguous():
            return False
        address += part.nbytes
    return True
