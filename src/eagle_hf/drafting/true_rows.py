"""The rows of a head that have true features of the target: its cache, and where the next tree begins."""

from collections.abc import Sequence

import torch
from transformers import Cache

from ..cache.growing import GrowingCache
from ..cache.keeping import keep_nodes
from ..head.attention import Rotary
from ..target.features import FeatureReader, Learned
from ..tree import take
from .coupling import Noise
from .head_rows import HeadRows, copied_layers, owned
from .levels import CompleteHead, Levels
from .masks import causal, prompt_chunk_mask
from .rotary_table import RotaryTable


class TrueRows:
    """
    Keeps the rows of one `generate` call that have true features, left-aligned as in the target's cache:

    ```text
    row 0   (f0,t1) (f1,t2) (f2,t3) (f3,t4)          lengths         [4, 2]
    row 1   (f0,t1) (f1,t2)    .       .             root_positions  [4, 2]: of the newest tokens, t4 and t2
    ```

    Args:
        head ([`CompleteHead`]): The head.
        cache ([`~transformers.Cache`], *optional*): An empty cache for its keys and values.
    """

    PROMPT_CHUNK = 1024  # rows of a prompt that are read at once, which bounds masks and activations

    def __init__(self, head: CompleteHead, cache: Cache | None = None):
        self.head = head
        self._device, self._dtype = head.draft.device, head.draft.dtype
        self.cache: Cache = GrowingCache() if cache is None else cache
        self.num_forwards = 0
        self.lengths: list[int] = []
        self.root_positions: list[int] = []
        self.last_hidden = torch.empty(0)  # (batch_size, 1, hidden_size): output at the newest row
        self._prompt_mask: torch.Tensor | None = None  # (batch_size, num_masked), None where the prompt has no padding
        self._earlier: tuple[HeadRows, torch.Tensor] | None = None  # that an earlier call has left
        self._rotary = RotaryTable(head.draft)

    def cut(self, length: int) -> None:
        """Forgets all columns of the cache from `length` on."""
        self.cache.cut(length)

    # ------------------------------------------------------------------ reading features

    def features(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns hidden states of the target, of any device and dtype, concatenated as the head reads them."""
        return FeatureReader.concatenate(states, self._device, self._dtype)

    def begin_with(self, rows: HeadRows, valid: torch.Tensor) -> None:
        """Implements [`KeepsRows`]."""
        self._earlier = rows, valid

    def read_prompt(
        self,
        states: Sequence[torch.Tensor],
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> None:
        """
        Reads the features of the prompt, chunk by chunk: nothing grows with the square of its length. Arguments as in
        [`Drafter.read_prompt`].
        """
        seq_len = tokens.shape[1]
        # What stands for an image may be no token of the vocabulary: the target has its own embedding there.
        tokens = tokens.to(self._device).clamp(0, self.head.draft.config.vocab_size - 1)
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
                self.features([state[:, start:end] for state in states]),
                tokens[:, start:end],
                (cos[:, :, start:end], sin[:, :, start:end]),
                prompt_chunk_mask(before + start, before + end, mask, self._device),
            )
        self.lengths = [before + seq_len] * len(tokens)
        self.root_positions = (positions[:, -1] + 1).tolist()
        self.last_hidden = hidden[:, -1:].contiguous()

    def _load_earlier(self) -> torch.Tensor | None:
        """Returns which of the rows that the head begins with are real, of shape `(batch_size, num_rows)`, if any."""
        if self._earlier is None:
            return None
        (rows, valid), self._earlier = self._earlier, None
        place = {"device": self._device, "dtype": self._dtype}  # the head may have been moved
        for index, (keys, values) in enumerate(rows.layers):
            self.cache.update(keys.to(**place), values.to(**place), index)
        self.lengths, self.root_positions = list(rows.lengths), list(rows.root_positions)
        self._prompt_mask = None if rows.mask is None else rows.mask.to(self._device)
        if rows.unread is not None:
            features, tokens, counts = rows.unread
            self.read(features.to(**place), tokens.to(self._device), counts)
        self.cut(valid.shape[1])
        return valid.to(self._device)

    def read(self, features: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]) -> None:
        """Reads the features of accepted tokens; arguments as in [`Drafter.read_accepted`]."""
        new_len, mask = tokens.shape[1], None
        if new_len > 1 or self._prompt_mask is not None or min(self.lengths) < max(self.lengths):
            new = causal(new_len, 0, self._device).expand(len(counts), -1, -1)
            mask = torch.cat([self.seen().expand(-1, new_len, -1), new], dim=-1)[:, None]
        hidden = self._step(features, tokens, self.rotary(new_len), mask)
        if len(counts) > 1:  # a single row has exactly `new_len` new columns, which are in place
            keep_nodes(self.cache, self.lengths, [range(count) for count in counts], new_len)
        self.advance(counts)
        last = torch.tensor([[max(count - 1, 0)] for count in counts], device=hidden.device)
        self.last_hidden = take(hidden, last)

    def advance(self, counts: Sequence[int]) -> None:
        """Takes `counts[b]` new rows in row `b` of the batch."""
        self.lengths = [n + count for n, count in zip(self.lengths, counts, strict=True)]
        self.root_positions = [p + count for p, count in zip(self.root_positions, counts, strict=True)]

    def _step(
        self, features: torch.Tensor, tokens: torch.Tensor, rotary: Rotary, mask: torch.Tensor | None
    ) -> torch.Tensor:
        self.num_forwards += 1
        return self.head.step(self.head.draft.project_features(features), tokens, rotary, mask, self.cache)

    # ------------------------------------------------------------------ where a tree begins

    def levels(self, depth: int, noise: Noise | None) -> Levels:
        """Returns what runs the head for a tree of `depth` levels below the newest tokens."""
        return Levels(self.head, self.cache, self.seen(), self.rotary(depth), noise)

    def seen(self) -> torch.Tensor:
        """Returns which rows new ones see, of shape `(batch_size, 1, past_len)`."""
        past_len = max(self.lengths)
        seen = torch.ones(len(self.lengths), 1, past_len, dtype=torch.bool, device=self._device)
        if min(self.lengths) < past_len:
            lengths = torch.tensor(self.lengths, device=self._device)
            seen &= torch.arange(past_len, device=self._device) < lengths[:, None, None]
        if self._prompt_mask is not None:
            prompt_mask = self._prompt_mask[:, None, :past_len]
            seen[..., : prompt_mask.shape[-1]] &= prompt_mask
        return seen

    def rotary(self, count: int) -> Rotary:
        """Returns the rotary embedding of `count` rows behind the newest ones."""
        return self._rotary.rows(self.root_positions, count)

    def copied(self, unread: Learned | None) -> HeadRows:
        """Returns a copy of the rows, with features that come behind them."""
        mask = None if self._prompt_mask is None else owned(self._prompt_mask)
        if unread is not None:
            features, tokens, counts = unread
            unread = owned(features), owned(tokens), counts
        layers = copied_layers(self.cache, max(self.lengths))
        return HeadRows(layers, list(self.lengths), list(self.root_positions), mask, unread)
