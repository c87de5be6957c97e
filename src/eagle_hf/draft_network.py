"""The head together with the embedding and the `lm_head` it borrows from its target, run as it is or compiled."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Cache, CompileConfig
from transformers.cache_utils import StaticLayer

from .attention import Rotary
from .kv_cache import GrowingCache
from .modeling_eagle import EagleDraftModel


class DraftNetwork:
    """
    Forwards of a head on the rows of one `generate` call, and its cache.

    Args:
        draft ([`EagleDraftModel`]): The head.
        embed_tokens (`Callable`): Target token ids to embeddings, used where the head has no embedding of its own.
        lm_head (`Callable`): Hidden states to target logits, used where the head has no `lm_head` of its own.
    """

    def __init__(self, draft: EagleDraftModel, embed_tokens: Callable, lm_head: Callable):
        draft.pack_projections()
        self.draft = draft
        self.embed_tokens: Callable = embed_tokens if draft.embed_tokens is None else draft.embed_tokens
        self.compute_logits: Callable = lm_head if draft.lm_head is None else draft.compute_logits
        self.cache: Cache = GrowingCache()
        self.num_forwards = 0

    def cut(self, length: int) -> None:
        """Forget all columns of the cache from `length` on."""
        self.cache.cut(length)

    def project_features(self, features: torch.Tensor) -> torch.Tensor:
        """As [`EagleDraftModel.project_features`], whatever the dtype of the features."""
        return self.draft.project_features(features.to(self.draft.dtype))

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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`step` and the `top_children` of what it returns: hidden states, log-probabilities, draft ids."""
        hidden = self.step(hidden, tokens, rotary, mask, sliding_mask)
        return hidden, *self.top_children(hidden, width)

    def top_children(self, hidden: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The likeliest next tokens of each row of `hidden` of shape `(batch_size, num_rows, hidden_size)`: their
        log-probabilities in the draft vocabulary, float32 whatever the head's dtype, and their **draft** ids, both of
        shape `(batch_size, num_rows, width)`.
        """
        return _top_children(self.compute_logits, hidden, width)


class CompiledDraftNetwork(DraftNetwork):
    """
    The same in fixed shapes, so that what runs in every step is compiled once. The cache has all its columns from the
    start, and masks reach over all of them.

    Args:
        draft, embed_tokens, lm_head: As in [`DraftNetwork`].
        compile_config ([`~transformers.CompileConfig`]): How to compile.
        num_columns (`int`): Columns of the cache: the longest text, and the guesses of a tree.
    """

    def __init__(
        self,
        draft: EagleDraftModel,
        embed_tokens: Callable,
        lm_head: Callable,
        compile_config: CompileConfig,
        num_columns: int,
    ):
        super().__init__(draft, embed_tokens, lm_head)
        self.num_columns = num_columns
        self.cache = Cache(layers=[StaticLayer(max_cache_len=num_columns) for _ in draft.layers])
        self._expand = _compiled(draft, compile_config)

    @staticmethod
    def supports(draft: EagleDraftModel) -> bool:
        """
        Whether a head can run in fixed shapes, and gains by it. On a CPU it does not: a level is bound by the weights
        it reads, and attending to all columns of the cache costs what the fused operators save.
        """
        is_usual = draft.config.sliding_window is None and not draft.config.parallel_drafting
        return is_usual and draft.device.type != "cpu"

    def cut(self, length: int) -> None:
        """See [`DraftNetwork.cut`]."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(length)

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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See [`DraftNetwork.expand`]."""
        self.num_forwards += 1
        fixed_mask = self._fixed(mask, tokens.shape[1])
        outputs = self._expand(
            self.draft, self.embed_tokens, self.compute_logits, self.cache, hidden, tokens, rotary, fixed_mask, width
        )
        # CUDA graphs write the outputs of every replay to the same place.
        return outputs if hidden.device.type == "cpu" else tuple(output.clone() for output in outputs)

    def _fixed(self, mask: torch.Tensor | None, num_rows: int) -> torch.Tensor:
        """A mask over all columns, of shape `(batch_size, 1, num_rows, num_columns)`."""
        if mask is None:
            past_len = int(self.cache.get_seq_length())
            device = self.draft.device
            mask = torch.ones(num_rows, past_len + num_rows, dtype=torch.bool, device=device).tril(past_len)[None, None]
        return F.pad(mask, (0, self.num_columns - mask.shape[-1]))


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
    return draft.step(hidden, embeds, rotary, mask, cache, packed=True, sliding_mask=sliding_mask)


def _top_children(compute_logits: Callable, hidden: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    scores = compute_logits(hidden).log_softmax(-1, dtype=torch.float32)
    values, index = scores.topk(min(width, scores.shape[-1]), dim=-1)
    return values, index


def _expand(
    draft: EagleDraftModel,
    embed_tokens: Callable,
    compute_logits: Callable,
    cache: Cache,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    rotary: Rotary,
    mask: torch.Tensor,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = _step(draft, embed_tokens, cache, hidden, tokens, rotary, mask)
    return hidden, *_top_children(compute_logits, hidden, width)


def _compiled(draft: EagleDraftModel, config: CompileConfig) -> Callable[..., Any]:
    """`_expand`, compiled once per head and way of compiling: a new wrapper would compile it again."""
    known = draft.__dict__.get("_compiled_expand")
    if known is None or known[0] != config:
        known = draft.__dict__["_compiled_expand"] = (config, torch.compile(_expand, **config.to_dict()))
    return known[1]
