"""
Attention masks for a tree forward.

Which keys a node sees, in a layer with full attention, is the committed prefix of its own row and its own path in the
tree. Layers with a window see of that what lies inside the window. Distances are counted in columns of the sequence, as
plain decoding counts them, and never in slots: siblings share a column but not a slot.
"""

from collections.abc import Sequence

import torch
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, StaticLayer

from ..cache.keeping import sliding_columns
from ..cache.layers import holds_keys
from ..tree import DraftTree
from .layer_outputs import KeyLayout


def window_of(layer: CacheLayerMixin) -> int | None:
    """
    Returns the window that a layer of the cache is cut to; `None` for those that keep all columns: layers with full
    attention, and static ones, which `check_cache` lets pass only where the whole text fits the window.
    """
    return layer.sliding_window if layer.is_sliding and not isinstance(layer, StaticLayer) else None


class TreeMasks:
    """
    Builds what a target takes as `attention_mask` in a tree forward.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Text config of the target.
        cache ([`~transformers.Cache`]): The target's cache, after the prefill.
        prompt_mask (`torch.BoolTensor` of shape `(batch_size, prompt_len)`, *optional*):
            `False` where the prompt is padding; `None` where there is none.
    """

    def __init__(self, config: PreTrainedConfig, cache: Cache, prompt_mask: torch.Tensor | None):
        self.prompt_mask = prompt_mask
        self.cache = cache
        self.layer_types = layer_types = getattr(config, "layer_types", None)
        # One cache layer for every kind of mask; models without `layer_types` take a single mask for all layers.
        self.is_dict = layer_types is not None
        self.layer_of_type: dict[str, int] = {}
        # Layers that run several times may have further caches behind those that are named (Dory).
        for index, layer in enumerate(cache.layers if layer_types is None else cache.layers[: len(layer_types)]):
            if holds_keys(layer):
                kind = layer_types[index] if layer_types is not None else "all"
                self.layer_of_type.setdefault(kind, index)

    def cache_layers(self, num_layers: int) -> list[int]:
        """Returns, for every layer whose attentions are returned, a layer of the cache with the same kind of mask."""
        kinds = [kind for kind in self.layer_types or ["all"] * num_layers if kind in self.layer_of_type]
        return [self.layer_of_type[kind] for kind in kinds[:num_layers]]

    def key_layouts(
        self, attentions: Sequence[torch.Tensor | None], num_nodes: int, plain_sizes: Sequence[int | None]
    ) -> list[KeyLayout]:
        """
        Returns which keys the attentions of a forward are about, one entry per layer.

        Args:
            attentions (`Sequence[torch.Tensor | None]`): Of every layer, of shape `(..., num_nodes, kv_len)`.
            num_nodes (`int`): The last keys, which are nodes of a tree.
            plain_sizes (`Sequence[int | None]`): Columns of each layer of plain `generate`'s cache, if they are fixed.
        """
        slots = [0 if weights is None else weights.shape[-1] - num_nodes for weights in attentions]
        return [
            KeyLayout(window_of(self.cache.layers[layer]), num_slots, plain_sizes[layer])
            for layer, num_slots in zip(self.cache_layers(len(slots)), slots, strict=True)
        ]

    @property
    def sees_all(self) -> bool:
        """
        Whether a root sees all that its cache holds, so that it needs no mask: no padding, no windows, and no columns
        behind the text, where static caches keep nodes of earlier trees (Falcon would see them).
        """
        layers = [self.cache.layers[index] for index in self.layer_of_type.values()]
        is_cut = any(window_of(layer) or getattr(layer, "max_cache_len", None) is not None for layer in layers)
        return self.prompt_mask is None and not is_cut

    def make(self, tree: DraftTree, lengths: list[int], dtype: torch.dtype) -> torch.Tensor | dict[str, torch.Tensor]:
        """
        Makes the masks of one forward.

        Args:
            tree ([`DraftTree`]): The trees to verify.
            lengths (`list[int]` of length `batch_size`): Committed columns of each row.
            dtype (`torch.dtype`): That of the target. Masks are added to the scores: eager attention needs that, and
                sdpa would turn boolean ones into such in every layer.

        Returns:
            A tensor of shape `(batch_size, 1, num_nodes, kv_len)`, or a dictionary of them by layer type.
        """
        ancestors = tree.ancestor_mask()
        masks = {}
        for kind, index in self.layer_of_type.items():
            layer = self.cache.layers[index]
            if (window := window_of(layer)) is not None:
                mask = self._windowed(
                    tree, ancestors, lengths, window, layer.keys.shape[-2], kind == "chunked_attention"
                )
            else:
                mask = self._full(ancestors, lengths, getattr(layer, "max_cache_len", None))
            masks[kind] = _to_additive(mask[:, None], dtype)
        return masks if self.is_dict else masks["all"]

    def _full(self, ancestors: torch.Tensor, lengths: list[int], capacity: int | None) -> torch.Tensor:
        batch_size, num_nodes, _ = ancestors.shape
        past_len = max(lengths)
        kv_len = past_len + num_nodes
        mask = ancestors.new_ones(batch_size, num_nodes, capacity or kv_len)
        mask[..., past_len:kv_len] = ancestors
        mask[..., kv_len:] = False
        if min(lengths) < past_len:
            columns = torch.arange(past_len, device=mask.device)
            mask[..., :past_len] = (columns < torch.tensor(lengths, device=mask.device)[:, None])[:, None]
        if self.prompt_mask is not None:
            mask[..., : self.prompt_mask.shape[1]] &= self.prompt_mask[:, None]
        return mask

    def _windowed(
        self,
        tree: DraftTree,
        ancestors: torch.Tensor,
        lengths: list[int],
        window: int,
        num_slots: int,
        is_chunked: bool,
    ) -> torch.Tensor:
        device = ancestors.device
        slots = torch.tensor([list(columns) for columns in sliding_columns(lengths, num_slots)], device=device)
        nodes = torch.tensor(lengths, device=device)[:, None] + tree.depths  # (batch_size, num_nodes): their columns
        is_real = slots >= 0
        padding = torch.zeros(1, 1, dtype=torch.long, device=device)
        if self.prompt_mask is not None:
            in_prompt = slots.clamp(0, self.prompt_mask.shape[1] - 1)
            is_real &= (slots >= self.prompt_mask.shape[1]) | self.prompt_mask.gather(1, in_prompt)
            # (batch_size, 1): columns before the first real one
            padding = self.prompt_mask.long().argmax(dim=1, keepdim=True)
        keys = torch.cat([slots, nodes], dim=1)[:, None, :]  # (batch_size, 1, kv_len)
        queries = nodes[:, :, None]
        if is_chunked:
            in_window = (keys - padding[:, None]) // window == (queries - padding[:, None]) // window
        else:
            in_window = keys > queries - window
        is_visible = torch.cat([is_real[:, None].expand(-1, ancestors.shape[1], -1), ancestors], dim=-1)
        return in_window & is_visible


def _to_additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Eager attention adds its mask to the scores; a boolean one would silently count as 0 and 1.
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
