"""
Keeping the accepted nodes of a draft tree in a key/value cache, whatever the cache's layers are.

A verification forward appends all nodes of the tree behind the `P` columns that the cache holds. Afterwards the nodes
of the accepted path move to the columns right behind the row's own tokens, and the rest is cut off. Rows of a batch
accept different numbers of nodes; each row stays left-aligned, column `c` of the cache being column `c` of its
sequence, and what lies behind a row's own length is garbage that the masks hide:

```text
             committed      tree of 5 nodes                committed
row 0   a b c d e f       r0 n1 n2 n3 n4     keep 0 2  ->  a b c d e f r0 n2
row 1   a b c d . .       r0 n1 n2 n3 n4     keep 0 1 3    a b c d r0 n1 n3 .
```

Keys carry their rotary position with them, so moving a column changes nothing but its place. Sliding-window layers hold
only the last `window - 1` columns of each row, right-aligned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import (
    Cache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    StaticLayer,
)

from ..versions import FP8_LAYERS
from .fixed import set_filled
from .layers import holds_keys, layers_with_keys


def keep_nodes(cache: Cache, lengths: Sequence[int], paths: Sequence[Sequence[int]], num_nodes: int) -> list[int]:
    """
    Keeps the accepted paths of a verification and cuts off the rest of the tree.

    Args:
        cache ([`~transformers.Cache`]):
            The target's cache right after the verification forward. Sliding layers must have recorded it whole.
        lengths (`Sequence[int]` of length `batch_size`): Columns that each row had committed before the forward.
        paths (`Sequence[Sequence[int]]` of length `batch_size`): Accepted nodes of each row, in order; may be empty.
        num_nodes (`int`): Nodes of the tree that the forward appended.

    Returns:
        `list[int]`: Columns that each row has committed now.

    Invariant: the first `lengths[b] + len(paths[b])` columns of row `b` equal those of a plain prefill of its tokens.
    """
    start, new_lengths = max(lengths), [length + len(path) for length, path in zip(lengths, paths, strict=True)]
    end = max(new_lengths)
    layers = layers_with_keys(cache)
    moves = Moves.make(lengths, paths, start, layers[0].keys.device)
    if moves is None and end == start + num_nodes and not any(layer.is_sliding for layer in layers):
        return new_lengths  # everything stays where it is
    for layer in layers:
        if isinstance(layer, DynamicSlidingWindowLayer):
            _keep_sliding(layer, lengths, paths, num_nodes)
        else:
            _move_columns(layer, moves.to(layer.keys.device) if moves else None, end)
    return new_lengths


def take_back(cache: Cache, num_columns: int) -> None:
    """
    Forgets the newest columns of all rows, for caches whose rows keep in step.

    Args:
        cache ([`~transformers.Cache`]):
            Without recurrent states. Layers with windows and of convolutions must have recorded what they forgot.
        num_columns (`int`): Columns to forget. With 0, such layers let go of what they have recorded.
    """
    for layer in cache.layers:
        if not (holds_keys(layer) or isinstance(layer, LinearAttentionLayer)):
            continue
        if type(layer) in FP8_LAYERS:  # whose own `crop` knows of no 8-bit states
            _move_columns(layer, None, layer.get_seq_length() - num_columns)
            continue
        if not isinstance(layer, StaticLayer):
            layer.crop(-num_columns)
            continue
        if isinstance(layer, LinearAttentionLayer):  # a convolution and attention in the same layer
            LinearAttentionLayer.crop(layer, -num_columns)
        if holds_keys(layer):
            set_filled(layer, layer.get_seq_length() - num_columns)


@dataclass(frozen=True)
class Moves:
    """
    Columns that are not where they belong, for all layers of a cache. Index tensors of shape `(num_moves,)`.

    Args:
        rows, sources, destinations (`torch.LongTensor`):
            Column `sources[i]` of row `rows[i]` goes to `destinations[i]`.
        first (`int`): The first destination.
    """

    rows: torch.Tensor
    sources: torch.Tensor
    destinations: torch.Tensor
    first: int

    @classmethod
    def make(
        cls, lengths: Sequence[int], paths: Sequence[Sequence[int]], start: int, device: torch.device
    ) -> "Moves | None":
        """
        Returns moves that bring node `paths[b][i]`, in column `start + node`, to column `lengths[b] + i`; `None` if all
        are in place.
        """
        moves = [
            (row, start + node, length + i)
            for row, (length, path) in enumerate(zip(lengths, paths, strict=True))
            for i, node in enumerate(path)
            if start + node != length + i
        ]
        if not moves:
            return None
        rows, sources, destinations = torch.tensor(moves, device=device).unbind(1)
        return cls(rows, sources, destinations, moves[0][2])

    def to(self, device: torch.device) -> "Moves":
        """Returns the same moves for a layer on another device: targets may be on several, caches be offloaded."""
        if self.rows.device == device:
            return self
        return Moves(self.rows.to(device), self.sources.to(device), self.destinations.to(device), self.first)


def _move_columns(layer: DynamicLayer | StaticLayer, moves: Moves | None, end: int) -> None:
    # Reading all sources before writing makes overlapping moves safe.
    if isinstance(layer, FP8_LAYERS):
        _move_quantized_columns(layer, moves, end)
        return
    if moves is not None:
        for states in (layer.keys, layer.values):
            _move(states, moves)
        if isinstance(layer, DynamicIndexedLayer) and layer.indexer_keys is not None:
            _move(layer.indexer_keys[:, None], moves)
    if isinstance(layer, StaticLayer):
        set_filled(layer, end)
        return
    layer.keys, layer.values = layer.keys[:, :, :end], layer.values[:, :, :end]
    if isinstance(layer, DynamicIndexedLayer) and layer.indexer_keys is not None:
        layer.indexer_keys = layer.indexer_keys[:, :end]


def _move_quantized_columns(layer: DynamicLayer, moves: Moves | None, end: int) -> None:
    for name in ("_quantized_keys", "_quantized_values"):
        states, scale = getattr(layer, name)
        if moves is not None:
            _move(states.view(torch.uint8), moves)
        setattr(layer, name, (states[:, :, :end], scale))
    layer.cumulative_length = end


def _move(states: torch.Tensor, moves: Moves) -> None:
    """Moves columns of states of shape `(batch_size, heads, len, head_dim)` in place."""
    if len(states) == 1:  # one row: its destinations are contiguous
        states[:, :, moves.first : moves.first + len(moves.sources)] = states.index_select(2, moves.sources)
    else:
        states[moves.rows, :, moves.destinations] = states[moves.rows, :, moves.sources]


def sliding_columns(lengths: Sequence[int], num_slots: int) -> list[range]:
    """Returns the column that each slot of a sliding layer holds, row by row; negative where it holds nothing."""
    return [range(length - num_slots, length) for length in lengths]


def _keep_sliding(
    layer: DynamicSlidingWindowLayer, lengths: Sequence[int], paths: Sequence[Sequence[int]], num_nodes: int
) -> None:
    # A forward that was interrupted has brought nodes to some layers only.
    num_slots = layer.keys.shape[-2] - min(layer.cumulative_length - max(lengths), num_nodes)
    new_lengths = [length + len(path) for length, path in zip(lengths, paths, strict=True)]
    new_slots = min(max(new_lengths), layer.sliding_window - 1)
    sources = []  # (batch_size, new_slots): where each new slot's column lies now, among old slots and nodes
    for length, path, columns in zip(lengths, paths, sliding_columns(new_lengths, new_slots), strict=True):
        first = length - num_slots  # column of the first old slot
        sources.append([max(c - first, 0) if c < length else num_slots + path[c - length] for c in columns])
    index = torch.tensor(sources, device=layer.keys.device)
    layer.keys, layer.values = _gather_columns(layer.keys, index), _gather_columns(layer.values, index)
    layer.cumulative_length = max(new_lengths)


def align_columns(cache: Cache, lengths: Sequence[int]) -> None:
    """
    Brings the sliding layers of a ragged batch back to the form that `transformers` expects, in which a slot holds the
    same column for all rows. Full layers have that form anyway.

    Args:
        cache ([`~transformers.Cache`]): A cache between two steps.
        lengths (`Sequence[int]` of length `batch_size`): Columns that each row has committed.
    """
    end = max(lengths)
    if min(lengths) == end:
        return
    for layer in cache.layers:
        if isinstance(layer, DynamicSlidingWindowLayer) and holds_keys(layer):
            num_slots = layer.keys.shape[-2]
            # Slot s shall hold column end - num_slots + s, which lies `end - length` slots further right now.
            sources = [[min(slot + end - length, num_slots - 1) for slot in range(num_slots)] for length in lengths]
            index = torch.tensor(sources, device=layer.keys.device)
            layer.keys, layer.values = _gather_columns(layer.keys, index), _gather_columns(layer.values, index)


def _gather_columns(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Returns columns `index`, `(batch_size, new_len)`, of states of shape `(batch_size, heads, len, head_dim)`."""
    if len(index) == 1:
        return states.index_select(2, index[0])
    return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))
