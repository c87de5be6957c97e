"""The head in fixed shapes: levels of a tree, or whole trees, compiled once and run in every step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, CompileConfig
from transformers.cache_utils import StaticLayer

from ..cache.keeping import round_up
from ..drafting.auto_size import FixedSizing
from ..drafting.coupling import Noise, at_levels
from ..drafting.draft_network import DraftNetwork, _step, expand, top_children
from ..drafting.dynamic import grow_dynamic_tree
from ..head.attention import Rotary
from ..head.modeling_eagle import EagleDraftModel
from ..tree import DraftTree
from .cpu import FewRowProducts
from .fingerprint import compiled, depends_on, state_of


class CompiledDraftNetwork(DraftNetwork):
    """
    [`DraftNetwork`] in fixed shapes: what runs in every step is compiled once. The cache has all its columns from the
    start, masks reach over all of them, and guesses have a place of their own behind the longest text:

    ```text
    (f0,t1) (f1,t2) ... (f[n-1],root)  .  .  .  | level 1: K rows | level 2: K rows | ...
    true features                      free     guesses
    ```

    Args:
        draft, embed_tokens, lm_head: As in [`DraftNetwork`].
        compile_config ([`~transformers.CompileConfig`]): How to compile.
        max_length (`int`): Tokens of the longest text.
        max_guesses (`int`): Guesses of the largest tree.
        max_new (`int`): Features that `read_and_grow` reads at most.
    """

    def __init__(
        self,
        draft: EagleDraftModel,
        embed_tokens: Callable,
        lm_head: Callable | None,
        compile_config: CompileConfig,
        max_length: int,
        max_guesses: int,
        max_new: int,
    ):
        super().__init__(draft, embed_tokens, lm_head)
        self.first_guess = round_up(max_length)
        self.num_columns = self.first_guess + max(max_guesses, max_new)  # unused rows reach beyond the text's end
        self.max_new = max_new
        self.cache = Cache(layers=[StaticLayer(max_cache_len=self.num_columns) for _ in draft.layers])
        state = state_of(draft, *(part for part in (embed_tokens, lm_head) if isinstance(part, nn.Module)))
        self._expand = partial(compiled(draft, _expand, compile_config), state)
        self._grow = partial(compiled(draft, _grow, compile_config), state)
        self._read_and_grow = partial(compiled(draft, _read_and_grow, compile_config), state)

    @staticmethod
    def supports(draft: EagleDraftModel) -> bool:
        """Whether a head can run in fixed shapes."""
        return draft.config.sliding_window is None and not draft.config.parallel_drafting

    def cut(self, length: int) -> None:
        """See [`DraftNetwork.cut`]."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(length)

    def begin_guesses(self) -> None:
        """See [`DraftNetwork.begin_guesses`]."""
        self.cut(self.first_guess)

    def up_to_guesses(self, visible: torch.Tensor) -> torch.Tensor:
        """See [`DraftNetwork.up_to_guesses`]."""
        return F.pad(visible, (0, self.first_guess - visible.shape[-1]))

    def step(
        self,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor | None,
        sliding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See [`DraftNetwork.step`]."""
        return super().step(hidden, tokens, rotary, self._fixed(mask, tokens.shape[1]))

    def expand(
        self,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor,
        sliding_mask: torch.Tensor | None,
        width: int,
        noise: Noise | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See [`DraftNetwork.expand`]."""
        self.num_forwards += 1
        fixed_mask = self._fixed(mask, tokens.shape[1])
        noise = None if noise is None else (noise[0].contiguous(), noise[1])
        hidden, scores, ids = _kept(
            self._expand(
                self.draft,
                self.embed_tokens,
                self.lm_head,
                self.cache,
                hidden.contiguous(),  # graphs tell views from others
                tokens,
                rotary,
                fixed_mask,
                width,
                noise,
            )
        )
        return hidden, scores, ids

    def grow(
        self,
        roots: torch.Tensor,
        hidden: torch.Tensor,
        visible: torch.Tensor,
        rotary: Rotary,
        target_ids: torch.Tensor | None,
        noise: Noise | None,
        width: int,
        depth: int,
        num_nodes: int,
    ) -> DraftTree:
        """
        A dynamic tree of fixed size in one graph.

        Args:
            roots, hidden, width, depth, num_nodes: As in [`grow_dynamic_tree`].
            visible (`torch.BoolTensor` of shape `(batch_size, 1, past_len)`): True rows that all nodes see.
            rotary (pair of `torch.Tensor`): Rotary embedding of the levels.
            target_ids (`torch.LongTensor` of shape `(draft_vocab_size,)`, *optional*): Target ids of the draft's.
            noise (`Noise`, *optional*): Of the levels.
        """
        self.num_forwards += depth - 1
        return _kept_tree(
            self._grow(
                self.draft, self.embed_tokens, self.lm_head, self.cache, roots.clone(), hidden,
                self.up_to_guesses(visible), *rotary, target_ids, noise, width, depth, num_nodes, self.num_columns,
            )
        )  # fmt: skip

    def read_and_grow(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        visible: torch.Tensor,
        rotary: Rotary,
        target_ids: torch.Tensor | None,
        noise: Noise | None,
        width: int,
        depth: int,
        num_nodes: int,
    ) -> DraftTree:
        """
        The same, reading the features that are new since the last tree in the same graph. For texts of a single row.

        Args:
            features (`torch.Tensor` of shape `(1, new_len, num_features * target_hidden_size)`):
                New features, at most `max_new`.
            tokens (`torch.LongTensor` of shape `(1, new_len)`): The token that follows each of them; the root is last.
            visible (`torch.BoolTensor` of shape `(1, 1, past_len)`): Rows read before, that all others see.
            rotary (pair of `torch.Tensor`): Rotary embedding of `max_new + depth` rows, from the first new one on.
            target_ids, noise, width, depth, num_nodes: As in `grow`.
        """
        self.num_forwards += depth
        past_len, new_len = visible.shape[-1], tokens.shape[1]
        self.cut(past_len)
        # Copies, as graphs tell views from others. Unused rows stand where the next new ones will.
        rows, row_tokens = features.new_zeros(1, self.max_new, features.shape[-1]), tokens.new_zeros(1, self.max_new)
        rows[:, :new_len], row_tokens[:, :new_len] = features, tokens
        return _kept_tree(
            self._read_and_grow(
                self.draft, self.embed_tokens, self.lm_head, self.cache, rows, row_tokens,
                torch.tensor([past_len, new_len], device=tokens.device),
                self.up_to_guesses(visible), *rotary, target_ids, noise, width, depth, num_nodes, self.num_columns,
            )
        )  # fmt: skip

    def _fixed(self, mask: torch.Tensor | None, num_rows: int) -> torch.Tensor:
        """A mask over all columns, of shape `(batch_size, 1, num_rows, num_columns)`."""
        if mask is None:
            past_len = int(self.cache.get_seq_length())
            device = self.draft.device
            mask = torch.ones(num_rows, past_len + num_rows, dtype=torch.bool, device=device).tril(past_len)[None, None]
        return F.pad(mask, (0, self.num_columns - mask.shape[-1]))


class TracedLevels:
    """Stands for the [`Drafter`] within a graph: the same questions, answered from tensors alone."""

    def __init__(
        self,
        draft: EagleDraftModel,
        embed_tokens: Callable,
        lm_head: Callable | None,
        cache: Cache,
        visible: torch.Tensor,
        rotary: Rotary,
        target_ids: torch.Tensor | None,
        noise: Noise | None,
        num_columns: int,
    ):
        self.draft, self.cache = draft, cache
        self.embed_tokens, self.lm_head = embed_tokens, lm_head
        self.visible, self.rotary, self.target_ids, self.num_columns = visible, rotary, target_ids, num_columns
        self.noise = noise

    def top_children(self, hidden: torch.Tensor, width: int, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See [`Drafter.top_children`]."""
        return top_children(self.draft, self.lm_head, hidden, width, at_levels(self.noise, level))

    def visible_to_guesses(self, num_rows: int) -> torch.Tensor:
        """See [`Drafter.visible_to_guesses`]."""
        return self.visible.expand(-1, num_rows, -1)

    def to_target_ids(self, draft_ids: torch.Tensor) -> torch.Tensor:
        """See [`Drafter.to_target_ids`]."""
        return draft_ids if self.target_ids is None else self.target_ids[draft_ids]

    def level_rotary(self, depth: int) -> Rotary:
        """See [`Drafter.level_rotary`]."""
        cos, sin = self.rotary
        return cos[:, :, depth - 1 : depth], sin[:, :, depth - 1 : depth]

    def expand(
        self, hidden: torch.Tensor, tokens: torch.Tensor, rotary: Rotary, mask: torch.Tensor, width: int, level: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See [`Drafter.expand`]."""
        mask = F.pad(mask, (0, self.num_columns - mask.shape[-1]))
        return expand(
            self.draft, self.embed_tokens, self.lm_head, self.cache, hidden, tokens, rotary, mask, width,
            at_levels(self.noise, level),
        )  # fmt: skip


def _expand(state: str, *args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    depends_on(state)
    with FewRowProducts():
        return expand(*args)


def _grow(
    state: str,
    draft: EagleDraftModel,
    embed_tokens: Callable,
    lm_head: Callable | None,
    cache: Cache,
    roots: torch.Tensor,
    hidden: torch.Tensor,
    visible: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    target_ids: torch.Tensor | None,
    noise: Noise | None,
    width: int,
    depth: int,
    num_nodes: int,
    num_columns: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
    depends_on(state)
    levels = TracedLevels(draft, embed_tokens, lm_head, cache, visible, (cos, sin), target_ids, noise, num_columns)
    with FewRowProducts():
        tree = grow_dynamic_tree(levels, roots, hidden, width, depth, num_nodes, FixedSizing())
    return tree.tokens, tree.parents, tree.depths, tree.scores, tree.max_depth


def _read_and_grow(
    state: str,
    draft: EagleDraftModel,
    embed_tokens: Callable,
    lm_head: Callable | None,
    cache: Cache,
    features: torch.Tensor,
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    visible: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    target_ids: torch.Tensor | None,
    noise: Noise | None,
    width: int,
    depth: int,
    num_nodes: int,
    num_columns: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
    max_new, first_guess, (past_len, new_len) = tokens.shape[1], visible.shape[-1], lengths.unbind()
    columns = torch.arange(num_columns, device=tokens.device)
    new_rows = columns[:max_new]
    mask = F.pad(visible[0], (0, num_columns - first_guess)) | (
        (columns >= past_len) & (columns <= past_len + new_rows[:, None])
    )  # (max_new, num_columns)
    with FewRowProducts():
        hidden = draft.project_features(features)
        hidden = _step(
            draft,
            embed_tokens,
            cache,
            hidden,
            tokens,
            (cos[:, :, :max_new], sin[:, :, :max_new]),
            mask[None, None],
        )
    last = (new_len - 1)[None]
    for layer in cache.layers:
        layer.cumulative_length.fill_(first_guess)
    levels = new_len + new_rows.new_tensor(range(depth))
    return _grow(
        state, draft, embed_tokens, lm_head, cache, tokens.index_select(1, last)[0],
        hidden.index_select(1, last), mask.index_select(0, last)[None, :, :first_guess],
        cos.index_select(2, levels), sin.index_select(2, levels), target_ids, noise, width, depth, num_nodes,
        num_columns,
    )  # fmt: skip


def _kept_tree(grown: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]) -> DraftTree:
    *tensors, max_depth = grown
    tokens, parents, depths, scores = _kept(tensors)
    return DraftTree(tokens, parents, depths, scores, max_depth)


def _kept(outputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Outputs that stay: CUDA graphs write those of every replay to the same place."""
    return outputs if outputs[0].device.type == "cpu" else tuple(output.clone() for output in outputs)
