"""
Drafting: from features of the target to trees of tokens.

The head keeps keys and values of rows with true target features only ([`TrueRows`]). To grow a tree it appends rows
with its own guesses for the features, level by level ([`Levels`]), and forgets them when the tree is done:

```text
cache of the head   (f0,t1) (f1,t2) ... (f[n-1],root) | level 1: K rows | level 2: K rows | ...
                    true features, stays               guesses, cut off after the tree is grown
```
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import cast

import torch
from transformers.utils import logging

from ..draft_options import DraftOptions
from ..target.features import Learned, join_steps
from ..tree import DraftTree
from .chain import Choose, draft_chain
from .coupling import Noise
from .dynamic import DynamicShape, grow_dynamic_tree
from .head_rows import HeadRows
from .levels import CompleteHead
from .parallel import grow_parallel_chain
from .policy import Plan
from .static import StaticPlan, grow_static_tree
from .true_rows import TrueRows


logger = logging.get_logger(__name__)

# Features of a prompt, the token that follows each of them, their positions, and where the prompt is padding; see
# [`Drafter.read_prompt`].
Prompt = tuple[Sequence[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor | None]


class Drafter:
    """
    Drafts for one `generate` call: learns what the target found out, and grows the next tree from it. Nothing is stored
    on the head itself, so that several calls may share it. Runs in inference mode, which is cheaper than `no_grad`; the
    trees are made of inference tensors.

    Args:
        head ([`CompleteHead`]): The head, with what it borrows from the target.
        options ([`DraftOptions`]): The shape of the tree.
        stops_early (`bool`, defaults to `False`): As in [`DynamicShape`].
        rows ([`TrueRows`], *optional*): Keeps the true features.
    """

    MAX_UNREAD = 64  # steps whose features wait for the next tree; a text may go on for long without any

    def __init__(
        self,
        head: CompleteHead,
        options: DraftOptions,
        stops_early: bool = False,
        rows: TrueRows | None = None,
    ):
        self.head, self.options, self.stops_early = head, options, stops_early
        self._max_depth = options.max_depth
        self.is_stopped = False
        self._rows = TrueRows(head) if rows is None else rows
        self._prompt: Prompt | None = None  # that waits to be read
        self._unread: list[Learned] = []  # steps behind it
        self._num_forwards = 0  # for trees
        self._is_broken: torch.Tensor | None = None  # whether the last tree is one of NaN, on its way to the host
        self._static_plans: dict[int, StaticPlan] = {}  # by depth limit

    @property
    def num_forwards(self) -> int:
        """Forwards of the head so far."""
        return self._num_forwards + self._rows.num_forwards

    # ------------------------------------------------------------------ true features

    def begin_with(self, rows: HeadRows, valid: torch.Tensor) -> None:
        """Implements [`KeepsRows`]."""
        self._rows.begin_with(rows, valid)

    @torch.inference_mode()
    def rows(self, reads_prompt: bool) -> HeadRows | None:
        """Implements [`KeepsRows`]."""
        self._stop_if_broken()
        if reads_prompt:
            self._read_waiting_prompt()
        if self._prompt is not None or self.is_stopped or not self._rows.lengths:
            return None
        return self._rows.copied(join_steps(self._unread) if self._unread else None)

    def defer_prompt(
        self, states: Sequence[torch.Tensor], tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> None:
        """Keeps the features of the prompt until the first tree is grown; arguments as in `read_prompt`."""
        self._prompt = states, tokens, positions, mask

    def read_prompt(
        self, states: Sequence[torch.Tensor], tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> None:
        """
        Learns the features of the prompt.

        Args:
            states (`Sequence[torch.Tensor]`, each of shape `(batch_size, seq_len, target_hidden_size)`):
                Hidden states of the target that the features are made of, on any device and of any dtype.
            tokens (`torch.LongTensor` of shape `(batch_size, seq_len)`): The token that follows each of them.
            positions (`torch.LongTensor` of shape `(batch_size, seq_len)`): Positions of the features.
            mask (`torch.BoolTensor` of shape `(batch_size, seq_len)`, *optional*): `False` where the prompt is padding.
        """
        self.defer_prompt(states, tokens, positions, mask)
        self._read_waiting_prompt()

    @torch.inference_mode()
    def _read_waiting_prompt(self) -> bool:
        """Reads the prompt if it waits. Returns whether it did."""
        prompt, self._prompt = self._prompt, None
        if prompt is not None:
            self._rows.read_prompt(*prompt)
        return prompt is not None

    def read_accepted(self, features: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]) -> None:
        """
        Learns the features of newly accepted tokens, before the next tree is grown.

        Args:
            features (`torch.Tensor` of shape `(batch_size, new_len, num_features * target_hidden_size)`): Features.
            tokens (`torch.LongTensor` of shape `(batch_size, new_len)`): The token that follows each of them.
            counts (`Sequence[int]` of length `batch_size`): How many of the `new_len` columns are real, row by row.
        """
        if self.is_stopped:
            return
        if len(self._unread) >= self.MAX_UNREAD:
            self._read_waiting_prompt()
            self._read_accepted()
        self._unread.append((self._rows.features([features]), tokens.to(self.head.draft.device), counts))

    @torch.inference_mode()
    def _read_accepted(self) -> None:
        """Reads all that was accepted since the last tree, at once."""
        if self._unread:
            steps, self._unread = self._unread, []
            self._rows.read(*(join_steps(steps) if len(steps) > 1 else steps[0]))

    # ------------------------------------------------------------------ trees

    def stop(self) -> None:
        """Drafts nothing any more: from now on every step is a plain one."""
        self.is_stopped = True

    def _stop_if_broken(self) -> None:
        """
        Stops if the last tree shows that the head's logits are NaN. This is asked one step later, when choosing the
        target's tokens has waited for that tree: asking takes no wait of its own.
        """
        is_broken, self._is_broken = self._is_broken, None
        if is_broken is not None and bool(is_broken):
            self.stop()
            logger.warning_once(
                "The draft's logits are NaN, so that the rest of this text is generated without it (the text is right "
                "all the same). Check the head's weights, and its dtype: float16 overflows in some models."
            )

    def grow(
        self,
        roots: torch.Tensor,
        max_depth: int,
        plan: Plan | None = None,
        noise_ahead: Callable[[int], Noise | None] | None = None,
    ) -> DraftTree:
        """
        Grows the trees of the next step. The cache is left as it was.

        Args:
            roots (`torch.LongTensor` of shape `(batch_size,)`): The newest token of every row.
            max_depth (`int`): Deepest level that can still be used; deeper ones would exceed the length limit.
            plan ([`Plan`], *optional*): Says whether to draft, and what of a tree is worth verifying.
            noise_ahead (`Callable`, *optional*):
                The noise that so many next tokens are going to be sampled with, if any.

        Returns:
            [`DraftTree`]
        """
        plan = Plan(self.options.draft_threshold) if plan is None else plan
        self._stop_if_broken()
        if max_depth < 1 or self.is_stopped or not plan.drafts:
            return DraftTree.root_only(roots)
        if self._read_waiting_prompt():
            plan.restart_clock()
        with torch.inference_mode():
            depth = min(max_depth, self._max_depth)
            noise = None if noise_ahead is None else self.head.own_noise(noise_ahead(depth))
            tree = self._grow(roots.to(self.head.draft.device), depth, plan, noise)
            self._rows.cut(max(self._rows.lengths))
            if tree.num_nodes > 1:  # even the likeliest token is impossible
                self._is_broken = tree.scores[:, 1].isneginf().any().to("cpu", non_blocking=True)
            return tree.to(roots.device)

    @torch.inference_mode()
    def grow_chain(self, max_depth: int, choose: Choose) -> None:
        """
        Drafts a chain below the newest token, each token of which the caller chooses. The cache is left as it was.

        Args:
            max_depth (`int`): Most tokens that can be used.
            choose (`Callable`): As in [`draft_chain`].
        """
        self._read_waiting_prompt()
        self._read_accepted()
        depth = min(max_depth, self.options.draft_depth, self.options.num_assistant_tokens)
        placeholder = self._placeholder if self.head.draft.config.parallel_drafting else None
        levels = self._rows.levels(depth, None)
        draft_chain(levels, self._rows.last_hidden, depth, choose, placeholder)
        self._num_forwards += levels.num_forwards
        self._rows.cut(max(self._rows.lengths))

    def _grow(self, roots: torch.Tensor, depth: int, plan: Plan, noise: Noise | None) -> DraftTree:
        self._read_accepted()
        levels, hidden, options = self._rows.levels(depth, noise), self._rows.last_hidden, self.options
        if self.head.draft.config.parallel_drafting:
            depth = min(depth, options.num_assistant_tokens)
            tree = grow_parallel_chain(levels, roots, hidden, self._placeholder, depth, options.draft_threshold)
        elif options.draft_tree == "static":
            tree = grow_static_tree(levels, roots, hidden, self._static_plan(depth))
        else:
            tree = grow_dynamic_tree(levels, roots, hidden, self._dynamic_shape(depth), plan)
        self._num_forwards += levels.num_forwards
        return tree

    def _dynamic_shape(self, depth: int) -> DynamicShape:
        width = 1 if self.options.draft_tree == "chain" else self.options.draft_width
        return DynamicShape(width, depth, 1 + self.options.num_assistant_tokens, self.stops_early)

    def _static_plan(self, depth: int) -> StaticPlan:
        if depth not in self._static_plans:
            self._static_plans[depth] = StaticPlan.make(self.options.static_paths, depth, self.head.draft.device)
        return self._static_plans[depth]

    @cached_property
    def _placeholder(self) -> tuple[torch.Tensor, int]:
        """P-EAGLE: what stands for an unknown feature, and for an unknown token; see [`grow_parallel_chain`]."""
        draft = self.head.draft
        return draft.project_features(draft.mask_hidden), cast(int, draft.config.mask_token_id)
