"""
Compiles the functions of a step with guards of modules replaced by one fingerprint per `generate` call.

`torch.compile` guards every attribute of every module that a graph has read, and every global name, and checks these
guards before each call: for a target of 24 layers more than a millisecond, a tenth of its forward. Here modules are
looked over once per `generate` call instead. What was seen is an argument of the compiled functions, a string, and
guarded as such: a module that has changed gets a graph of its own. So do global hooks, and implementations of
attention; functions of a model's own file are taken to stay what they were when it was compiled.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, CompileConfig, PreTrainedConfig


def compiled(owner: nn.Module, function: Callable, config: CompileConfig) -> Callable[..., Any]:
    """
    Returns a function that is compiled once per owner and way of compiling, without guards of modules.

    Args:
        owner (`torch.nn.Module`): Keeps the compiled functions: a new wrapper would compile them again.
        function (`Callable`): Takes what [`state_of`] says of its modules, and calls [`depends_on`] with it.
        config ([`~transformers.CompileConfig`]): How to compile.
    """
    known = owner.__dict__.setdefault("_compiled_functions", {})
    if known.get("config") != config:
        known.clear()
        known["config"] = config
    if function not in known:
        known[function] = _compile(function, config)
    return known[function]


def _compile(function: Callable, config: CompileConfig) -> Callable[..., Any]:
    arguments = config.to_dict()
    options, mode = dict(arguments["options"] or {}), arguments["mode"]
    has_mode = mode not in (None, "default")
    guard_filter = getattr(torch.compiler, "skip_guard_on_all_nn_modules_unsafe", None)  # not in older PyTorch
    if guard_filter is None or (has_mode and config.backend != "inductor"):
        return torch.compile(function, **arguments)
    if has_mode:  # a set of options, and excludes further ones
        options |= torch._inductor.list_mode_options(mode, arguments["dynamic"])
    return torch.compile(function, **arguments | {"options": options | {"guard_filter_fn": _kept_guards}, "mode": None})


def _kept_guards(guards: Sequence[Any]) -> list[bool]:
    not_of_modules = torch.compiler.skip_guard_on_all_nn_modules_unsafe(guards)
    not_of_globals = torch.compiler.skip_guard_on_globals_unsafe(guards)
    return [kept and also_kept for kept, also_kept in zip(not_of_modules, not_of_globals, strict=True)]


def changes_itself(module: nn.Module) -> bool:
    """Returns whether forwards of a module change it, so that its graphs have to be guarded."""
    return any(map(has_growing_frequencies, module.modules()))


def has_growing_frequencies(module: nn.Module) -> bool:
    """Returns whether the frequencies of a rotary embedding change with the length of texts."""
    kind = str(vars(module).get("rope_type", ""))  # a name, or one by kind of layer
    return "dynamic" in kind or "longrope" in kind


def depends_on(state: str) -> None:
    """Makes a graph one of this state: what a function does not read, its graphs are not guarded by."""
    if not state:
        raise ValueError("A compiled function was not told the state of its modules (`state_of`).")


def state_of(*modules: nn.Module) -> str:
    """
    Describes what graphs of these modules depend on besides inputs and the values of parameters: their attributes,
    those of their configurations, kinds and shapes of tensors, hooks, kinds of attention. Equal strings stand for equal
    states.
    """
    seen: dict[int, int] = {}
    state: list[Any] = [
        (name, id(type(module)), id(type(module).forward), _describe(vars(module), seen))
        for root in modules
        for name, module in root.named_modules(remove_duplicate=False)
    ]
    hooks = {name: value for name, value in vars(nn.modules.module).items() if name.startswith("_global_")}
    state += [_describe(hooks, seen), _describe(dict(AttentionInterface()), seen)]
    return hashlib.sha256(repr(state).encode()).hexdigest()


# What `generate` and this library note for themselves; no forward reads it.
_OWN = ("_compiled_call", "_last_compile_config", "_previous_max_cache_length", "_compiled_functions")


def _describe(value: Any, seen: dict[int, int]) -> Any:
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.Tensor):
        return type(value).__name__, value.dtype, value.device, value.shape, value.stride(), value.requires_grad
    if isinstance(value, dict):
        return [
            (key, _describe(entry, seen))
            for key, entry in value.items()
            if key not in _OWN and not (isinstance(entry, dict) and not entry)  # modules have many without an entry
        ]
    if isinstance(value, (list, tuple, set)):
        return [_describe(entry, seen) for entry in value]
    if isinstance(value, PreTrainedConfig):
        if id(value) in seen:  # most modules hold the same one
            return seen[id(value)]
        seen[id(value)] = len(seen)
        return seen[id(value)], _describe(vars(value), seen)
    # Modules are described on their own; functions are what they are. Other objects are taken not to change.
    return type(value).__name__, id(value) if callable(value) else None


_PLAIN = (bool, int, float, str, torch.dtype, torch.device)
