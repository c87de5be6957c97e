"""Generating once, and timing it: the only stopwatch of the benchmarks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def timed(target: Any, input_ids: torch.Tensor, draft: Any = None, seed: int = 0, **options: Any) -> tuple[float, Any]:
    """
    Generates once. The time contains the prompt's forward, and the device has finished when it ends.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        input_ids (`torch.LongTensor` of shape `(batch_size, prompt_length)`): Prompts without padding.
        draft ([`~transformers.PreTrainedModel`], *optional*): What `generate` takes as `assistant_model`.
        seed (`int`, *optional*, defaults to 0): Seed of the global generator.
        options: Further options of `generate`.

    Returns:
        `tuple[float, GenerateDecoderOnlyOutput]`: Seconds, and what `generate` returned.
    """
    torch.manual_seed(seed)
    synchronize(target.device)
    start = time.perf_counter()
    output = target.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        assistant_model=draft,
        return_dict_in_generate=True,
        **options,
    )
    synchronize(target.device)
    return time.perf_counter() - start, output


def synchronize(device: torch.device) -> None:
    """Waits until a device has done all that was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def count_forwards(module: nn.Module) -> Iterator[list[int]]:
    """Counts calls of a module while the context is open: the list's only entry."""
    count = [0]

    def add(module: nn.Module, args: tuple) -> None:
        count[0] += 1

    hook = module.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()
