"""
Several devices on a machine with a CPU alone: mixed devices are found without a GPU.

Within `PretendedDevices` tensors carry the name of a device, which `tensor.device` returns, while the CPU computes. So
the library takes the branches that it takes on GPUs. Operations on tensors of different devices fail as PyTorch lets
them fail: a tensor without dimensions on the CPU may meet any other, and so may an index on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel


class MixedDevices(RuntimeError):
    """What PyTorch would say: `Expected all tensors to be on the same device`."""


def device_of(tensor: torch.Tensor) -> str:
    """The device that a tensor pretends to be on."""
    return tensor.__dict__.get("pretended", "cpu")


def put(value: Any, device: str) -> Any:
    """Lets the tensors of a value pretend to be on a device: a tensor, a module, or a container of tensors."""
    tensors = [*value.parameters(), *value.buffers()] if isinstance(value, nn.Module) else tree_leaves(value)
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            tensor.__dict__["pretended"] = device
    return value


def _name(device: Any) -> str:
    if isinstance(device, int) and not isinstance(device, bool):
        return f"cuda:{device}"
    return "cuda:0" if str(device) == "cuda" else str(device)


_ANSWERS = {
    torch.Tensor.device.__get__: lambda tensor: torch.device(device_of(tensor)),
    torch.Tensor.is_cuda.__get__: lambda tensor: device_of(tensor).startswith("cuda"),
    torch.Tensor.is_cpu.__get__: lambda tensor: device_of(tensor) == "cpu",
}
_INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
_SET_DATA = torch.Tensor.data.__set__


class PretendedDevices(TorchFunctionMode):
    """See above."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _ANSWERS:
            return _ANSWERS[func](args[0])
        if getattr(func, "__name__", "") in ("_parse_to", "_has_compatible_shallow_copy_type"):  # of `nn.Module.to`
            return func(*args, **kwargs)
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return self._move(func, args[0], args[1:], kwargs)
        wanted = kwargs.pop("device", None)
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        device = self._common_device(func, args, tensors)
        output = func(*args, **kwargs)
        if func == _SET_DATA:
            put(args[0], device_of(args[1]))
            return output
        device = device if wanted is None else _name(wanted)
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor) and not any(value is tensor for tensor in tensors):
                put(value, device)
        return output

    @staticmethod
    def _move(func: Any, tensor: torch.Tensor, args: tuple, kwargs: dict) -> torch.Tensor:
        device = {torch.Tensor.cpu: "cpu", torch.Tensor.cuda: "cuda:0"}.get(func, device_of(tensor))
        dtype = kwargs.get("dtype")
        for value in (*args, kwargs.get("device")):
            if isinstance(value, torch.Tensor):
                device, dtype = device_of(value), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, (str, torch.device)) or type(value) is int:
                device = _name(value)
        moved = tensor if dtype is None else tensor.to(dtype)
        if device != device_of(tensor) and moved is tensor:
            moved = tensor.clone()
        return moved if moved is tensor else put(moved, device)

    @staticmethod
    def _common_device(func: Any, args: tuple, tensors: list[torch.Tensor]) -> str:
        name = getattr(func, "__name__", "")
        if func in _INDEXING:
            own, index = device_of(args[0]), tree_leaves(args[1])
            others = [device_of(each) for each in index if isinstance(each, torch.Tensor)]
            if func is torch.Tensor.__setitem__ and isinstance(args[2], torch.Tensor) and args[2].dim():
                others.append(device_of(args[2]) if others else own)  # without index tensors it is a copy
            if bad := {other for other in others if other not in (own, "cpu")}:
                raise MixedDevices(f"{name}: {own} with {bad}")
            return own
        if name in ("copy_", "type_as", "__set__", "__repr__"):  # between devices as well
            return device_of(args[0])
        devices = {device_of(tensor) for tensor in tensors if tensor.dim() or device_of(tensor) != "cpu"}
        if len(devices) > 1:
            raise MixedDevices(f"{name}: expected all tensors to be on one device, got {sorted(devices)}")
        return devices.pop() if devices else "cpu"


@contextmanager
def pretended_gpus() -> Iterator[None]:
    """[`PretendedDevices`], with what the library asks of `torch.cuda` answered."""
    saved = torch.cuda.default_generators, torch.cuda.current_device
    torch.cuda.default_generators, torch.cuda.current_device = (torch.default_generator,) * 4, lambda: 0
    try:
        with PretendedDevices():
            yield
    finally:
        torch.cuda.default_generators, torch.cuda.current_device = saved


def spread(model: PreTrainedModel, lm_head: str = "cuda:1") -> PreTrainedModel:
    """
    Spreads a Llama over "cuda:0" (embedding, first half of the layers) and "cuda:1" (the others, the final norm), by
    the hooks with which `accelerate` does it for a `device_map`. To be called within [`pretended_gpus`].

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        lm_head (`str`, *optional*, defaults to `"cuda:1"`): Where its `lm_head` is.
    """
    num_layers = len(model.model.layers)
    places = {"model.embed_tokens": "cuda:0", "model.rotary_emb": "cuda:0", "model.norm": "cuda:1", "lm_head": lm_head}
    places |= {f"model.layers.{i}": "cuda:0" if i < num_layers / 2 else "cuda:1" for i in range(num_layers)}
    cache = ["past_key_values", "cache"]
    for name, device in places.items():
        module = put(model.get_submodule(name), device)
        add_hook_to_module(
            module, AlignDevicesHook(torch.device(device), skip_keys=cache, place_submodules=False, offload=False)
        )
    add_hook_to_module(
        model, AlignDevicesHook(torch.device("cuda:0"), io_same_device=True, skip_keys=cache), append=True
    )
    model.hf_device_map = places
    return model
