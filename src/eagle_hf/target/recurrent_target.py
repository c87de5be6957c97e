"""Targets with recurrent layers: chains, whose accepted tokens are read again by the next verification."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..tree import DraftTree
from .chain import ChainTarget
from .recurrent import DeferredReplay


class RecurrentTarget(ChainTarget):
    """A target that verifies chains from a copy of its recurrent state."""

    _records_past = False
    replay: DeferredReplay

    def prefill(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Overrides [`Target.prefill`]: the state after the prompt is the first boundary."""
        logits = super().prefill(input_ids)
        pad_token = self.generation_config._pad_token_tensor
        pad_token = 0 if pad_token is None else max(int(pad_token), 0)  # -1 stands for none
        self.replay = DeferredReplay(self.model, self.cache, pad_token)
        return logits

    def clamp_depth(self, depth: int) -> int:
        """Overrides [`Target.clamp_depth`]."""
        return super().clamp_depth(self.replay.clamp_depth(depth))

    @property
    def lags_behind(self) -> bool:
        """Whether accepted tokens wait that somebody will miss after this call."""
        return self.replay.num_pending > 0 and self.outlives_generate

    def catch_up(self) -> None:
        """Overrides [`Target.catch_up`]: the state reads the waiting tokens."""
        if self.replay.num_pending:
            with self.replay.as_single_steps():
                self._forward_chain(self.replay.replay(), self.replay.num_pending)
            self.num_forwards += 1
            self.replay.caught_up()

    def _forward(self, tree: DraftTree, **kwargs: Any) -> CausalLMOutputWithPast:
        with self.replay.as_single_steps():
            return self._forward_chain(self.replay.begin(tree), self.replay.num_pending, **kwargs)

    def _kept(self, paths: Sequence[Sequence[int]], num_nodes: int) -> list[int]:
        self.replay.end(paths)
        return [length + len(paths[0]) for length in self.lengths]

    def _undo(self) -> None:
        """Brings the state back to the boundary: an exception may have come while tokens were read again."""
        self.replay.undo()
