"""Frees what outlives a call of `generate` on purpose."""

from typing import Any

from torch import nn

from ..drafting.auto_size import forget_sizes
from ..target.features import forget_order
from ..target.probe import forget_verdicts
from .converted_heads import forget_copies


def forget(model: nn.Module) -> None:
    """
    Drops all that calls of `generate` have left in memory about a target or a head: converted copies of the head, how
    the target verifies drafts, what trees were worth, and functions that were compiled. The next call finds out anew
    what it needs. All of this is freed with the target and the head themselves anyway; see `docs/faq.md`.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`EagleDraftModel`]):
            A target, a head, or a module that holds one, such as a model with adapters.

    Example:

    ```python
    >>> import eagle_hf

    >>> eagle_hf.forget(draft)  # doctest: +SKIP
    ```
    """
    for module in model.modules():
        known: Any = module
        for forget_part in (forget_copies, forget_sizes, forget_verdicts, forget_order):
            forget_part(known)
        module.__dict__.pop("_compiled_functions", None)
