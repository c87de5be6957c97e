"""
Rotary embeddings whose frequencies depend on the length of the text.

With the types "dynamic" and "longrope", the largest position of a forward decides the frequencies of all its tokens, so
that a draft tree that reaches beyond the switch would turn the tokens before it as well:

```text
positions   ... 4093 4094 4095 │ 4096 4097 ...        longrope, trained with 4096 positions
                     root ─────┼─ draft               all three with the long factors: wrong
```

So no tree crosses the switch, and steps at it are plain ones, made as `generate` makes them (Phi-3 reads its whole text
again there). Behind it, the frequencies of "longrope" stay and trees go on; those of "dynamic" change with every token,
so that steps stay plain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache.fixed import fixed_sizes
from ..tree import DraftTree
from ..versions import CACHE, cache_of
from .chain import ChainTarget
from .recurrent_target import RecurrentTarget
from .target import Target, Verified


@dataclass(frozen=True)
class RotarySwitch:
    """
    Says where the frequencies of a target change.

    Args:
        length (`int`): Longest text with the first frequencies, in tokens.
        keeps_changing (`bool`): Whether they change with every token from there on.
    """

    length: int
    keeps_changing: bool

    @classmethod
    def on_the_way(cls, config: PreTrainedConfig, prompt_len: int, max_length: int | None) -> "RotarySwitch | None":
        """
        Returns the switch that a text meets while it grows; `None` where there is none.

        Args:
            config ([`~transformers.PreTrainedConfig`]): Text config of the target.
            prompt_len (`int`): Tokens of the prompt.
            max_length (`int`, *optional*): Tokens that the text has at most; `None` where only its end is known.
        """
        parameters = getattr(config, "rope_parameters", None) or {}
        by_layer = [p for p in parameters.values() if isinstance(p, dict) and "rope_type" in p]
        switches = []
        for rope in by_layer or [parameters]:
            kind = str(rope.get("rope_type"))
            if "dynamic" in kind:
                switches.append(cls(config.max_position_embeddings, keeps_changing=True))
            elif kind == "longrope":
                length = rope.get("original_max_position_embeddings", config.max_position_embeddings)
                if prompt_len <= length:
                    switches.append(cls(length, keeps_changing=False))
        switches = [switch for switch in switches if max_length is None or max_length > switch.length]
        return min(switches, key=lambda switch: switch.length, default=None)

    def clamp_depth(self, depth: int, root_column: int, root_position: int) -> int:
        """
        Returns how deep a tree may be, so that all its nodes lie on the same side of the switch as the text so far.

        Args:
            depth (`int`): Depth that is wanted.
            root_column (`int`): Column of the root: tokens before it, padding included.
            root_position (`int`): The largest position of a root.
        """
        if root_column < self.length:
            return min(depth, self.length - 1 - root_column)
        return 0 if self.is_plain_step(root_column, root_position) else depth

    def is_plain_step(self, root_column: int, root_position: int) -> bool:
        """Returns whether this step must be one of plain `generate`."""
        return root_column >= self.length and (
            self.keeps_changing or root_column == self.length or root_position <= self.length
        )


class SwitchingTarget(Target):
    """
    A target whose text meets a switch. Rows keep in step, as the longest one decides the rotation of all.

    Args:
        arguments: As for [`Target`].
        switch ([`RotarySwitch`]): The switch.
    """

    rows_may_run_ahead = False
    _ids: torch.Tensor  # (batch_size, length): the text so far

    def __init__(self, *arguments: Any, switch: RotarySwitch):
        super().__init__(*arguments)
        self._switch = switch

    def prefill(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Overrides [`Target.prefill`]."""
        self._ids = input_ids
        return super().prefill(input_ids)

    def clamp_depth(self, depth: int) -> int:
        """Overrides [`Target.clamp_depth`]: no tree crosses the switch."""
        return super().clamp_depth(self._switch.clamp_depth(depth, *self._root_place()))

    def keep(self, verified: Verified, paths: Sequence[Sequence[int]]) -> torch.Tensor:
        """Overrides [`Target.keep`]: remembers the text, which steps of plain `generate` need."""
        tokens = [verified.tree.tokens[row, path] for row, path in enumerate(paths)]
        self._ids = torch.cat([self._ids, torch.stack(tokens)], dim=1)
        return super().keep(verified, paths)

    def _root_place(self) -> tuple[int, int]:
        """Returns the column and largest position of the roots."""
        return max(self.lengths), int(self._root_position.max())

    def _forward(self, tree: DraftTree, **kwargs: Any) -> CausalLMOutputWithPast:
        if self._switch.is_plain_step(*self._root_place()):
            return self._plain_step(tree.tokens.clone(), **kwargs)
        return super()._forward(tree, **kwargs)

    def _plain_step(self, tokens: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        """
        Makes a step of plain `generate`, which lets the target prepare it and may start a new cache (Phi-3).

        Args:
            tokens (`torch.LongTensor` of shape `(batch_size, 1)`): The newest tokens.
        """
        ids = torch.cat([self._ids, tokens], dim=1)
        mask, positions = self._prompt_mask, self._root_position
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), self.lengths[0] + 1 - mask.shape[1])], dim=1).long()
        num_new = self.lengths[0] + 1 - self._prompt_positions.shape[-1]
        new = positions - torch.arange(num_new - 1, -1, -1, device=positions.device)  # (..., batch_size or 1, num_new)
        prepared = self.model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=1,
            is_first_iteration=False,
            attention_mask=mask,
            position_ids=torch.cat([self._prompt_positions.expand(*new.shape[:-1], -1), new], dim=-1),
            use_cache=True,
            **{CACHE: self.cache},
        )
        prepared = self._inputs.for_nodes(1) | prepared
        outputs = self.model(**prepared, return_dict=True, **kwargs)
        if (new_cache := cache_of(outputs)) is not self.cache:
            if self._lent is not None:
                self._lent.give_back(is_seen=self.outlives_generate)
            self.cache = self._masks.cache = new_cache
            self._lent = self._borrow(fixed_sizes(new_cache))
        return outputs


class SwitchingChainTarget(SwitchingTarget, ChainTarget):
    """A target that verifies chains and whose text meets a switch."""


class SwitchingRecurrentTarget(SwitchingTarget, RecurrentTarget):
    """A recurrent target whose text meets a switch: its state reads what it lacks before a step of plain `generate`."""

    def _plain_step(self, tokens: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        self.catch_up()
        self.replay.begin(DraftTree.root_only(tokens[:, 0]))
        return super()._plain_step(tokens, **kwargs)
