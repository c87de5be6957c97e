"""Targets whose attention is causal by construction: they verify chains, through their own mask."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache.keeping import take_back
from ..tree import DraftTree
from .prepared import forward_chain
from .target import Target


class ChainTarget(Target):
    """A target that verifies chains, all rows by the same number of nodes, and takes back what is not accepted."""

    rows_may_run_ahead = False

    def _forward(self, tree: DraftTree, **kwargs: Any) -> CausalLMOutputWithPast:
        return self._forward_chain(tree, 0, **kwargs)

    def _forward_chain(self, chain: DraftTree, num_pending: int, **kwargs: Any) -> CausalLMOutputWithPast:
        """Runs a chain that begins with `num_pending` committed tokens."""
        kwargs["step_inputs"], mask = self._inputs, self._prompt_mask
        if mask is not None:
            new_len = self.lengths[0] - num_pending + chain.num_nodes - mask.shape[1]
            mask = torch.cat([mask, mask.new_ones(len(mask), new_len)], dim=1).long()
        return forward_chain(self.model, chain, self._root_position - num_pending, mask, self.cache, **kwargs)

    def _kept(self, paths: Sequence[Sequence[int]], num_nodes: int) -> list[int]:
        take_back(self.cache, num_nodes - len(paths[0]))
        return [length + len(paths[0]) for length in self.lengths]

    def _undo(self) -> None:
        """Does nothing: all rows have the same length."""
