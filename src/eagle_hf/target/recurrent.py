"""
Targets with recurrent layers (Mamba-2, Qwen3-Next, Nemotron-H, ...): verifying chains without undoing a step.

A recurrent state cannot forget its newest tokens. So the state is copied at a *boundary*, chains are verified from
there, and when one is accepted only in part, the copy comes back. The accepted tokens, which the state lacks now, are
read again at the head of the next verification, which takes no forward of its own (deferred replay):

```text
                    boundary
forward   prompt ─────┃ r0 d1 d2 d3           d1 accepted: the copy comes back, r0 d1 wait
forward   prompt ─────┃ r0 d1│r2 d3 d4        nothing accepted: r0 d1 r2 wait
forward   prompt ─────┃ r0 d1 r2│r3 d4 d5     all accepted: the state is right, the boundary moves
          prompt r0 d1 r2 r3 d4 d5 ─────┃
```

Layers with keys and values, which hybrid targets have as well, go back to the boundary too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer, LinearAttentionLayer, StaticLayer

from ..cache.fixed import set_filled
from ..cache.layers import holds_keys
from ..tree import DraftTree


def has_recurrent_state(cache: Cache) -> bool:
    """Returns whether a filled cache holds recurrent states. (States of convolutions alone can be cropped.)"""
    return any(
        isinstance(layer, LinearAttentionLayer) and any(state is not None for state in layer.recurrent_states.values())
        for layer in cache.layers
    )


def double_recurrent_states(cache: Cache) -> None:
    """Makes the recurrent states wrong, to see whether a forward reads them."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer):
            for state in layer.recurrent_states.values():
                if state is not None:
                    state.mul_(2)


def filled_length(cache: Cache, read_len: int) -> int:
    """
    Returns the columns that a cache holds after a forward over `read_len` tokens. Purely recurrent caches do not count
    them: all that matters there is what this call reads.
    """
    return int(cache.get_seq_length()) if counts_columns(cache) else read_len


def counts_columns(cache: Cache) -> bool:
    """Returns whether a cache knows how many columns it holds, which purely recurrent ones do not."""
    return any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


class _Snapshot:
    """A cache as it was, without copies of the keys and values of full attention, which only grow."""

    def __init__(self, cache: Cache):
        self._cache = cache
        self._restores: list[tuple[Any, ...]] = []
        for layer in cache.layers:
            if isinstance(layer, LinearAttentionLayer):
                for states in (layer.conv_states, layer.recurrent_states):
                    for index, state in states.items():
                        if state is not None:
                            self._restores.append((self._copy_back, states, index, state.clone()))
            if not holds_keys(layer):
                continue
            if isinstance(layer, DynamicSlidingWindowLayer):
                # An update makes new tensors, so that the old ones can be kept as they are.
                self._restores.append((self._set_window, layer, layer.keys, layer.values, layer.cumulative_length))
            elif isinstance(layer, StaticLayer):  # writes the next tokens over those that are taken back
                self._restores.append((set_filled, layer, int(layer.get_seq_length())))
            else:
                self._restores.append((self._cut, layer, layer.get_seq_length()))

    def restore(self) -> None:
        for method, *args in self._restores:
            method(*args)

    @staticmethod
    def _copy_back(states: dict[int, torch.Tensor], index: int, state: torch.Tensor) -> None:
        states[index].copy_(state)  # in place: compiled targets know its address

    @staticmethod
    def _set_window(layer: DynamicSlidingWindowLayer, keys: Any, values: Any, cumulative_length: int) -> None:
        layer.keys, layer.values, layer.cumulative_length = keys, values, cumulative_length

    @staticmethod
    def _cut(layer: Any, length: int) -> None:
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        if getattr(layer, "indexer_keys", None) is not None:
            layer.indexer_keys = layer.indexer_keys[:, :length]
        if getattr(layer, "indexer_position_ids", None) is not None:
            layer.indexer_position_ids = layer.indexer_position_ids[..., :length]


class DeferredReplay:
    """
    Keeps the state of a recurrent target at a boundary, and the accepted tokens behind it.

    Args:
        model ([`~transformers.PreTrainedModel`]): The target.
        cache ([`~transformers.Cache`]): Its cache, after the prefill.
        pad_token (`int`): What plain `generate` appends to rows that have finished.

    Invariant: between two steps, the cache is that of a plain prefill up to the boundary, and the sequence so far is
    what lies before the boundary followed by `pending`, but for its newest token.
    """

    # As many tokens may wait before a step does without drafts and so is accepted for sure. Reading them again is
    # nearly free where a forward waits for memory; every such step costs one forward that yields a single token.
    MAX_PENDING = 16

    def __init__(self, model: PreTrainedModel, cache: Cache, pad_token: int):
        self.cache = cache
        self.pad_token = pad_token
        self.pending: torch.Tensor | None = None  # (batch_size, num_pending): accepted tokens behind the boundary
        self._snapshot: _Snapshot | None = None
        self._read = torch.empty(0)  # (batch_size, num_pending + num_nodes): tokens of the last forward
        self._closed_rows: set[int] = set()  # rows whose drafts were replaced by padding
        self._clamping = [m for m in model.modules() if getattr(m, "time_step_limit", (0.0,))[0] > 0]

    @contextmanager
    def as_single_steps(self) -> Iterator[None]:
        """
        Lets a forward over several tokens compute what single steps compute. Nemotron-H and Zamba2 clamp small time
        steps in the former only, so that even plain `generate` gives a prompt other states than a text.
        """
        limits = [module.time_step_limit for module in self._clamping]
        for module in self._clamping:
            module.time_step_limit = (0.0, float("inf"))
        try:
            yield
        finally:
            for module, limit in zip(self._clamping, limits, strict=True):
                module.time_step_limit = limit

    @property
    def num_pending(self) -> int:
        """Tokens that the next forward reads again."""
        return 0 if self.pending is None else self.pending.shape[1]

    def clamp_depth(self, depth: int) -> int:
        """Returns how deep a chain may be: no drafts where too many tokens wait."""
        return 0 if self.num_pending >= self.MAX_PENDING else depth

    def begin(self, tree: DraftTree) -> DraftTree:
        """Returns what to run instead of a chain: the waiting tokens in front of it, whose outputs are no news."""
        if self._snapshot is None:
            self._snapshot = _Snapshot(self.cache)
        tokens = tree.tokens
        if self._closed_rows:
            tokens = tokens.clone()
            tokens[sorted(self._closed_rows), 1:] = self.pad_token
        return self._chain(tokens if self.pending is None else torch.cat([self.pending, tokens], dim=1))

    def caught_up(self) -> None:
        """Moves the boundary behind the waiting tokens, which have been read."""
        self.pending = self._snapshot = None

    def replay(self) -> DraftTree:
        """Returns the waiting tokens alone."""
        return self._chain(self._read[:, :0] if self.pending is None else self.pending)

    def _chain(self, tokens: torch.Tensor) -> DraftTree:
        self._read = tokens
        depths = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return DraftTree(tokens, depths - 1, depths, torch.zeros_like(depths).float(), max_depth=tokens.shape[1] - 1)

    def end(self, paths: Sequence[Sequence[int]]) -> None:
        """
        Keeps the accepted part of the last forward.

        Args:
            paths (`Sequence[Sequence[int]]` of length `batch_size`):
                Accepted nodes of every row, equally many; all of them 0 for rows that have finished.
        """
        finished = {row for row, path in enumerate(paths) if len(path) > 1 and path[1] == 0}
        num_read = self.num_pending + len(paths[0])
        if num_read == self._read.shape[1] and finished <= self._closed_rows:
            self.pending = self._snapshot = None
        else:
            self.undo()
            self.pending = self._read[:, :num_read].clone()
            for row in finished - self._closed_rows:
                self.pending[row, num_read - len(paths[row]) + 1 :] = self.pad_token
        self._closed_rows |= finished

    def undo(self) -> None:
        """Brings the cache back to the boundary."""
        if self._snapshot is not None:
            self._snapshot.restore()
