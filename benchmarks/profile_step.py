"""Where a step goes: time and operators of its parts, on the pair of the golden vectors: `make profile`.

The parts are the calls of the decoding loop. Time is the median over the steps of several generations; operators are
counted in a generation of their own, without views, since these cost far less than the others. One token of plain
`generate` stands beside them, measured in the same process.
"""

import argparse
import collections
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from speed import TREES, golden_pair, timed
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import logging

from eagle_hf import DraftOptions
from eagle_hf.drafting import Drafter
from eagle_hf.generation.selection import NodeSelector
from eagle_hf.generation.target import Target


PARTS = {
    "draft": (Drafter, "grow"),
    "verify": (Target, "verify"),
    "walk": (NodeSelector, "select"),
    "cache": (Target, "keep"),
    "learn": (Drafter, "read_accepted"),
}
VIEWS = {
    "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "split_with_sizes", "squeeze",
    "t", "transpose", "unbind", "unsqueeze", "_unsafe_view", "view",
}  # fmt: skip


class OperatorCount(TorchDispatchMode):
    """Counts the operators that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += operator.overloadpacket.__name__ not in VIEWS
        return operator(*args, **(kwargs or {}))


class Parts:
    """Calls of the loop, timed or counted while the context is open."""

    def __init__(self, counts_operators: bool):
        self.counts_operators = counts_operators
        self.values: dict[str, list[float]] = collections.defaultdict(list)
        self._originals = {name: getattr(owner, method) for name, (owner, method) in PARTS.items()}

    def __enter__(self) -> "Parts":
        for name, (owner, method) in PARTS.items():
            setattr(owner, method, self._measured(name, self._originals[name]))
        return self

    def __exit__(self, *exception: object) -> None:
        for name, (owner, method) in PARTS.items():
            setattr(owner, method, self._originals[name])

    def _measured(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            if self.counts_operators:
                with OperatorCount() as count:
                    result = call(*args, **kwargs)
                self.values[name].append(count.number)
            else:
                start = time.perf_counter()
                result = call(*args, **kwargs)
                self.values[name].append(1000 * (time.perf_counter() - start))
            return result

        return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    target, draft, ids = golden_pair()
    num_tokens = 192
    options = {"max_new_tokens": num_tokens, "do_sample": False, "eos_token_id": None}

    def generate(tree: tuple[int, int, int] | None) -> tuple[float, Any]:
        if tree is not None:
            nodes, depth, width = tree
            shape = DraftOptions(num_assistant_tokens=nodes, draft_depth=depth, draft_width=width)
            draft.generation_config = shape.to_generation_config()
        return timed(target, ids, None if tree is None else draft, **options)

    with OperatorCount() as plain_operators:
        generate(None)
    operators, milliseconds, wholes, plain = {}, {}, collections.defaultdict(list), []
    for name, tree in TREES.items():
        with Parts(counts_operators=True) as operators[name]:
            generate(tree)
        milliseconds[name] = Parts(counts_operators=False)
    for _ in range(args.repeats):
        plain.append(1000 * generate(None)[0] / num_tokens)
        for name, tree in TREES.items():
            with milliseconds[name]:
                seconds, output = generate(tree)
            wholes[name].append(1000 * seconds / output.target_forwards)

    print(f"plain token: {statistics.median(plain):.2f} ms, {plain_operators.number / num_tokens:.0f} operators")
    for name in TREES:
        print(f"\n{name}\n{'part':<8}{'ms':>8}{'operators':>12}")
        for part in PARTS:
            time_ms = statistics.median(milliseconds[name].values[part])
            print(f"{part:<8}{time_ms:>8.2f}{statistics.median(operators[name].values[part]):>12.0f}")
        print(f"{'step':<8}{statistics.median(wholes[name]):>8.2f}  (prompt and set-up included)")


if __name__ == "__main__":
    main()
