"""
Batches: samples padded to the longest of them, or packed tightly into blocks of one length.

```text
document_ids   0 0 0 0 0 0 1 1 1 1 2 2 2 -1 -1
position_ids   0 1 2 3 4 5 0 1 2 3 0 1 2  0  1
```

A token of a packed block must see its own document only. `transformers` finds the documents in the `position_ids`,
which start again with each, when it is given no `attention_mask` and `use_cache=False`. Not every target lets it:
attention with sinks of its own, masks that are not made by `transformers.masking_utils`, layers with convolutions or a
recurrent state, and FlashAttention in batches of several blocks silently mix the documents. `packing_check.py`
tries it before anything is trained on.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from .samples import SampleDataset


def best_fit(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """
    Packs documents into few blocks: the longest first, each into the fullest block that still has room for it.

    Args:
        lengths (`Sequence[int]`): Tokens of each document.
        max_length (`int`): Tokens of a block.

    Returns:
        `list[list[int]]`: Per block the documents in it, as indices into `lengths`; every index occurs once.

    Example:

    ```python
    >>> from eagle_hf.training import best_fit

    >>> best_fit([5, 9, 4, 1], max_length=10)
    [[1, 3], [0, 2]]

    ```
    """
    too_long = [length for length in lengths if length > max_length]
    if too_long:
        raise ValueError(
            f"{len(too_long)} samples are longer than a block of {max_length} tokens, the longest of {max(too_long)}. "
            "Cut or drop them first (`make_samples(max_length=...)`), or take longer blocks."
        )
    blocks: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, block), in ascending order
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(rooms, (lengths[index], -1))
        if place == len(rooms):
            blocks.append([])
            left, block = max_length, len(blocks) - 1
        else:
            left, block = rooms.pop(place)
        blocks[block].append(index)
        if left > lengths[index]:
            insort(rooms, (left - lengths[index], block))
    return blocks


class PackedDataset(Dataset):
    """
    Blocks of several samples each.

    Args:
        dataset (`Dataset`):
            Map-style dataset of samples with `input_ids` and `loss_mask`, such as a [`SampleDataset`].
        max_length (`int`): Most tokens of a block.
        seed (`int`, *optional*, defaults to 0): Orders the blocks and the documents in them.

    Items are dicts of `input_ids`, `loss_mask`, `position_ids` and `document_ids`, all `torch.LongTensor` of shape
    `(num_tokens,)` with `num_tokens <= max_length`; [`PackedCollator`] fills them up. `efficiency` is the share of the
    tokens of full blocks that are no padding.
    """

    def __init__(self, dataset: Any, max_length: int, seed: int = 0):
        if isinstance(dataset, SampleDataset):
            lengths = dataset.lengths
        else:
            lengths = [len(dataset[i]["input_ids"]) for i in range(len(dataset))]
        self.dataset = dataset
        self.max_length = max_length
        self.blocks = best_fit(lengths, max_length)
        # Best fit sorts by length, and training must not.
        generator = random.Random(seed)
        generator.shuffle(self.blocks)
        for block in self.blocks:
            generator.shuffle(block)
        self.lengths = [sum(lengths[i] for i in block) for block in self.blocks]
        self.efficiency = sum(self.lengths) / max(max_length * len(self.blocks), 1)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        samples = [self.dataset[i] for i in self.blocks[index]]
        ids = [torch.as_tensor(sample["input_ids"]) for sample in samples]
        lengths = torch.tensor([len(row) for row in ids])
        return {
            "input_ids": torch.cat(ids),
            "loss_mask": torch.cat([torch.as_tensor(sample["loss_mask"]) for sample in samples]),
            "position_ids": torch.cat([torch.arange(len(row)) for row in ids]),
            "document_ids": torch.arange(len(ids)).repeat_interleave(lengths),
        }


@dataclass
class PaddingCollator:
    """
    Samples of different lengths as one batch, padded on the right.

    Args:
        pad_token_id (`int`): What stands where there is no token.
        pad_to_multiple_of (`int`, *optional*, defaults to 1): Lengths of batches are multiples of this.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids`, `loss_mask` and `attention_mask`, of shape `(batch_size, seq_len)`.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch."""
        longest = max(len(sample["input_ids"]) for sample in samples)
        length = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        ones = [torch.ones(len(sample["input_ids"]), dtype=torch.long) for sample in samples]
        return {
            "input_ids": _pad([sample["input_ids"] for sample in samples], length, self.pad_token_id),
            "loss_mask": _pad([sample["loss_mask"] for sample in samples], length, 0),
            "attention_mask": _pad(ones, length, 0),
        }


@dataclass
class PackedCollator:
    """
    Blocks of a [`PackedDataset`] as one batch. Padding is a document of its own with id -1, so no mask is needed: give
    the target `position_ids` and no `attention_mask` (see the module's description).

    Args:
        pad_token_id (`int`): What stands where there is no token.
        max_length (`int`): Length of every batch, which compiled models like to be constant.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids`, `loss_mask`, `position_ids` and `document_ids`, of shape
        `(batch_size, max_length)`.
    """

    pad_token_id: int
    max_length: int

    def __call__(self, blocks: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch."""
        positions = []
        for block in blocks:
            own = torch.as_tensor(block["position_ids"])
            # Positions of padding are not beyond those of the texts: some targets have no more of them.
            padding = torch.arange(self.max_length - len(own)) % (int(own.max()) + 1)
            positions.append(torch.cat([own, padding]))
        return {
            "input_ids": _pad([block["input_ids"] for block in blocks], self.max_length, self.pad_token_id),
            "loss_mask": _pad([block["loss_mask"] for block in blocks], self.max_length, 0),
            "position_ids": torch.stack(positions),
            "document_ids": _pad([block["document_ids"] for block in blocks], self.max_length, -1),
        }


def _pad(rows: Sequence[Any], length: int, filler: int) -> torch.Tensor:
    """Returns the rows of different lengths as `torch.LongTensor` of shape `(len(rows), length)`."""
    padded = torch.full((len(rows), length), filler, dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.as_tensor(row)
    return padded
