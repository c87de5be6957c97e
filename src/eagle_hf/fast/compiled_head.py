"""The head in fixed shapes: whole trees in one graph, compiled once and run in every step."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, CompileConfig
from transformers.cache_utils import StaticLayer

from ..cache.fixed import round_up
from ..draft_options import DraftOptions
from ..drafting.coupling import Noise
from ..drafting.drafter import Drafter
from ..drafting.dynamic import DynamicShape, grow_dynamic_tree
from ..drafting.levels import CompleteHead, Levels
from ..drafting.masks import causal
from ..drafting.policy import Plan
from ..drafting.static import StaticPlan, grow_static_tree
from ..drafting.true_rows import TrueRows
from ..head.attention import Rotary
from ..head.modeling_eagle import EagleDraftModel
from ..target.features import join_steps
from ..tree import DraftTree
from .cpu import FewRowProducts
from .cpu_head import CPUHead
from .fingerprint import compiled, depends_on, state_of
from .waiting import reads_freely


class FixedRows(TrueRows):
    """
    Keeps rows in fixed shapes: the cache has all its columns from the start, masks reach over all of them, and guesses
    have a place of their own behind the longest text:

    ```text
    (f0,t1) (f1,t2) ... (f[n-1],root)  .  .  .  | level 1: K rows | level 2: K rows | ...
    true features                      free     guesses
    ```

    Args:
        head ([`CompleteHead`]): The head.
        max_length (`int`): Tokens of the longest text.
        num_guesses (`int`): Columns behind it.
    """

    def __init__(self, head: CompleteHead, max_length: int, num_guesses: int):
        self.first_guess = round_up(max_length)
        self.num_columns = self.first_guess + num_guesses
        super().__init__(head, Cache(layers=[StaticLayer(max_cache_len=self.num_columns) for _ in head.draft.layers]))

    def cut(self, length: int) -> None:
        """Implements [`TrueRows.cut`]."""
        _cut(self.cache, length)

    def levels(self, depth: int, noise: Noise | None) -> Levels:
        """Implements [`TrueRows.levels`]; what is appended from now on, until `cut`, stands in the place of guesses."""
        seen = self.seen()
        seen = F.pad(seen, (0, self.first_guess - seen.shape[-1]))
        self.cut(self.first_guess)
        return Levels(self.head, self.cache, seen, self.rotary(depth), noise, self.num_columns)

    def _step(
        self, features: torch.Tensor, tokens: torch.Tensor, rotary: Rotary, mask: torch.Tensor | None
    ) -> torch.Tensor:
        if mask is None:
            mask = causal(tokens.shape[1], int(self.cache.get_seq_length()), tokens.device)[None, None]
        return super()._step(features, tokens, rotary, F.pad(mask, (0, self.num_columns - mask.shape[-1])))


class CompiledDrafter(Drafter):
    """
    Drafts in fixed shapes: a tree of the usual depth is one graph, for a single row together with reading what was
    accepted since the last one. The last trees of a text, which are less deep, are grown level by level.

    Args:
        head ([`CompleteHead`]): The head.
        options ([`DraftOptions`]): The shape of the tree.
        compile_config ([`~transformers.CompileConfig`]): How to compile.
        max_length (`int`): Tokens of the longest text.
    """

    _rows: FixedRows

    def __init__(
        self,
        head: CompleteHead,
        options: DraftOptions,
        compile_config: CompileConfig,
        max_length: int,
    ):
        self._max_new = 1 + options.max_depth  # features that a graph reads at most
        # Unused rows of what a graph reads reach beyond the text's end.
        rows = FixedRows(head, max_length, max(options.max_guesses, self._max_new))
        super().__init__(head, options, rows=rows)
        state = state_of(head.draft, *(p for p in (head.embed_tokens, head.lm_head) if isinstance(p, nn.Module)))
        self._grow_in_graph = partial(compiled(head.draft, _grow, compile_config), state)
        self._read_and_grow = partial(compiled(head.draft, _read_and_grow, compile_config), state)

    @staticmethod
    def supports(draft: EagleDraftModel) -> bool:
        """Returns whether a head can run in fixed shapes."""
        return draft.config.sliding_window is None and not draft.config.parallel_drafting

    def _read_waiting_prompt(self) -> bool:
        """Leaves the newest row of a single text to the graph, which reads one row at least."""
        prompt = self._prompt
        was_read = super()._read_waiting_prompt()
        if prompt is not None and len(prompt[1]) == 1:
            states, tokens, _, _ = prompt
            features = self._rows.features([state[:, -1:] for state in states])
            self._unread.insert(0, (features, tokens[:, -1:].to(features.device), [1]))
            self._rows.advance([-1])
            self._rows.cut(self._rows.lengths[0])
        return was_read

    def _grow(self, roots: torch.Tensor, depth: int, plan: Plan, noise: Noise | None) -> DraftTree:
        if not 1 < depth == self.options.max_depth:
            return super()._grow(roots, depth, plan, noise)
        is_static = self.options.draft_tree == "static"
        shape = self._static_plan(depth) if is_static else self._dynamic_shape(depth)
        tree = self._grow_one(shape, depth, noise) if len(roots) == 1 else self._grow_many(roots, shape, depth, noise)
        return tree if is_static else tree.likeliest(plan.num_worth(tree.scores))

    def _grow_many(
        self, roots: torch.Tensor, shape: DynamicShape | StaticPlan, depth: int, noise: Noise | None
    ) -> DraftTree:
        """Grows the trees of a batch; its rows learn different numbers of features, which are read before."""
        self._read_accepted()
        self._num_forwards += depth - 1
        levels = self._rows.levels(depth, noise)
        return _kept(self._grow_in_graph(levels, roots.clone(), self._rows.last_hidden, shape))

    def _grow_one(self, shape: DynamicShape | StaticPlan, depth: int, noise: Noise | None) -> DraftTree:
        """Reads the accepted features of a single row and grows its tree."""
        features, tokens, _ = join_steps(self._unread)
        if (too_many := tokens.shape[1] - self._max_new) > 0:  # after steps without a tree
            self._rows.read(features[:, :too_many], tokens[:, :too_many], [too_many])
            features, tokens = features[:, too_many:], tokens[:, too_many:]
        self._unread, self._num_forwards = [], self._num_forwards + depth
        past_len, new_len = self._rows.lengths[0], tokens.shape[1]
        levels = self._rows.levels(self._max_new + depth, noise)
        self._rows.cut(past_len)
        # Copies, as graphs tell views from others. Unused rows stand where the next new ones will.
        rows = features.new_zeros(1, self._max_new, features.shape[-1])
        row_tokens = tokens.new_zeros(1, self._max_new)
        rows[:, :new_len], row_tokens[:, :new_len] = features, tokens
        lengths = torch.tensor([past_len, new_len], device=tokens.device)
        tree = _kept(self._read_and_grow(levels, rows, row_tokens, lengths, shape))
        self._rows.advance([new_len])
        return tree


def choose_drafter(
    draft: EagleDraftModel,
    options: DraftOptions,
    embed_tokens: Callable[[torch.Tensor], torch.Tensor],
    lm_head: Callable[[torch.Tensor], torch.Tensor] | None,
    compile_config: CompileConfig | None = None,
    max_length: int | None = None,
) -> Drafter:
    """
    Returns the drafter of a `generate` call, compiled where that is asked for and the head can.

    Args:
        draft ([`EagleDraftModel`]): The head.
        options ([`DraftOptions`]): The shape of the tree.
        embed_tokens, lm_head (`Callable`, *optional*): As in [`CompleteHead.make`].
        compile_config ([`~transformers.CompileConfig`], *optional*): How to compile. Needs `max_length`.
        max_length (`int`, *optional*): Tokens of the longest text, where it is known.

    Returns:
        [`Drafter`]
    """
    if compile_config is not None and max_length is not None and CompiledDrafter.supports(draft):
        head = CompleteHead.make(draft, embed_tokens, lm_head)
        return CompiledDrafter(head, options, compile_config, max_length)
    head = (CPUHead if CPUHead.suits(draft) else CompleteHead).make(draft, embed_tokens, lm_head)
    # Elsewhere, reading a value would wait for the device.
    return Drafter(head, options, stops_early=reads_freely(draft.device))


# Tokens, parents, depths, scores and `max_depth` of a tree: graphs return tensors and numbers.
_Grown = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]


def _grow(
    state: str, levels: Levels, roots: torch.Tensor, hidden: torch.Tensor, shape: DynamicShape | StaticPlan
) -> _Grown:
    """
    Grows trees; what is compiled.

    Args:
        state (`str`): That of the modules, from [`state_of`].
        levels, roots, hidden: As in [`grow_dynamic_tree`].
        shape ([`DynamicShape`] or [`StaticPlan`]): Their shape.
    """
    depends_on(state)
    with FewRowProducts():
        if isinstance(shape, StaticPlan):
            tree = grow_static_tree(levels, roots, hidden, shape)
        else:
            tree = grow_dynamic_tree(levels, roots, hidden, shape, Plan(started=0.0))  # a clock would end the graph
    return tree.tokens, tree.parents, tree.depths, tree.scores, tree.max_depth


def _read_and_grow(
    state: str,
    levels: Levels,
    features: torch.Tensor,
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    shape: DynamicShape | StaticPlan,
) -> _Grown:
    """
    Reads new features of a single row and grows its tree; what is compiled.

    Args:
        state (`str`): That of the modules, from [`state_of`].
        levels ([`Levels`]): Those of the new rows and of the tree behind them, one row a level.
        features (`torch.Tensor` of shape `(1, max_new, num_features * target_hidden_size)`): New features, padded.
        tokens (`torch.LongTensor` of shape `(1, max_new)`): The token that follows each of them; the root is last.
        lengths (`torch.LongTensor` of shape `(2,)`): Rows read before, and how many of the `max_new` are real.
        shape ([`DynamicShape`] or [`StaticPlan`]): The shape of the tree.
    """
    head, cache, (cos, sin), num_columns = levels.head, levels.cache, levels.rotary, cast(int, levels.num_columns)
    max_new, first_guess, (past_len, new_len) = tokens.shape[1], levels.seen.shape[-1], lengths.unbind()
    columns = torch.arange(num_columns, device=tokens.device)
    new_rows = columns[:max_new]
    mask = F.pad(levels.seen[0], (0, num_columns - first_guess)) | (
        (columns >= past_len) & (columns <= past_len + new_rows[:, None])
    )  # (max_new, num_columns)
    with FewRowProducts():
        hidden = head.draft.project_features(features)
        hidden = head.step(hidden, tokens, (cos[:, :, :max_new], sin[:, :, :max_new]), mask[None, None], cache)
    last = (new_len - 1)[None]
    _cut(cache, first_guess)
    of_tree = new_len + torch.arange(cos.shape[2] - max_new, device=tokens.device)
    rotary = cos.index_select(2, of_tree), sin.index_select(2, of_tree)
    seen = mask.index_select(0, last)[None, :, :first_guess]
    levels = Levels(head, cache, seen, rotary, levels.noise, num_columns)
    return _grow(state, levels, tokens.index_select(1, last)[0], hidden.index_select(1, last), shape)


def _cut(cache: Cache, length: int) -> None:
    for layer in cache.layers:
        layer.cumulative_length.fill_(length)


def _kept(grown: _Grown) -> DraftTree:
    """Returns a tree that stays: CUDA graphs write the outputs of every replay to the same place."""
    tree = DraftTree(*grown)
    if tree.tokens.device.type == "cpu":
        return tree
    return DraftTree(
        tree.tokens.clone(), tree.parents.clone(), tree.depths.clone(), tree.scores.clone(), tree.max_depth
    )
