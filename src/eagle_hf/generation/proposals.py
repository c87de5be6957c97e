"""Where the trees of a call come from: the draft head and, on request, what followed the newest tokens before."""

from collections.abc import Callable, Sequence

import torch

from ..draft_options import DraftOptions
from ..drafting.auto_size import TreeSizing, known_sizing, remember
from ..drafting.costs import StepCosts
from ..drafting.coupling import Noise
from ..drafting.drafter import Drafter
from ..drafting.head_rows import KeepsRows, owned
from ..drafting.retrieval import Retrieval
from ..head.modeling_eagle import EagleDraftModel
from ..target.modules import lent_embedding, lent_lm_head
from ..target.recurrent import counts_columns
from ..target.target import PromptFeatures, Target
from ..tree import DraftTree
from .kept_rows import UNKNOWN, find_rows, keep_rows
from .text import Sequences


class Proposals:
    """
    Args:
        draft ([`EagleDraftModel`]): The draft head as the user has it, with which is kept what was learned about it.
        head ([`EagleDraftModel`]): The same as it drafts, from [`align_draft`].
        options ([`DraftOptions`]): The shape of the trees.
        target ([`Target`]): Verifies them; says how deep they may be, and what the head may borrow.
        sequences ([`Sequences`]): The growing texts.
        synced_gpus (`bool`): Whether other ranks take part in every forward of the target.
    """  # noqa: D205

    def __init__(
        self,
        draft: EagleDraftModel,
        head: EagleDraftModel,
        options: DraftOptions,
        target: Target,
        sequences: Sequences,
        synced_gpus: bool,
    ):
        model = target.model
        self._draft, self._target, self._sequences = draft, target, sequences
        self._is_coupled = options.draft_coupling
        # Synced ranks draft on their own, without waiting for the others.
        embed_tokens = lent_embedding(model, head.device, head.dtype, gathered=synced_gpus)
        lm_head = lent_lm_head(model, head.device, gathered=synced_gpus)
        compile_config, max_length = target.compiling()
        is_compiled, do_sample = compile_config is not None, target.generation_config.do_sample
        self._situation = (str(model.device), model.dtype, sequences.batch_size, do_sample, is_compiled)
        self.sizing: TreeSizing | None = None
        if options.draft_tree == "auto":
            warms_up = is_compiled or not target.is_on_cpu  # a GPU loads its kernels when they are first called
            unknown = TreeSizing(StepCosts(sequences.batch_size), first_plain_steps=2 if warms_up else 1)
            self.sizing = known_sizing(draft, model, self._situation, unknown)
        self.drafter = Drafter(head, options, embed_tokens, lm_head, compile_config, max_length, self.sizing)
        self._retrieval: Retrieval | None = None
        self._num_retrieved = options.draft_retrieval
        self._kept, self._is_untouched = find_rows(target.cache, model, draft, sequences.batch_size)
        self._earlier_text: torch.Tensor | None = None  # (batch_size, n): what the cache holds and the call did not say
        self._columns = torch.empty(0)  # (batch_size, num_rows): what the head's rows up to the prompt's end stand for

    def read_prompt(self) -> None:
        """Let the head learn the prompt, once the token after it is known; at the latest before its first tree."""
        prompt = self._target.prompt_features(self._sequences.prompt_len)
        self._use_kept_rows(prompt)
        if self._num_retrieved:
            is_known = self._earlier_text is None or bool((self._earlier_text != UNKNOWN).all())
            texts = (self._text() if is_known else self._sequences.ids)[:, :-1].tolist()
            self._retrieval = Retrieval(self._num_retrieved, texts, replaces_tree=not self._target.is_tree)
        following = self._sequences.ids[:, -prompt.seq_len :]
        # The next replay of a CUDA graph may write over what an earlier one has returned.
        read = self.drafter.read_prompt if self._target.has_fixed_shapes else self.drafter.defer_prompt
        read(prompt.states, following, prompt.positions, prompt.mask)

    def _use_kept_rows(self, prompt: PromptFeatures) -> None:
        """Let the head begin with its rows of an earlier call on this cache, as far as they are of this text."""
        kept, self._kept = self._kept, None
        num_missing = self._target.num_prompt_columns - self._sequences.prompt_len
        if num_missing > 0:  # the call was given its new tokens alone, or embeddings
            text = self._sequences.ids.new_full((self._sequences.batch_size, num_missing), UNKNOWN)
            if kept is not None and self._is_untouched and prompt.first_column == num_missing == kept.length:
                text = kept.text[:, :num_missing].to(text.device)
            self._earlier_text = text
        columns = torch.arange(prompt.first_column, self._target.num_prompt_columns)
        self._columns = columns.expand(self._sequences.batch_size, -1)
        if kept is not None and prompt.first_column > 0 and isinstance(self.drafter, KeepsRows):
            valid = kept.valid(self._text(), prompt.first_column)
            if valid.any():
                self.drafter.begin_with(kept.rows, valid)
                self._columns = torch.cat([kept.columns[:, : valid.shape[1]], self._columns], dim=1)

    def _text(self) -> torch.Tensor:
        """Tokens of the cache's columns and the newest ones, of shape `(batch_size, length)`, as far as known."""
        ids = self._sequences.ids
        return ids if self._earlier_text is None else torch.cat([self._earlier_text, ids], dim=1)

    def keep(self) -> None:
        """Keep what the head knows with the target's cache, for the next call on it."""
        if not counts_columns(self._target.cache):
            return
        reads_prompt = self._target.is_users_cache  # which is meant to be used again, whatever this call needed
        rows = self.drafter.rows(reads_prompt) if isinstance(self.drafter, KeepsRows) else None
        if rows is None:
            return
        first = self._target.num_prompt_columns
        following = torch.arange(first, first + rows.real().shape[1] - self._columns.shape[1])
        columns = torch.cat([self._columns, following.expand(len(self._columns), -1)], dim=1)
        keep_rows(self._target.cache, self._target.model, self._draft, rows, columns, owned(self._text()))

    def next_tree(self, open_rows: list[int], noise_ahead: Callable[[int], Noise | None]) -> DraftTree:
        """
        The trees of the next step.

        Args:
            open_rows (`list[int]`): Rows that still get tokens of their own.
            noise_ahead (`Callable`): The noise that so many next tokens are going to be sampled with, if any.
        """
        max_depth = self._target.clamp_depth(self._sequences.max_draft_depth())
        tree = self.drafter.grow(self._sequences.newest(), max_depth, noise_ahead if self._is_coupled else None)
        if self._retrieval is not None and self.drafter.sizing.looks_up:
            sizing = self.drafter.sizing
            tree = self._retrieval.add_to(tree, self._sequences.new_tokens, open_rows, max_depth, sizing)
            sizing.verifies(tree)
        return tree

    def read_accepted(self, features: torch.Tensor, paths: Sequence[Sequence[int]], open_rows: list[int]) -> None:
        """
        Let the head learn the features of accepted nodes.

        Args:
            features (`torch.Tensor` of shape `(batch_size, longest, num_features * hidden_size)`): Their features.
            paths (`Sequence[Sequence[int]]` of length `batch_size`): Accepted nodes of every row, the root first.
            open_rows (`list[int]`): Rows that had not finished before the step.
        """
        counts = [len(path) if row in open_rows else 0 for row, path in enumerate(paths)]
        self.drafter.read_accepted(features, self._sequences.last(features.shape[1], counts), counts)

    def finish(self) -> None:
        """Keep what was learned about the worth of trees for the next call."""
        if self.sizing is not None:
            remember(self._draft, self._target.model, self._situation, self.sizing)
