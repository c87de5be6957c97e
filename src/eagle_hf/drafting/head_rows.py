"""
Keeps what a head knows of a text when a call ends, for the next call on the same cache of its target:

```text
columns of the target's cache    0        1             L-2           L-1
rows of the head                 (f0,t1)  (f1,t2)  ...  (f[L-2],t[L-1])  (f[L-1],t[L])
                                 └─ keys and values ──┘ └─ features of the last steps ──┘    t[L]: in no cache yet
```
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from transformers import Cache

from ..target.features import Learned


@dataclass(frozen=True)
class HeadRows:
    """
    Rows of a head with true features; nothing of it is ever changed.

    Args:
        layers (`list[tuple[torch.Tensor, torch.Tensor]]`): Keys and values of every layer, each of shape `(batch_size,
            heads, num_read, head_dim)`.
        lengths (`list[int]` of length `batch_size`): How many of the `num_read` rows are real.
        root_positions (`list[int]` of length `batch_size`): Position of the row behind them.
        mask (`torch.BoolTensor` of shape `(batch_size, num_masked)`, *optional*): `False` where one of the first rows
            stands for nothing, such as padding.
        unread (`Learned`, *optional*): What comes behind these rows, as features.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    lengths: list[int]
    root_positions: list[int]
    mask: torch.Tensor | None
    unread: Learned | None

    def real(self) -> torch.Tensor:
        """Returns which rows stand for a token, of shape `(batch_size, num_rows)`, the unread ones included."""
        counts = self.unread[2] if self.unread is not None else [0] * len(self.lengths)
        ends = torch.tensor([length + count for length, count in zip(self.lengths, counts, strict=True)])
        real = torch.arange(int(ends.max())) < ends[:, None]
        if self.mask is not None:
            real[:, : self.mask.shape[1]] &= self.mask.cpu()
        return real


@runtime_checkable
class KeepsRows(Protocol):
    """Drafts with a head, and can go on where an earlier call has stopped."""

    def begin_with(self, rows: HeadRows, valid: torch.Tensor) -> None:
        """
        Begins with what an earlier call has left, before the prompt.

        Args:
            rows ([`HeadRows`]): Its rows.
            valid (`torch.BoolTensor` of shape `(batch_size, num_rows)`): Which of them are those of this text; rows
                beyond it are left out.
        """

    def rows(self, reads_prompt: bool) -> HeadRows | None:
        """
        Returns what the head knows, for the next call; `None` if nothing.

        Args:
            reads_prompt (`bool`): Whether to read the prompt now, if no tree has needed it so far.
        """


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy that is no inference tensor, and no view of anything larger."""
    with torch.inference_mode(False), torch.no_grad():
        return tensor.clone()


def copied_layers(cache: Cache, num_rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns keys and values of the first rows of a cache, layer by layer, as tensors of their own."""
    return [(owned(layer.keys[:, :, :num_rows]), owned(layer.values[:, :, :num_rows])) for layer in cache.layers]
