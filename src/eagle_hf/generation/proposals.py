"""Where the trees of a call come from: the draft head and, on request, what followed the newest tokens before."""

from collections.abc import Callable, Sequence

import torch

from ..coupling import Noise
from ..draft_options import DraftOptions
from ..drafting import Drafter
from ..modeling_eagle import EagleDraftModel
from ..retrieval import Retrieval
from ..step_costs import StepCosts
from ..target_modules import lent_embedding, lent_lm_head
from ..tree import DraftTree
from ..tree_sizing import TreeSizing, known_sizing, remember
from .sequences import Sequences
from .target import Target


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
        if options.draft_retrieval:
            texts = sequences.ids.tolist()
            self._retrieval = Retrieval(options.draft_retrieval, texts, replaces_tree=not target.is_tree)

    def read_prompt(self) -> None:
        """Let the head learn the prompt, once the token after it is known; at the latest before its first tree."""
        prompt = self._target.prompt_features(self._sequences.prompt_len)
        following = self._sequences.ids[:, -prompt.seq_len :]
        # The next replay of a CUDA graph may write over what an earlier one has returned.
        read = self.drafter.read_prompt if self._target.has_fixed_shapes else self.drafter.defer_prompt
        read(prompt.states, following, prompt.positions, prompt.mask)

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
        return self._target.fit(tree)

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
