"""The target's embedding and head where its weights are spread over ranks, for a draft that borrows them."""

from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor


def whole(module: Any) -> Any:
    """
    Returns a module that can be called at any time, although its weights are spread over ranks. Called as it is, it
    would gather them from all ranks in every call, while ranks draft at different times and wait for each other
    forever.
    So the weights are gathered once, for as long as the result lives. All ranks have to call this at the same time.

    Args:
        module (`nn.Module`, *optional*): The target's embedding or head.

    Returns:
        The module itself where its weights are whole, otherwise a copy with whole weights.

    Raises:
        `ValueError`: for weights that DeepSpeed ZeRO-3 has partitioned.
    """
    parameters = {} if module is None else dict(module.named_parameters(recurse=False))
    for name, parameter in parameters.items():
        if hasattr(parameter, "ds_id"):
            raise ValueError(
                f"The draft uses `{name}` of the target's {type(module).__name__}, which DeepSpeed ZeRO-3 has spread "
                "over the ranks: ranks that draft at different times would wait for each other forever. Use a draft "
                "with an embedding and a head of its own, or generate without the draft."
            )
    if module is None or not any(isinstance(parameter, DTensor) for parameter in parameters.values()):
        return module
    gathered = object.__new__(type(module))  # FSDP's classes cannot be copied
    gathered.__dict__.update(module.__dict__)
    gathered._parameters = dict(module._parameters)
    for name, parameter in parameters.items():
        if isinstance(parameter, DTensor):
            gathered._parameters[name] = nn.Parameter(parameter.full_tensor(), requires_grad=False)
    return gathered.forward  # without the hooks that gather and drop the weights
