"""
Drafting: the head's cache of true features, and the rows that a tree grows from.

The head keeps keys and values of rows with true target features only. To grow a tree it appends rows with its own
guesses for the features, level by level, and forgets them when the tree is done:

```text
cache of the head   (f0,t1) (f1,t2) ... (f[n-1],root) | level 1: K rows | level 2: K rows | ...
                    true features, stays               guesses, cut off after the tree is grown
```
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import CompileConfig

from ..cache.keeping import keep_nodes
from ..draft_options import DraftOptions
from ..fast.compiled_head import CompiledDraftNetwork
from ..head.attention import Rotary
from ..head.modeling_eagle import EagleDraftModel
from ..target.features import FeatureReader, Learned, join_steps
from ..tree import DraftTree
from .auto_size import FixedSizing, TreeSizing
from .coupling import Noise, NoiseAhead, for_vocabulary
from .draft_network import DraftNetwork
from .dynamic import grow_dynamic_tree, take
from .head_rows import HeadRows, owned
from .masks import prompt_chunk_mask, within_window
from .parallel import grow_parallel_chain
from .rotary_table import RotaryTable
from .static import StaticPlan, grow_static_tree


class Drafter:
    """
    What one `generate` call knows about its draft: the head's cache, and the state that the next tree grows from.
    Nothing is stored on the head itself, so that several calls may share it. Runs in inference mode, which is cheaper
    than `no_grad`; the trees are made of inference tensors.

    Args:
        draft ([`EagleDraftModel`]): The head.
        options ([`DraftOptions`]): The shape of the tree.
        embed_tokens (`Callable`):
            Target token ids to embeddings, from [`lent_embedding`]; used where the head has no embedding of its own.
        lm_head (`Callable`, *optional*):
            Hidden states to target logits, from [`lent_lm_head`]; used where the head has no `lm_head` of its own.
        compile_config ([`~transformers.CompileConfig`], *optional*):
            Compile what runs in every level of a tree. Needs `max_length`.
        max_length (`int`, *optional*): Tokens of the longest text, where it is known.
        sizing ([`TreeSizing`], *optional*): For trees of `"auto"` size: what is known about their worth.
    """

    PROMPT_CHUNK = 1024  # rows of a prompt that are read at once, which bounds masks and activations
    MAX_UNREAD = 64  # steps whose features wait for the next tree; a text may go on for long without any

    def __init__(
        self,
        draft: EagleDraftModel,
        options: DraftOptions,
        embed_tokens: Callable[[torch.Tensor], torch.Tensor],
        lm_head: Callable[[torch.Tensor], torch.Tensor] | None,
        compile_config: CompileConfig | None = None,
        max_length: int | None = None,
        sizing: TreeSizing | None = None,
    ):
        self.draft = draft
        self.options = options
        self._device, self._dtype = draft.device, draft.dtype
        if compile_config is not None and max_length is not None and CompiledDraftNetwork.supports(draft):
            self.network: DraftNetwork = CompiledDraftNetwork(
                draft, embed_tokens, lm_head, compile_config, max_length, options.max_guesses, 1 + options.draft_depth
            )
        else:
            self.network = DraftNetwork(draft, embed_tokens, lm_head)
        self.sizing = FixedSizing(options.draft_threshold) if sizing is None else sizing
        self._unread: list[Learned] = []  # arguments of `read_accepted`
        self._deferred: tuple[Any, ...] | None = None  # arguments of `read_prompt`
        self.is_stopped = False
        self._target_ids = draft.draft_to_target_ids if draft.has_reduced_vocabulary else None
        self._rotary = RotaryTable(draft)
        self._static_plans: dict[int, StaticPlan] = {}  # by depth limit
        self._lengths: list[int] = []  # committed rows of the cache
        self._num_accepted: list[int] = []  # new tokens of every row
        self._root_positions: list[int] = []  # position of the newest token
        self._prompt_mask: torch.Tensor | None = None  # (batch_size, prompt_len), None where the prompt has no padding
        self._earlier: tuple[HeadRows, torch.Tensor] | None = None  # that an earlier call has left
        self._placeholder: torch.Tensor | None = None
        self._noise = NoiseAhead(lambda num_levels: None, 0)  # that the tree's tokens will be sampled with
        self.mask_token_id = draft.config.mask_token_id  # P-EAGLE: what stands for an unknown token
        self._last_hidden = torch.empty(0)  # (batch_size, 1, hidden_size): output at the newest true feature

    # ------------------------------------------------------------------ true features

    def begin_with(self, rows: HeadRows, valid: torch.Tensor) -> None:
        """See [`KeepsRows`]."""
        self._earlier = rows, valid

    @torch.inference_mode()
    def _load_earlier(self) -> torch.Tensor | None:
        """Returns which of the rows that the head begins with are real, of shape `(batch_size, num_rows)`, if any."""
        if self._earlier is None:
            return None
        (rows, valid), self._earlier = self._earlier, None
        place = {"device": self._device, "dtype": self._dtype}  # the head may have been moved
        self.network.load_rows([(keys.to(**place), values.to(**place)) for keys, values in rows.layers])
        self._lengths, self._root_positions = list(rows.lengths), list(rows.root_positions)
        self._prompt_mask = None if rows.mask is None else rows.mask.to(self._device)
        self._last_hidden = torch.empty(0, device=self._device)
        if rows.unread is not None:
            features, tokens, counts = rows.unread
            self._read_accepted(features.to(**place), tokens.to(self._device), counts)
        self.network.cut(valid.shape[1])
        self._lengths = [valid.shape[1]] * len(valid)
        return valid.to(self._device)

    @torch.inference_mode()
    def rows(self, reads_prompt: bool) -> HeadRows | None:
        """See [`KeepsRows`]."""
        if reads_prompt:
            self._read_deferred()
        if self._deferred is not None or self.is_stopped or not self._lengths:
            return None
        unread = None
        if self._unread:
            features, tokens, counts = join_steps(self._unread)
            unread = owned(features), owned(tokens), counts
        mask = None if self._prompt_mask is None else owned(self._prompt_mask)
        layers = self.network.copied_rows(max(self._lengths))
        return HeadRows(layers, list(self._lengths), list(self._root_positions), mask, unread)

    def defer_prompt(self, *args: Any) -> None:
        """Learn the features of the prompt before the first tree; `args` are those of `read_prompt`."""
        self._deferred = args

    def _read_deferred(self) -> None:
        if self._deferred is not None:
            args, self._deferred = self._deferred, None
            self.read_prompt(*args)

    @torch.inference_mode()
    def read_prompt(
        self,
        features: torch.Tensor | Sequence[torch.Tensor],
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> None:
        """
        Learn the features of the prompt, chunk by chunk: nothing grows with the square of its length.

        Args:
            features (`torch.Tensor` of shape `(batch_size, seq_len, num_features * target_hidden_size)`):
                Features, on any device and of any dtype. Or a sequence of the hidden states that they are made of, each
                of shape `(batch_size, seq_len, target_hidden_size)`, which are then concatenated for one chunk at a
                time.
            tokens (`torch.LongTensor` of shape `(batch_size, seq_len)`): The token that follows each of them.
            positions (`torch.LongTensor` of shape `(batch_size, seq_len)`): Positions of the features.
            mask (`torch.BoolTensor` of shape `(batch_size, seq_len)`, *optional*): `False` where the prompt is padding.
        """
        states = [features] if isinstance(features, torch.Tensor) else features
        batch_size, seq_len = tokens.shape
        # What stands for an image may be no token of the vocabulary: the target has its own embedding there.
        tokens = tokens.to(self._device).clamp(0, self.draft.config.vocab_size - 1)
        positions, mask = positions.to(self._device), None if mask is None else mask.to(self._device)
        known = self._load_earlier()
        before = 0 if known is None else known.shape[1]
        if known is not None and not (mask is None and known.all()):
            mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
            mask = torch.cat([known, mask], dim=1)
        self._prompt_mask = mask
        cos, sin = self._rotary.at(positions)  # at once: some types depend on the longest position
        for start in range(0, seq_len, self.PROMPT_CHUNK):
            end = min(start + self.PROMPT_CHUNK, seq_len)
            hidden = self._step(
                self._features([state[:, start:end] for state in states]),
                tokens[:, start:end],
                (cos[:, :, start:end], sin[:, :, start:end]),
                prompt_chunk_mask(before + start, before + end, mask, self._device),
            )
            self._lengths = [before + end] * batch_size
        self._root_positions = (positions[:, -1] + 1).tolist()
        self._last_hidden = hidden[:, -1:].contiguous()
        if isinstance(self.network, CompiledDraftNetwork) and batch_size == 1:  # reads the last one again in its graph
            features = self._features([state[:, -1:] for state in states])
            self._unread.insert(0, (features, tokens[:, -1:], [1]))
            self._lengths, self._root_positions = [before + seq_len - 1], [self._root_positions[0] - 1]
            self.network.cut(before + seq_len - 1)

    def _features(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        return FeatureReader.concatenate(states, self._device, self._dtype)

    def read_accepted(self, features: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]) -> None:
        """
        Learn the features of newly accepted tokens, before the next tree is grown.

        Args:
            features (`torch.Tensor` of shape `(batch_size, new_len, num_features * target_hidden_size)`): Features.
            tokens (`torch.LongTensor` of shape `(batch_size, new_len)`): The token that follows each of them.
            counts (`Sequence[int]` of length `batch_size`): How many of the `new_len` columns are real, row by row.
        """
        if not self.is_stopped:
            if len(self._unread) >= self.MAX_UNREAD:
                self._read_deferred()
                with torch.inference_mode():
                    self._read_unread()
            self._unread.append((self._features([features]), tokens.to(self._device), counts))

    def _read_accepted(self, features: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]) -> None:
        new_len = tokens.shape[1]
        attention_mask = None
        if new_len > 1 or self._is_ragged():
            new = torch.ones(new_len, new_len, dtype=torch.bool, device=tokens.device).tril()
            past = self.visible_past(new_len)
            attention_mask = torch.cat([past, new.expand(len(counts), -1, -1)], dim=-1)[:, None]
        hidden = self._step(features, tokens, self._rotary.rows(self._root_positions, new_len), attention_mask)
        if len(counts) > 1:  # a single row has exactly `new_len` new columns, which are in place
            keep_nodes(self.network.cache, self._lengths, [range(count) for count in counts], new_len)
        self._lengths = [n + count for n, count in zip(self._lengths, counts, strict=True)]
        self._root_positions = [p + count for p, count in zip(self._root_positions, counts, strict=True)]
        last = torch.tensor([[max(count - 1, 0)] for count in counts], device=hidden.device)
        self._last_hidden = take(hidden, last)

    def _read_unread(self) -> None:
        """Learn all that was accepted since the last tree, at once."""
        if len(self._unread) > 1:
            self._unread = [join_steps(self._unread)]
        for unread in self._unread:
            self._read_accepted(*unread)
        self._unread = []

    def _is_ragged(self) -> bool:
        return self._prompt_mask is not None or min(self._lengths) < max(self._lengths)

    def visible_past(self, num_rows: int) -> torch.Tensor:
        """Which true rows each of `num_rows` new rows sees, of shape `(batch_size, num_rows, past_len)`."""
        past_len, device = max(self._lengths), self._last_hidden.device
        visible = torch.ones(len(self._lengths), num_rows, past_len, dtype=torch.bool, device=device)
        if min(self._lengths) < past_len:
            lengths = torch.tensor(self._lengths, device=device)
            visible &= torch.arange(past_len, device=device) < lengths[:, None, None]
        if self._prompt_mask is not None:
            prompt_mask = self._prompt_mask[:, None, :past_len]
            visible[..., : prompt_mask.shape[-1]] &= prompt_mask
        return visible

    def _step(
        self, features: torch.Tensor, tokens: torch.Tensor, rotary: Rotary, mask: torch.Tensor | None
    ) -> torch.Tensor:
        sliding_mask = self._within_window(mask, tokens.shape[1])
        return self.network.step(self.draft.project_features(features), tokens, rotary, mask, sliding_mask)

    def _within_window(self, mask: torch.Tensor | None, num_rows: int) -> torch.Tensor | None:
        window = self.draft.config.sliding_window
        if window is None:
            return None
        return within_window(mask, window, max(self._lengths, default=0), num_rows, self._device)

    # ------------------------------------------------------------------ trees

    def stop(self) -> None:
        """Draft nothing any more: from now on every step is a plain one."""
        self.is_stopped = True

    def _end_step(self, counts: Sequence[int]) -> None:
        """Tell what the last step brought: `counts` tokens to every row, none to rows that had finished before."""
        before = self._num_accepted or [0] * len(counts)
        self._num_accepted = [n + count for n, count in zip(before, counts, strict=True)]
        rows = [row for row, count in enumerate(counts) if count]
        if rows:
            progress = min(self._num_accepted[row] for row in rows) - min(before[row] for row in rows)
            self.sizing.end_step(sum(counts) / len(rows), progress)

    def grow(
        self, roots: torch.Tensor, max_depth: int, noise_ahead: Callable[[int], Noise | None] | None = None
    ) -> DraftTree:
        """
        Grow the trees of the next step. The cache is left as it was.

        Args:
            roots (`torch.LongTensor` of shape `(batch_size,)`): The newest token of every row.
            max_depth (`int`): Deepest level that can still be used; deeper ones would exceed the length limit.
            noise_ahead (`Callable`, *optional*):
                The noise that so many next tokens are going to be sampled with, if any.

        Returns:
            [`DraftTree`]
        """
        if self._unread:
            self._end_step(self._unread[-1][2])
        if max_depth < 1 or self.is_stopped or not self.sizing.begin_step():
            return DraftTree.root_only(roots)
        if self._deferred is not None:
            self._read_deferred()
            self.sizing.restart_clock()
        with torch.inference_mode():
            return self._grow(roots.to(self._device), max_depth, noise_ahead).to(roots.device)

    def _grow(
        self, roots: torch.Tensor, max_depth: int, noise_ahead: Callable[[int], Noise | None] | None
    ) -> DraftTree:
        draw = partial(
            _draft_noise, self.draft, self._target_ids, noise_ahead
        )  # knows nothing of this object: no cycle
        self._noise = NoiseAhead(draw, min(max_depth, self.options.max_depth))
        if self.draft.config.parallel_drafting or self.options.draft_tree == "static":
            self._read_unread()
            self.network.begin_guesses()
            tree = self._grow_planned(roots, max_depth)
        else:
            width = 1 if self.options.draft_tree == "chain" else self.options.draft_width
            depth, num_nodes = min(max_depth, self.options.draft_depth), 1 + self.options.num_assistant_tokens
            # One graph for the usual depth; the last trees of a text are less deep.
            if isinstance(self.network, CompiledDraftNetwork) and 1 < depth == self.options.draft_depth:
                tree = self._grow_in_one_graph(self.network, roots, width, depth, num_nodes)
                tree = tree.likeliest(self.sizing.num_worth(tree.scores))
            else:
                self._read_unread()
                self.network.begin_guesses()
                tree = grow_dynamic_tree(self, roots, self._last_hidden, width, depth, num_nodes, self.sizing)
            self.sizing.drafted(tree.scores, tree.max_depth)
        self.network.cut(max(self._lengths))
        return tree

    def _grow_planned(self, roots: torch.Tensor, max_depth: int) -> DraftTree:
        """Trees whose shape does not depend on the text: of P-EAGLE, and static ones."""
        if self.draft.config.parallel_drafting:
            depth = min(max_depth, self.options.draft_depth, self.options.num_assistant_tokens)
            return grow_parallel_chain(self, roots, self._last_hidden, depth, self.options.draft_threshold)
        depth = min(max_depth, len(self.options.static_paths[-1]))
        if depth not in self._static_plans:
            self._static_plans[depth] = StaticPlan.make(self.options.static_paths, depth, roots.device)
        return grow_static_tree(self, roots, self._last_hidden, self._static_plans[depth])

    def _grow_in_one_graph(
        self, network: CompiledDraftNetwork, roots: torch.Tensor, width: int, depth: int, num_nodes: int
    ) -> DraftTree:
        if len(roots) > 1:  # rows learn different numbers of features
            self._read_unread()
            network.begin_guesses()
            rotary = self._rotary.rows(self._root_positions, depth)
            return network.grow(
                roots, self._last_hidden, self.visible_past(1), rotary, self._target_ids,
                self._noise.at_levels(1, depth), width, depth, num_nodes,
            )  # fmt: skip
        features, tokens, _ = join_steps(self._unread)
        if (too_many := tokens.shape[1] - network.max_new) > 0:  # after steps without a tree
            self._read_accepted(features[:, :too_many], tokens[:, :too_many], [too_many])
            features, tokens = features[:, too_many:], tokens[:, too_many:]
        rotary = self._rotary.rows(self._root_positions, network.max_new + depth)
        tree = network.read_and_grow(
            features, tokens, self.visible_past(1), rotary, self._target_ids, self._noise.at_levels(1, depth), width,
            depth, num_nodes,
        )  # fmt: skip
        self._lengths, self._root_positions, self._unread = (
            [self._lengths[0] + tokens.shape[1]],
            [self._root_positions[0] + tokens.shape[1]],
            [],
        )
        return tree

    def visible_to_guesses(self, num_rows: int) -> torch.Tensor:
        """`visible_past` for guesses, with the columns between the true rows and them."""
        return self.network.up_to_guesses(self.visible_past(num_rows))

    def level_rotary(self, depth: int) -> Rotary:
        """Rotary embedding of the nodes at a depth, the same for all of them."""
        return self._rotary.rows([position + depth - 1 for position in self._root_positions], 1)

    def following_rotary(self, count: int) -> Rotary:
        """Rotary embedding of the `count` rows behind the newest true one."""
        return self._rotary.rows(self._root_positions, count)

    @property
    def placeholder(self) -> torch.Tensor:
        """P-EAGLE: what stands for an unknown feature, projected, of shape `(1, 1, hidden_size)`."""
        if self._placeholder is None:
            self._placeholder = self.draft.project_features(self.draft.mask_hidden)
        return self._placeholder

    def step(
        self, hidden: torch.Tensor, tokens: torch.Tensor, rotary: Rotary, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """
        One forward of the head, which appends rows to its cache.

        Args:
            hidden (`torch.Tensor` of shape `(batch_size, num_rows, hidden_size)`): Projected features, or guesses.
            tokens (`torch.LongTensor` of shape `(batch_size, num_rows)`): Target ids of the tokens paired with them.
            rotary (pair of `torch.Tensor`): Rotary embedding of the rows.
            mask (`torch.BoolTensor` of shape `(batch_size, 1, num_rows, past_len + num_rows)`, *optional*): What they
            see.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_rows, hidden_size)`
        """
        sliding_mask = self._within_window(mask, tokens.shape[1])
        return self.network.step(hidden, tokens, rotary, mask, sliding_mask)

    def top_children(
        self, hidden: torch.Tensor, width: int, level: int, num_levels: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The `width` likeliest children of nodes, given the noise that they will be sampled with, if any.

        Args:
            hidden (`torch.Tensor` of shape `(batch_size, num_rows, hidden_size)`): Output of the head at the nodes.
            width (`int`): Children of each.
            level (`int`): Level of the children, 1 being those of the root.
            num_levels (`int`, defaults to 1): If more, every row is a level of its own.

        Returns:
            Log-probabilities and **draft** ids, both of shape `(batch_size, num_rows, width)`.
        """
        return self.network.top_children(hidden, width, self._noise.at_levels(level, num_levels))

    def expand(
        self, hidden: torch.Tensor, tokens: torch.Tensor, rotary: Rotary, mask: torch.Tensor, width: int, level: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        `step`, and the `width` likeliest children of its rows, on level `level`.

        Returns:
            Hidden states of shape `(batch_size, num_rows, hidden_size)`; log-probabilities and **draft** ids of the
            children, both of shape `(batch_size, num_rows, width)`.
        """
        sliding_mask = self._within_window(mask, tokens.shape[1])
        return self.network.expand(hidden, tokens, rotary, mask, sliding_mask, width, self._noise.at_levels(level))

    @property
    def num_forwards(self) -> int:
        """Forwards of the head so far."""
        return self.network.num_forwards

    def to_target_ids(self, draft_ids: torch.Tensor) -> torch.Tensor:
        """Target ids of draft ids, of any shape."""
        return draft_ids if self._target_ids is None else self._target_ids[draft_ids]


def _draft_noise(
    draft: EagleDraftModel,
    target_ids: torch.Tensor | None,
    noise_ahead: Callable[[int], Noise | None] | None,
    num_levels: int,
) -> Noise | None:
    """The noise of so many levels in the vocabulary of a head, of which `target_ids` are the ids if it is reduced."""
    noise = noise_ahead(num_levels) if noise_ahead is not None else None
    if noise is None:
        return None
    noise = noise[0].to(draft.device), noise[1].to(draft.device)
    if draft.lm_head is None:
        return noise
    return for_vocabulary(noise, target_ids, draft.config.draft_vocab_size or draft.config.vocab_size)
