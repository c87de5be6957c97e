"""
Rotary embeddings of the head for positions that are known on the host, looked up instead of computed in every step.
"""

from collections.abc import Sequence

import torch

from ..head.attention import Rotary
from ..head.modeling_eagle import EagleDraftModel


class RotaryTable:
    """
    Tabulates the rotary embedding of a head by position.

    Args:
        draft ([`EagleDraftModel`]): The head.
    """

    # Types whose frequencies depend on the longest position of a forward; these are computed every time.
    _LENGTH_DEPENDENT = ("dynamic", "longrope")

    def __init__(self, draft: EagleDraftModel):
        self.draft = draft
        self.is_tabulated = (draft.config.rope_parameters or {}).get("rope_type") not in self._LENGTH_DEPENDENT
        self._cos = self._sin = torch.empty(0)
        self._size = 0

    def rows(self, starts: Sequence[int], count: int) -> Rotary:
        """
        Returns the rotary embedding of positions `starts[b]` to `starts[b] + count - 1` for every row `b`.

        Returns:
            Two tensors of shape `(batch_size or 1, 1, count, head_dim)`.
        """
        start = starts[0]
        is_same = all(other == start for other in starts)
        if is_same and self.is_tabulated:
            self._reserve(start + count)
            return self._cos[:, :, start : start + count], self._sin[:, :, start : start + count]
        first = torch.tensor([starts[0]] if is_same else starts, device=self.draft.device)
        positions = first[:, None] + torch.arange(count, device=self.draft.device)
        if not self.is_tabulated:
            return self.at(positions)
        self._reserve(max(starts) + count)
        return self._cos[0, 0, positions][:, None], self._sin[0, 0, positions][:, None]

    @torch.inference_mode(False)  # some rotary embeddings keep tensors, which must not become inference tensors
    def at(self, positions: torch.Tensor) -> Rotary:
        """Returns the rotary embedding of any positions, of shape `(batch_size, count)`."""
        with torch.no_grad():
            return self.draft.rotary(positions)

    def _reserve(self, size: int) -> None:
        if size > self._size:
            self._size = max(2 * self._size, size, 512)
            self._cos, self._sin = self.at(torch.arange(self._size, device=self.draft.device)[None])
