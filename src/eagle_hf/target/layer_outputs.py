"""Holds what a forward over draft trees returns of the target's layers, where `generate` was asked for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..cache.keeping import sliding_columns


LayerTensors = tuple[torch.Tensor | None, ...]  # one entry per layer


@dataclass(frozen=True)
class KeyLayout:
    """
    Says which keys the attentions of a layer are about.

    Args:
        window (`int`, *optional*): Keys that a node sees at most in a layer with a window; `None` for full attention.
        num_slots (`int`): Keys in front of those of the tree; not used for full attention.
        width (`int`, *optional*):
            Keys that attentions of plain `generate` are about, where it has a static cache; `None` where they grow.
    """

    window: int | None
    num_slots: int
    width: int | None = None

    def plain_keys(self, lengths: Sequence[int], row: int, path: Sequence[int]) -> list[int]:
        """
        Returns where in the tree's forward the keys are that plain decoding has when it runs the last node of `path`,
        in order.

        Args:
            lengths (`Sequence[int]` of length `batch_size`): Committed columns of each row before the forward.
            row (`int`): The row.
            path (`Sequence[int]`): Nodes from the root to the node.
        """
        if self.window is None:  # left-aligned
            return [*range(lengths[row]), *(max(lengths) + node for node in path)]
        nodes = [self.num_slots + node for node in path]
        (columns,) = sliding_columns([lengths[row]], self.num_slots)
        filled = [slot for slot, column in enumerate(columns) if column >= 0]
        return [*filled, *nodes][-self.window :]


@dataclass(frozen=True)
class LayerOutputs:
    """
    Hidden states and attentions of one forward.

    Args:
        hidden_states (`tuple[torch.Tensor]`, *optional*):
            The embeddings and every layer, of shape `(batch_size, num_nodes, hidden_size)`; `None` if not asked for.
        attentions (`tuple[torch.Tensor | None]`, *optional*):
            Every layer, of shape `(batch_size, num_heads, num_nodes, kv_len)`; `None` if not asked for.
        layouts (`Sequence[KeyLayout]`): The keys of every entry of the attentions.
        lengths (`Sequence[int]` of length `batch_size`): Committed columns of each row before the forward.
    """

    hidden_states: LayerTensors | None
    attentions: LayerTensors | None
    layouts: Sequence[KeyLayout]
    lengths: Sequence[int]

    def newest(self, num_nodes: int) -> "LayerOutputs":
        """Returns those of the last `num_nodes` rows: what comes before was read again."""

        def newest(tensors: LayerTensors | None) -> LayerTensors | None:
            return None if tensors is None else tuple(None if x is None else x[..., -num_nodes:, :] for x in tensors)

        return LayerOutputs(newest(self.hidden_states), newest(self.attentions), self.layouts, self.lengths)
