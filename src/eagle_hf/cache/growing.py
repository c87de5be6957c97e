"""Cache layers with room to spare, for caches of which every step takes most of what it has added back."""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


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
