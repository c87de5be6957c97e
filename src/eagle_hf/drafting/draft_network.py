"""The head together with the embedding and the `lm_head` it borrows from its target."""

from collections.abc import Callable, Sequence

import torch
from transformers import Cache

from ..cache.keeping import GrowingCache
from ..head.attention import Rotary
from ..head.modeling_eagle import EagleDraftModel
from .coupling import Noise, log_probs
from .head_rows import copied_layers


class DraftNetwork:
    """
    Forwards of a head on the rows of one `generate` call, and its cache.

    Args:
        draft ([`EagleDraftModel`]): The head.
        embed_tokens (`Callable`): As in [`Drafter`].
        lm_head (`Callable`, *optional*): As in [`Drafter`].
    """

    def __init__(self, draft: EagleDraftModel, embed_tokens: Callable, lm_head: Callable | None):
        self.draft = draft
        self.embed_tokens: Callable = embed_tokens if draft.embed_tokens is None else draft.embed_tokens
        self.lm_head = lm_head
        self.cache: Cache = GrowingCache()
        self.num_forwards = 0

    def cut(self, length: int) -> None:
        """Forget all columns of the cache from `length` on."""
        self.cache.cut(length)

    def copied_rows(self, num_rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of the first rows, layer by layer, as tensors of their own."""
        return copied_layers(self.cache, num_rows)

    def load_rows(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Begin with rows that another network of the same head has had; they are copied."""
        for index, (keys, values) in enumerate(layers):
            self.cache.update(keys, values, index)

    def begin_guesses(self) -> None:
        """What is appended from now on, until `cut`, are guesses."""

    def up_to_guesses(self, visible: torch.Tensor) -> torch.Tensor:
        """
        What guesses see of the true rows, of shape `(batch_size, num_rows, past_len)`, with the columns between these
        and the guesses.
        """
        return visible

    def step(
        self,
        hidden: torch.Tensor,
        tokens: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor | None,
        sliding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        One forward, which appends rows to the cache.

        Args:
            hidden (`torch.Tensor` of shape `(batch_size, num_rows, hidden_size)`): Projected features, or guesses.
            tokens (`torch.LongTensor` of shape `(batch_size, num_rows)`): Target ids of the tokens paired with them.
            rotary (pair of `torch.Tensor`): Rotary embedding of the rows.
            mask (`torch.BoolTensor` of shape `(batch_size, 1, num_rows, past_len + num_rows)`, *optional*): What they
                see. `None` is causal, and allowed for a single row or an empty cache only.
            sliding_mask (`torch.BoolTensor`, *optional*): The same for layers with a sliding window.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_rows, hidden_size)`
        """
        self.num_forwards += 1
        return _step(self.draft, self.embed_tokens, self.cache, hidden, tokens, rotary, mask, sliding_mask)

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
        """`step` and the `top_children` of what it returns: hidden states, log-probabilities, draft ids."""
        hidden = self.step(hidden, tokens, rotary, mask, sliding_mask)
        return hidden, *self.top_children(hidden, width, noise)

    def top_children(
        self, hidden: torch.Tensor, width: int, noise: Noise | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The likeliest next tokens of each row of `hidden` of shape `(batch_size, num_rows, hidden_size)`: their
        log-probabilities in the draft vocabulary, given the noise if there is any, float32 whatever the head's dtype;
        and their **draft** ids. Both of shape `(batch_size, num_rows, width)`.
        """
        return top_children(self.draft, self.lm_head, hidden, width, noise)


def _step(
    draft: EagleDraftModel,
    embed_tokens: Callable,
    cache: Cache,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    rotary: Rotary,
    mask: torch.Tensor | None,
    sliding_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    embeds = embed_tokens(tokens).to(hidden.dtype)
    return draft.step(hidden, embeds, rotary, mask, cache, sliding_mask=sliding_mask)


def top_children(
    draft: EagleDraftModel, lm_head: Callable | None, hidden: torch.Tensor, width: int, noise: Noise | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See [`DraftNetwork.top_children`]."""
    scores = log_probs(draft.compute_logits(hidden, lm_head), noise)
    values, index = scores.topk(min(width, scores.shape[-1]), dim=-1)
    return values, index


def expand(
    draft: EagleDraftModel,
    embed_tokens: Callable,
    lm_head: Callable | None,
    cache: Cache,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    rotary: Rotary,
    mask: torch.Tensor,
    width: int,
    noise: Noise | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See [`DraftNetwork.expand`]."""
    hidden = _step(draft, embed_tokens, cache, hidden, tokens, rotary, mask)
    return hidden, *top_children(draft, lm_head, hidden, width, noise)
