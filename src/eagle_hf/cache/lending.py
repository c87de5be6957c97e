"""Borrows the cache of a call for verifications, and hands it back as plain `generate` would leave it."""

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from .fixed import capacity, hand_back_columns, put_aside, set_filled
from .growing import GrowingLayer
from .layers import layers_with_keys


class LentCache:
    """
    The caller's cache while `generate` borrows it. Three things are changed until it is given back:

    * Layers with a sliding window keep all states until the accepted nodes are known, instead of cutting at once.
    * Plain layers, which copy all their states in every forward, write behind them instead: they become
      [`GrowingLayer`]s and then plain ones again. Nobody else gets to see the foreign type.
    * The last column of rows that fill a cache of fixed size is put aside, as nodes of other rows begin there.

    Args:
        cache ([`~transformers.Cache`]): The target's cache, after the prefill: the prompt needs none of this.
        max_length (`int`, *optional*): Columns that the cache will have in the end, if known.
        plain_sizes (`Sequence[int | None]`):
            Columns that each layer of plain `generate`'s cache would have; `None` for layers that grow.
        records_past (`bool`): Whether layers keep what they would forget; not where a copy of their state is kept.
    """

    def __init__(self, cache: Cache, max_length: int | None, plain_sizes: Sequence[int | None], records_past: bool):
        self._cache = cache
        # A target may have appended layers to the cache that `generate` made for it (Dory, for layers that run twice).
        num_more = len(cache.layers) - len(plain_sizes)
        self.plain_sizes = [*plain_sizes, *[min(filter(None, plain_sizes), default=None)] * num_more]
        self._recorded = [(layer, layer.record_past) for layer in cache.layers if hasattr(layer, "record_past")]
        self._recorded = self._recorded if records_past else []
        self._grown: list[CacheLayerMixin] = []
        self._put_aside: list[tuple[torch.Tensor, torch.Tensor]] = []  # parts of the cache, and what belongs there
        self._is_offloaded = bool(getattr(cache, "offloading", False))
        for layer, _ in self._recorded:
            layer.record_past = True
        if not self._is_offloaded:  # such layers move in every forward, and are copied anyway
            for layer in cache.layers:
                if type(layer) is DynamicLayer and layer.is_initialized:
                    GrowingLayer.adopt(layer, max_length)
                    self._grown.append(layer)

    def make_way(self, lengths: list[int]) -> list[int]:
        """
        Puts aside the last column of rows that fill a cache of fixed size, and so have ended: nodes of the others begin
        there.

        Args:
            lengths (`list[int]` of length `batch_size`): Columns that each row has committed.

        Returns:
            `list[int]`: The same, without the columns that were put aside.
        """
        columns = capacity(self._cache)
        if columns is None or max(lengths) < columns:
            return lengths
        for row, length in enumerate(lengths):
            if length == columns:
                self._put_aside += put_aside(self._cache, row, columns - 1)
        for layer in layers_with_keys(self._cache):
            set_filled(layer, columns - 1)
        return [min(length, columns - 1) for length in lengths]

    def settle(self) -> None:
        """Waits until an offloaded cache has arrived where it is moved to: its copies run beside the computation."""
        if self._is_offloaded and torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def give_back(self, is_seen: bool) -> None:
        """
        Undoes the changes.

        Args:
            is_seen (`bool`): Whether anybody will use the cache again.
        """
        for layer, recorded in self._recorded:
            layer.record_past = recorded
        for layer in self._grown:
            GrowingLayer.release(layer, copy=is_seen)
        columns = capacity(self._cache)
        if columns is None or not is_seen:
            return
        for view, states in self._put_aside:
            view.copy_(states)
        if self._put_aside:
            for layer in layers_with_keys(self._cache):
                set_filled(layer, columns)
        hand_back_columns(self._cache, self.plain_sizes)
