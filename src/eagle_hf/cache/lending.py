"""Makes the target's cache verify drafts, and hands it back as if nothing had happened."""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from .keeping import GrowingLayer


class LentCache:
    """
    A cache between two calls of `generate`'s owner. Two things are changed as long as it is lent:

    * Layers with a sliding window keep all states until the accepted nodes are known, instead of cutting at once.
    * Plain layers, which copy all their states in every forward, write behind them instead: they become
      [`GrowingLayer`]s and then plain ones again. Nobody else gets to see the foreign type.

    Args:
        cache ([`~transformers.Cache`]): The target's cache, after the prefill: the prompt needs neither.
        max_length (`int`, *optional*): Columns that the cache will have in the end, if known.
        records_past (`bool`, *optional*, defaults to `True`):
            Whether layers shall keep what they would forget; not where a copy of their state is kept anyway.
    """

    def __init__(self, cache: Cache, max_length: int | None, records_past: bool = True):
        self._cache = cache
        self._recorded = [(layer, layer.record_past) for layer in cache.layers if hasattr(layer, "record_past")]
        self._recorded = self._recorded if records_past else []
        self._grown: list[CacheLayerMixin] = []
        for layer, _ in self._recorded:
            layer.record_past = True
        if not getattr(cache, "offloading", False):  # such layers move in every forward, and are copied anyway
            for layer in cache.layers:
                if type(layer) is DynamicLayer and layer.is_initialized:
                    GrowingLayer.adopt(layer, max_length)
                    self._grown.append(layer)

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


def settle(cache: Cache) -> None:
    """Waits until an offloaded cache has arrived where it is being moved to: its copies run beside the computation."""
    if getattr(cache, "offloading", False) and torch.accelerator.is_available():
        torch.accelerator.synchronize()
