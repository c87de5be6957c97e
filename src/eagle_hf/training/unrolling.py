"""
Unrolling the head on its own outputs, as drafting does, for all positions of a text at once.

In unroll `i`, row `p` stands for the `i + 1`-th token that is drafted after the true feature of position `p`. It sees
what that draft step sees: true rows up to `p`, and the guesses made since then, which are rows `p` of the earlier
unrolls:

```text
keys of      unroll 0 (true features)      unroll 1     unroll 2
positions    0    1    2    3              0 1 2 3      0 1 2 3
row 2 of
  unroll 0   x    x    x
  unroll 1   x    x    x                       x
  unroll 2   x    x    x                       x            x
```

EAGLE-3 calls it training-time test (section 3.2 of its paper); for EAGLE-1 heads it is the harmonised context of HASS.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch.utils.checkpoint import checkpoint

from ..head.attention import Attention
from ..head.decoder_layer import EagleDecoderLayer
from ..head.modeling_eagle import EagleDraftModel


# Keys and values of one unroll, per layer: `(batch_size, num_key_value_heads, seq_len, head_dim)` each.
KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]

# Scores of this many rows exist at once. Longer texts are computed piece by piece, and pieces again when gradients are
# computed, so that memory grows with the length and not with its square.
ROWS_AT_ONCE = 512


def unroll(
    draft: EagleDraftModel,
    features: torch.Tensor,
    next_token_ids: torch.Tensor,
    embed_tokens: Callable[[torch.Tensor], torch.Tensor],
    num_steps: int,
    document_ids: torch.Tensor,
    position_ids: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """
    Unrolls the head `num_steps` times.

    Args:
        draft ([`EagleDraftModel`]): The head.
        features (`torch.Tensor` of shape `(batch_size, seq_len, num_features * target_hidden_size)`): Of the target.
        next_token_ids (`torch.LongTensor` of shape `(batch_size, seq_len + num_steps - 1)`):
            Token that follows each position. Unroll `i` pairs row `p` with entry `p + i`.
        embed_tokens (`Callable`): Target ids to embeddings. Used where the head has none of its own.
        num_steps (`int`): Unrolls; the first reads true features.
        document_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`):
            Which document of its block a position belongs to. Rows see their own document only.
        position_ids (`torch.LongTensor` of shape `(batch_size or 1, seq_len)`, *optional*):
            Rotary positions, where they do not count from 0 to `seq_len - 1`.

    Yields:
        `torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`: `last_hidden_state` of every unroll.
    """
    seq_len = features.shape[1]
    if position_ids is None:
        position_ids = torch.arange(seq_len, device=features.device)[None]
    embed = embed_tokens if draft.embed_tokens is None else draft.embed_tokens
    hidden_states = draft.project_features(features.to(draft.device, draft.dtype))
    history: list[KeysAndValues] = []
    windows = [draft.config.sliding_window if layer.has_window else None for layer in _layers(draft)]

    def one_unroll(hidden_states: torch.Tensor, step: int) -> tuple[torch.Tensor, KeysAndValues]:
        embeds = embed(next_token_ids[:, step : step + seq_len]).to(hidden_states.dtype)
        attention = _Attention(history[:step], document_ids, windows)
        with _replaced(_layers(draft), attention):
            hidden_states = draft.step(hidden_states, embeds, draft.rotary(position_ids + step), None, None)
        return hidden_states, attention.keys_and_values

    for step in range(num_steps):
        if draft.gradient_checkpointing and torch.is_grad_enabled():
            hidden_states, keys_and_values = checkpoint(one_unroll, hidden_states, step, use_reentrant=False)
        else:
            hidden_states, keys_and_values = one_unroll(hidden_states, step)
        history.append(keys_and_values)
        yield hidden_states


class _Attention:
    """
    Attention of one unroll: causal over the rows of unroll 0, and the same row only of every later one. Called by the
    layers in their order; keeps their keys and values in `keys_and_values`.
    """

    def __init__(self, history: list[KeysAndValues], document_ids: torch.Tensor, windows: list[int | None]):
        self.history = history
        self.document_ids = document_ids
        self.windows = windows
        self.keys_and_values: KeysAndValues = []

    def attend(
        self, layer: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None
    ) -> torch.Tensor:
        """Takes the place of [`Attention.attend`] in `layer`."""
        self.keys_and_values.append((key, value))
        unrolls = [keys_and_values[layer.layer_idx] for keys_and_values in self.history] + [(key, value)]
        query, seq_len, window = query * layer.scaling, query.shape[2], self.windows[layer.layer_idx]
        if seq_len <= ROWS_AT_ONCE:
            return self._rows(query, unrolls, window, 0, seq_len)
        ends = [*range(ROWS_AT_ONCE, seq_len, ROWS_AT_ONCE), seq_len]
        pieces = [
            checkpoint(self._rows, query, unrolls, window, start, end, use_reentrant=False)
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        return torch.cat(pieces, dim=1)

    def _rows(
        self,
        query: torch.Tensor,
        unrolls: list[tuple[torch.Tensor, torch.Tensor]],
        window: int | None,
        start: int,
        end: int,
    ) -> torch.Tensor:
        """Returns the output of rows `start` to `end`, of shape `(batch_size, end - start, num_heads * v_dim)`."""
        (true_keys, true_values), *guesses = unrolls
        # Query heads that share a key head are rows of one matrix product, so that keys need not be repeated.
        num_kv_heads = true_keys.shape[1]
        query = query[:, :, start:end].unflatten(1, (num_kv_heads, -1))
        groups, num_rows = query.shape[2:4]
        flat_query = query.flatten(2, 3)  # (batch_size, kv_heads, groups * num_rows, head_dim)
        scores = flat_query @ true_keys[:, :, :end].transpose(2, 3)
        scores = scores.unflatten(2, (groups, num_rows))  # (batch_size, kv_heads, groups, num_rows, end)
        documents, rows = self.document_ids, torch.arange(start, end, device=query.device)
        is_hidden = torch.arange(end, device=query.device) > rows[:, None]
        if window is not None:  # counts the guesses too, of which there is one per earlier unroll
            is_hidden = is_hidden | (torch.arange(end, device=query.device) <= rows[:, None] + len(guesses) - window)
        is_hidden = is_hidden | (documents[:, start:end, None] != documents[:, None, :end])
        scores = scores.masked_fill(is_hidden[:, None, None], torch.finfo(scores.dtype).min)
        # A guess is seen by its own row only: one score each, of shape (batch_size, kv_heads, groups, num_rows, 1).
        own = [(query * keys[:, :, None, start:end]).sum(-1, keepdim=True) for keys, _ in guesses]
        weights = torch.cat([scores, *own], dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
        output = weights[..., :end].flatten(2, 3) @ true_values[:, :, :end]
        output = output.unflatten(2, (groups, num_rows))
        for i, (_, values) in enumerate(guesses):
            output = output + weights[..., end + i, None] * values[:, :, None, start:end]
        return output.flatten(1, 2).transpose(1, 2).flatten(2)


@contextmanager
def _replaced(layers: list[EagleDecoderLayer], attention: _Attention) -> Iterator[None]:
    """Lets the layers attend as in one unroll. FSDP gathers weights as layers are called, so they are what runs."""
    attentions = [layer.self_attn for layer in layers]
    for each in attentions:
        each.attend = partial(attention.attend, each)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for each in attentions:
            del each.attend


def _layers(draft: EagleDraftModel) -> list[EagleDecoderLayer]:
    return cast(list[EagleDecoderLayer], list(draft.layers))
