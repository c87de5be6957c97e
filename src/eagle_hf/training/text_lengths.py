"""Checks whether texts fit the positions that a target has."""

from typing import Any

import torch
from transformers import PreTrainedModel

from ..target.config import TargetConfig, position_limit
from .frozen_target import FrozenTarget
from .packing import PackedDataset


_CURE = "Cut or drop them: `make_samples(max_length=...)`, or `--max_length` (and `--overflow`) of `eagle-hf train`."


def check_lengths(target: FrozenTarget, dataset: Any) -> None:
    """
    Checks that the target can read the longest text: that its table of positions, where it has one, does not end before
    it; and where texts are longer than the positions that it names, that it reads one, as most can.

    Args:
        target ([`FrozenTarget`]): The target.
        dataset (`Dataset` or sequence of `dict`, *optional*):
            Samples, or packed blocks, in which positions start again with each text. Texts of other datasets than
            those of this library and lists are not read for this; [`check_batch`] sees them.

    Raises:
        `ValueError`: naming both numbers.
    """
    if isinstance(dataset, PackedDataset):
        dataset = dataset.dataset
    lengths = getattr(dataset, "lengths", None)
    if lengths is None and isinstance(dataset, list | tuple):
        lengths = [len(sample["input_ids"]) for sample in dataset if "features" not in sample]
    named, table = TargetConfig(target.model.config).num_positions, position_limit(target.model)
    limit = named if table is None else table
    if not lengths or limit is None or max(lengths) <= limit:
        return
    failure = _failure(target, max(lengths)) if table is None else None
    if table is None and failure is None:
        return
    too_long = sum(length > limit for length in lengths)
    reason = "" if failure is None else f" Its forward fails beyond them ({failure})."
    raise ValueError(
        f"{_text(target.model, limit, max(lengths))} So are {too_long} of {len(lengths)} texts.{reason} {_CURE}"
    )


def _failure(target: FrozenTarget, length: int) -> str | None:
    """Returns what a forward over so many tokens raises, if anything."""
    try:
        target.compute({"input_ids": torch.full((1, length), 1, device=target.device)})
    except (ValueError, RuntimeError, LookupError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def check_batch(target: PreTrainedModel, limit: int | None, inputs: dict[str, Any]) -> None:
    """
    Checks one batch, given the [`position_limit`] of the target.

    Raises:
        `ValueError`: naming both numbers.
    """
    if limit is None or "features" in inputs:
        return
    positions = inputs.get("position_ids")
    longest = inputs["input_ids"].shape[1] if positions is None else int(positions.max()) + 1
    if longest > limit:
        raise ValueError(f"{_text(target, limit, longest)} {_CURE}")


def _text(target: PreTrainedModel, limit: int, longest: int) -> str:
    return f"{type(target).__name__} has {limit} positions, and the longest text has {longest} tokens."
