"""One tree's forwards of the head, level by level, from tensors alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import Cache

from ..head.attention import Rotary
from ..head.modeling_eagle import EagleDraftModel
from .coupling import Noise, at_levels, for_vocabulary, log_probs
from .masks import within_window


@dataclass(frozen=True)
class CompleteHead:
    """
    A head together with what it borrows from its target.

    Args:
        draft ([`EagleDraftModel`]): The head.
        embed_tokens (`Callable`): Target token ids to embeddings: the head's own, or that of the target.
        lm_head (`Callable`, *optional*): The target's, for heads that have none: hidden states to target logits.
        target_ids (`torch.LongTensor` of shape `(draft_vocab_size,)`, *optional*):
            Target ids of the draft vocabulary; `None` where both vocabularies are the same.
    """

    draft: EagleDraftModel
    embed_tokens: Callable[[torch.Tensor], torch.Tensor]
    lm_head: Callable[[torch.Tensor], torch.Tensor] | None
    target_ids: torch.Tensor | None

    @classmethod
    def make(cls, draft: EagleDraftModel, embed_tokens: Callable, lm_head: Callable | None) -> "CompleteHead":
        """
        Completes a head.

        Args:
            draft ([`EagleDraftModel`]): The head.
            embed_tokens (`Callable`): The target's, see [`lent_embedding`]; for heads without an embedding.
            lm_head (`Callable`, *optional*): The target's, see [`lent_lm_head`]; for heads without an `lm_head`.
        """
        embed = embed_tokens if draft.embed_tokens is None else draft.embed_tokens
        return cls(draft, embed, lm_head, draft.draft_to_target_ids if draft.has_reduced_vocabulary else None)

    def step(
        self, hidden: torch.Tensor, tokens: torch.Tensor, rotary: Rotary, mask: torch.Tensor | None, cache: Cache
    ) -> torch.Tensor:
        """
        Runs one forward, which appends rows to the cache.

        Args:
            hidden (`torch.Tensor` of shape `(batch_size, num_rows, hidden_size)`): Projected features, or guesses.
            tokens (`torch.LongTensor` of shape `(batch_size, num_rows)`): Target ids of the tokens paired with them.
            rotary (pair of `torch.Tensor`): Rotary embedding of the rows.
            mask (`torch.BoolTensor` of shape `(batch_size, 1, num_rows, past_len + num_rows)`, *optional*): What they
                see. `None` is causal, and allowed for a single row or an empty cache only.
            cache ([`~transformers.Cache`]): Keys and values of earlier rows.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_rows, hidden_size)`
        """
        sliding_mask, window = None, self.draft.config.sliding_window
        if window is not None:
            sliding_mask = within_window(mask, window, cache.get_seq_length(), tokens.shape[1], hidden.device)
        embeds = self.embed_tokens(tokens).to(hidden.dtype)
        return self.draft.step(hidden, embeds, rotary, mask, cache, sliding_mask=sliding_mask)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns scores of the draft vocabulary, of shape `(..., draft_vocab_size)`."""
        return self.draft.compute_logits(hidden, self.lm_head)

    def own_noise(self, noise: Noise | None) -> Noise | None:
        """Returns noise of the target's vocabulary in that of `logits`; `None` where the two do not fit."""
        if noise is None:
            return None
        noise, config = (noise[0].to(self.draft.device), noise[1].to(self.draft.device)), self.draft.config
        if self.draft.lm_head is None:
            return noise
        return for_vocabulary(noise, self.target_ids, config.draft_vocab_size or config.vocab_size)


@dataclass
class Levels:
    """
    Runs the head for one tree, level by level; eagerly, and in the same way inside a compiled graph. Every level is
    appended to the cache behind the true rows and the levels above:

    ```text
    columns   true rows           level 1   level 2
    mask      seen                among                 of the nodes of level 2
    ```

    Args:
        head ([`CompleteHead`]): The head.
        cache ([`~transformers.Cache`]): Its keys and values.
        seen (`torch.BoolTensor` of shape `(batch_size, 1, past_len)`): True rows that all nodes see.
        rotary (pair of `torch.Tensor` of shape `(batch_size or 1, 1, depth, head_dim)`):
            Rotary embedding of the levels, from level 1 on.
        noise (`Noise`, *optional*): What tokens of the levels are going to be sampled with, from level 1 on.
        num_columns (`int`, *optional*): Columns of a cache of fixed size, all of which masks cover.
    """

    head: CompleteHead
    cache: Cache
    seen: torch.Tensor
    rotary: Rotary
    noise: Noise | None = None
    num_columns: int | None = None
    num_forwards: int = 0

    def children(
        self, hidden: torch.Tensor, width: int, level: int, num_levels: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Finds the `width` likeliest children of nodes, given the noise that they will be sampled with, if any.

        Args:
            hidden (`torch.Tensor` of shape `(batch_size, num_rows, hidden_size)`): Output of the head at the nodes.
            width (`int`): Children of each; fewer if the draft vocabulary is smaller.
            level (`int`): Level of the children, 1 being those of the root.
            num_levels (`int`, defaults to 1): If more, every row is a level of its own.

        Returns:
            Log-probabilities, float32 whatever the head's dtype, and target ids, both of shape `(batch_size, num_rows,
            width)`.
        """
        scores = log_probs(self.head.logits(hidden), at_levels(self.noise, level, num_levels))
        scores, ids = scores.topk(min(width, scores.shape[-1]), dim=-1)
        return scores, ids if self.head.target_ids is None else self.head.target_ids[ids]

    def step(
        self, hidden: torch.Tensor, tokens: torch.Tensor, among: torch.Tensor, level: int, num_levels: int = 1
    ) -> torch.Tensor:
        """
        Runs the nodes of a level.

        Args:
            hidden (`torch.Tensor` of shape `(batch_size, num_nodes, hidden_size)`): Output of the head at the parents.
            tokens (`torch.LongTensor` of shape `(batch_size, num_nodes)`): Target ids of the nodes.
            among (`torch.BoolTensor` of shape `(batch_size, num_nodes, num_guesses)`): What they see of the nodes run
                so far, themselves included: their path.
            level (`int`): The level, 1 being the children of the root.
            num_levels (`int`, defaults to 1): If more, every node is a level of its own.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_nodes, hidden_size)`: Output of the head at the nodes.
        """
        self.num_forwards += 1
        mask = torch.cat([self.seen.expand(-1, tokens.shape[1], -1), among], dim=-1)[:, None]
        if self.num_columns is not None:
            mask = F.pad(mask, (0, self.num_columns - mask.shape[-1]))
        cos, sin = (part[:, :, level - 1 : level - 1 + num_levels] for part in self.rotary)
        return self.head.step(hidden, tokens, (cos, sin), mask, self.cache)

    def expand(
        self, hidden: torch.Tensor, tokens: torch.Tensor, among: torch.Tensor, width: int, level: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Runs the nodes of a level (`step`) and finds the `width` likeliest children of each (`children`).

        Returns:
            Hidden states of shape `(batch_size, num_nodes, hidden_size)`; log-probabilities and target ids of the
            children, both of shape `(batch_size, num_nodes, width)`.
        """
        hidden = self.step(hidden, tokens, among, level)
        return hidden, *self.children(hidden, width, level + 1)
