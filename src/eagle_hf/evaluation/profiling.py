"""
Profiles a step: time, operators and host synchronisations of its parts.

```text
draft    forwards of the head, its logits and their top: level by level, and for the features of accepted tokens
tree     all else of drafting: choosing nodes, their parents, masks
verify   the target's forward over all nodes, its mask included
walk     the target's choices along the tree, and reading them back
cache    keeping the accepted nodes
rest     what is left of the step: the loop itself, stopping criteria, streaming
```

Operators are counted in a generation of their own, without views, which cost far less than the others. A host
synchronisation is a read of a tensor's values by Python (`item`, `tolist`, a truth value, a shape that depends on
values): on a GPU the host waits there; on a CPU the same calls are counted, at no cost.
"""

import collections
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, PreTrainedModel

from ..draft_options import DraftOptions
from ..drafting.drafter import Drafter
from ..drafting.levels import Levels
from ..drafting.true_rows import TrueRows
from ..fast.compiled_head import CompiledDrafter
from ..generation.choosing import NodeChooser
from ..generation.path_chooser import PathChooser
from ..generation.token_chooser import TokenChooser
from ..head.modeling_eagle import EagleDraftModel
from ..target.target import Target
from .timing import synchronize, timed


# Calls of the decoding loop. What a call spends in calls of another part counts for that one only.
CALLS: tuple[tuple[str, type, str], ...] = (
    ("prompt", Target, "prefill"),
    ("prompt", TrueRows, "read_prompt"),
    ("tree", Drafter, "grow"),
    ("draft", TrueRows, "read"),
    ("draft", Levels, "step"),
    ("draft", Levels, "children"),
    ("draft", CompiledDrafter, "_grow_one"),
    ("draft", CompiledDrafter, "_grow_many"),
    ("verify", Target, "verify"),
    ("walk", NodeChooser, "advance"),
    ("walk", PathChooser, "advance"),
    ("walk", TokenChooser, "advance"),
    ("cache", Target, "keep"),
)
PARTS = ("draft", "tree", "verify", "walk", "cache")
VIEWS = {
    "alias", "as_strided", "detach", "detach_", "expand", "permute", "select", "slice", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unsqueeze", "_unsafe_view", "view",
}  # fmt: skip
READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}


class OperatorCount(TorchDispatchMode):
    """Counts the operators that are not views, and those that read values to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.reads = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode operators come as they were called, not as what they consist of
            result = operator.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        name = operator.overloadpacket.__name__
        self.number += name not in VIEWS
        self.reads += name in READS
        return operator(*args, **(kwargs or {}))


class Parts:
    """
    Time, or operators and reads, of the calls of the loop while the context is open, step by step.

    Args:
        device (`torch.device`): Device of the target; waited for at the borders of every part.
        counts (`bool`): Whether to count instead of timing.
    """

    def __init__(self, device: torch.device, counts: bool):
        self.device = device
        self.counts = counts
        self.steps: list[dict[str, list[float]]] = []
        self._sums: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
        self._is_prompt = True
        self._open: list[list[float]] = []  # per open call, what inner calls took
        self._mode = OperatorCount()
        self._tolist = torch.Tensor.tolist
        self._originals = [(owner, method, getattr(owner, method)) for _, owner, method in CALLS]

    def __enter__(self) -> "Parts":
        for (name, owner, method), (_, _, call) in zip(CALLS, self._originals, strict=True):
            setattr(owner, method, self._measured(name, call))
        if self.counts:
            torch.Tensor.tolist = self._counted_tolist()  # type: ignore[method-assign]
            self._mode.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.counts:
            self._mode.__exit__(*exception)
            torch.Tensor.tolist = self._tolist  # type: ignore[method-assign]
        for owner, method, call in self._originals:
            setattr(owner, method, call)
        self.steps.append(dict(self._sums))
        self._sums.clear()
        self._is_prompt = True

    def _counted_tolist(self) -> Callable[..., Any]:
        original, mode = self._tolist, self._mode

        def tolist(tensor: torch.Tensor) -> Any:
            mode.reads += 1
            return original(tensor)

        return tolist

    def _now(self) -> list[float]:
        if self.counts:
            return [float(self._mode.number), float(self._mode.reads)]
        synchronize(self.device)
        return [1000 * time.perf_counter(), 0.0]

    def _measured(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            self._is_prompt &= name != "tree"  # the first step begins where the first tree does
            part = "prompt" if self._is_prompt else name
            start = self._now()
            self._open.append([0.0, 0.0])
            try:
                return call(*args, **kwargs)
            finally:
                inner = self._open.pop()
                spent = [end - begin for begin, end in zip(start, self._now(), strict=True)]
                for i in range(2):
                    self._sums[part][i] += spent[i] - inner[i]
                    if self._open:
                        self._open[-1][i] += spent[i]

        return measured


def profile(
    target: PreTrainedModel,
    draft: EagleDraftModel,
    input_ids: torch.Tensor,
    max_new_tokens: int = 192,
    repeats: int = 7,
    trees: dict[str, GenerationConfig] | None = None,
) -> tuple[str, dict[str, Any]]:
    """
    Splits the steps of a greedy generation into their parts.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        draft ([`EagleDraftModel`]): The head.
        input_ids (`torch.LongTensor` of shape `(1, prompt_length)`): The prompt.
        max_new_tokens (`int`, *optional*, defaults to 192): Tokens to generate; the end of sequence does not stop it.
        repeats (`int`, *optional*, defaults to 7): Timed generations; medians are reported.
        trees (`dict[str, GenerationConfig]`, *optional*): Generation configs of the head by name. Its own by default.

    Returns:
        `tuple[str, dict]`: A table, and the same as numbers: milliseconds, operators and reads per step.
    """
    trees = trees or {"the head's own tree": draft.generation_config}
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": None}
    keywords = {
        name: DraftOptions.from_generation_config(config, draft.device.type).to_keywords()
        for name, config in trees.items()
    }
    facts: dict[str, Any] = {"max_new_tokens": max_new_tokens, "trees": {}}
    plain_times: list[float] = []
    collected: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for name in trees:  # counting warms up as well
        with Parts(target.device, counts=True) as counted:
            _, output = timed(target, input_ids, draft, **options, **keywords[name])
            total = [float(counted._mode.number), float(counted._mode.reads)]
        steps = max(output.target_forwards - 1, 1)
        facts["trees"][name] = _split(counted.steps[0], total, steps)
    with OperatorCount() as plain:
        timed(target, input_ids, **options)
    facts["plain_operators_per_token"] = round(plain.number / max_new_tokens, 1)
    for _ in range(repeats):
        plain_times.append(1000 * timed(target, input_ids, **options)[0] / max_new_tokens)
        for name in trees:
            with Parts(target.device, counts=False) as parts:
                seconds, output = timed(target, input_ids, draft, **options, **keywords[name])
            steps = max(output.target_forwards - 1, 1)
            split = _split(parts.steps[0], [1000 * seconds, 0.0], steps)
            collected[name].append({part: values[0] for part, values in split.items()})
    facts["plain_ms_per_token"] = round(statistics.median(plain_times), 3)
    lines = [f"plain token: {facts['plain_ms_per_token']:.2f} ms, {facts['plain_operators_per_token']:.0f} operators"]
    for name in trees:
        rows = {
            part: {
                "ms": round(statistics.median(run[part] for run in collected[name]), 3),
                "operators": round(counts[0], 1),
                "reads": round(counts[1], 2),
            }
            for part, counts in facts["trees"][name].items()
        }
        facts["trees"][name] = rows
        lines += ["", name, f"{'part':<8}{'ms':>8}{'operators':>12}{'reads':>8}"]
        lines += [f"{p:<8}{v['ms']:>8.2f}{v['operators']:>12.0f}{v['reads']:>8.1f}" for p, v in rows.items()]
    return "\n".join(lines), facts


def _split(sums: Mapping[str, Sequence[float]], total: Sequence[float], steps: int) -> dict[str, list[float]]:
    """Returns every part of a step, the rest, and the whole, without what the prompt took."""
    nothing = (0.0, 0.0)
    prompt = sums.get("prompt", nothing)
    split = {part: [value / steps for value in sums.get(part, nothing)] for part in PARTS}
    step = [(whole - of_prompt) / steps for whole, of_prompt in zip(total, prompt, strict=True)]
    split["rest"] = [step[i] - sum(values[i] for values in split.values()) for i in range(2)]
    return split | {"step": step}
