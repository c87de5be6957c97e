"""Tells the layers of a cache that hold keys and values."""

from typing import Any

from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer


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
