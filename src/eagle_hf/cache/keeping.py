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
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    StaticLayer,
)

from ..versions import FP8_LAYERS


class GrowingLayer(DynamicLayer):
    """
    A cache layer that grows like [`~transformers.cache_utils.DynamicLayer`], but writes new states into a buffer with
    room to spare instead of copying the whole cache in every forward. `keys` and `values` are views of the buffer. As
    long as there are few states, copying them is faster.
    """

    FEW_BYTES = 2**16  # of keys
    keys: torch.Tensor
    values: torch.Tensor
    _growth = 1.5
    _max_length: int | None = None  # beyond which no room is made

    @staticmethod
    def adopt(layer: DynamicLayer, max_length: int | None) -> None:
        """
        Lets a plain layer grow like this one, in place, until [`GrowingLayer.release`].

        Args:
            layer ([`~transformers.cache_utils.DynamicLayer`]): The layer.
            max_length (`int`, *optional*): Columns that it will have in the end, if known: no more room is made.
        """
        layer.__class__ = GrowingLayer
        layer._buffers, layer._max_length = (torch.empty(0), torch.empty(0)), max_length

    @staticmethod
    def release(layer: DynamicLayer, copy: bool) -> None:
        """
        Makes an adopted layer a plain one again.

        Args:
            layer ([`~transformers.cache_utils.DynamicLayer`]): The layer.
            copy (`bool`): Whether to copy the states out of the buffer. Without it, they hold all of its memory.
        """
        layer.__class__ = DynamicLayer
        del layer._buffers, layer._max_length
        if copy and layer.is_initialized:
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._buffers = (torch.empty(0), torch.empty(0))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends the states of shape `(batch_size, heads, new_len, head_dim)`; returns all keys and values."""
        if torch.compiler.is_compiling():  # a target compiled by the user: addresses of memory cannot be traced
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.keys.nbytes < self.FEW_BYTES:
            return super().update(key_states, value_states, *args, **kwargs)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._has_room(start, end):
            self._reallocate(key_states, value_states, start, end)
        key_buffer, value_buffer = self._buffers
        key_buffer[..., start:end, :] = key_states
        value_buffer[..., start:end, :] = value_states
        self.keys, self.values = key_buffer[..., :end, :], value_buffer[..., :end, :]
        return self.keys, self.values

    def _has_room(self, length: int, new_length: int) -> bool:
        buffer = self._buffers[0]
        if buffer.dim() < 4 or new_length > buffer.shape[-2]:
            return False
        # Whoever reorders or selects rows of the cache replaces `keys`; such states are copied in again.
        return length == 0 or (self.keys.data_ptr() == buffer.data_ptr() and len(self.keys) == len(buffer))

    def _reallocate(self, key_states: torch.Tensor, value_states: torch.Tensor, start: int, end: int) -> None:
        capacity = int(end * self._growth) + 64
        if self._max_length is not None:  # the nodes of the last tree may exceed it a little
            capacity = max(end, min(capacity, self._max_length + 64))
        old, new = (self.keys, self.values), []
        for states, filled in zip((key_states, value_states), old, strict=True):
            buffer = states.new_empty(*states.shape[:-2], capacity, states.shape[-1])
            if start:
                buffer[..., :start, :] = filled
            new.append(buffer)
        self._buffers = (new[0], new[1])

    def reset(self) -> None:
        """Forgets all states and the buffer."""
        super().reset()
        self.is_initialized = False  # the next update starts from nothing
        self._buffers = (torch.empty(0), torch.empty(0))


class GrowingCache(Cache):
    """A cache of [`GrowingLayer`]s, made as layers ask for them."""

    def __init__(self):
        super().__init__(layer_class_to_replicate=GrowingLayer)

    def cut(self, length: int) -> None:
        """Forgets all columns from `length` on."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


def holds_keys(layer: object) -> bool:
    """
    Returns whether a cache layer holds keys and values by now. Others are asked for nothing: layers that no forward has
    reached, those of recurrent and convolution states alone, and the stand-ins of layers that read the keys of another
    one (Gemma 4), which call themselves initialized.
    """
    return isinstance(layer, CacheLayerMixin) and layer.is_initialized and layer.keys is not None


def goes_back_alone(layer: object) -> bool:
    """
    Returns whether a cache layer that a family brings of its own (MiniMax-M3, with keys of an indexer) takes its newest
    columns back by a `crop` of its own. What such a layer holds is its own affair, so that no column of it is moved.
    """
    own = vars(type(layer))
    return (
        isinstance(layer, DynamicLayer)
        and not layer.is_sliding
        and own.get("_layer_type") is not None
        and "crop" in own
    )


def layers_with_keys(cache: Cache) -> list[Any]:
    """Returns the layers of a cache that hold keys and values, in order."""
    return [layer for layer in cache.layers if holds_keys(layer)]


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


def set_filled(layer: StaticLayer, length: int | torch.Tensor) -> None:
    """
    Says how many columns of a layer of fixed size count from now on: what lies behind them is written over. A layer
    with a window must never have been full.
    """
    layer.cumulative_length.fill_(length)  # in place: graphs know its address
    if hasattr(layer, "cumulative_length_int"):
        layer.cumulative_length_int = int(length)


def capacity(cache: Cache) -> int | None:
    """Returns the columns that a cache of fixed size has; `None` for one that grows."""
    sizes = [layer.max_cache_len for layer in cache.layers if isinstance(layer, StaticLayer)]
    return min(sizes) if sizes else None


def round_up(columns: int) -> int:
    """
    Returns a size for a cache of fixed size: one of few, so that calls of slightly different lengths share their
    graphs.
    """
    return -(-columns // 64) * 64


def put_aside(cache: Cache, row: int, column: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """
    Copies what a column of a row holds in every layer of fixed size, for the time that other rows write
    over it.

    Returns:
        Pairs of a view of shape `(heads, head_dim)` and its copy; copying them back undoes what was written.
    """
    views = [
        states[row, :, column]
        for layer in layers_with_keys(cache)
        if isinstance(layer, StaticLayer)
        for states in (layer.keys, layer.values)
    ]
    return [(view, view.clone()) for view in views]


def hand_back_columns(cache: Cache, columns: Sequence[int | None]) -> None:
    """
    Leaves the layers of fixed size as plain `generate` leaves them: nothing behind the text, and no room for a tree.

    Args:
        cache ([`~transformers.Cache`]): A cache between two steps.
        columns (`Sequence[int | None]`): Columns that each layer shall have; `None` for layers that grow.
    """
    for layer, size in zip(cache.layers, columns, strict=True):
        if not (isinstance(layer, StaticLayer) and holds_keys(layer)):
            continue
        length = int(layer.get_seq_length())
        layer.keys[:, :, length:], layer.values[:, :, length:] = 0, 0
        if size is not None and size < layer.max_cache_len:
            layer.max_cache_len = size
            layer.keys, layer.values = layer.keys[:, :, :size].clone(), layer.values[:, :, :size].clone()
            for states in (layer.keys, layer.values):
                torch._dynamo.mark_static_address(states)  # as the layer itself does, for graphs of later calls


def fixed_sizes(cache: Cache) -> list[int | None]:
    """Returns the columns that each layer of a cache has; `None` for layers that grow or hold no keys and values."""
    return [layer.max_cache_len if isinstance(layer, StaticLayer) else None for layer in cache.layers]


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
        Moves that bring node `paths[b][i]`, in column `start + node`, to column `lengths[b] + i`; `None` if in place.
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
        """
        Returns the same moves for a layer on another device: targets may be spread over several, caches be offloaded.
        """
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
    """
    Returns which column of its sequence each slot of a sliding layer holds, row by row; negative where it holds
    nothing.
    """
    return [range(length - num_slots, length) for length in lengths]


def _keep_sliding(
    layer: DynamicSlidingWindowLayer, lengths: Sequence[int], paths: Sequence[Sequence[int]], num_nodes: int
) -> None:
    num_slots = layer.keys.shape[-2] - num_nodes
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
    """
    Returns the columns `index` of shape `(batch_size, new_len)` of states of shape `(batch_size, heads, len,
    head_dim)`.
    """
    if len(index) == 1:
        return states.index_select(2, index[0])
    return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))
