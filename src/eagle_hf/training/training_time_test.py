"""
The objective of EAGLE-3 (section 3.2 of the paper, "training-time test"): the head is unrolled in training as it is in
drafting, on its own outputs, and learns the target's distribution at every unrolled step. There is no loss on features.

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
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers.models.llama.modeling_llama import repeat_kv

from ..attention import EagleAttention, Rotary
from ..modeling_eagle import EagleDecoderLayer, EagleDraftModel
from ..multi_head_latent_attention import MultiHeadLatentAttention


@dataclass
class TrainingTimeTestOutput:
    """
    Args:
        loss (`torch.Tensor`): Weighted sum of the losses of all unrolls.
        step_losses (`torch.Tensor` of shape `(num_steps,)`): Loss of each unroll.
        step_accuracies (`torch.Tensor` of shape `(num_steps,)`):
            Share of trained positions at which the likeliest draft token is the target's.
        last_hidden_states (`list[torch.Tensor]`):
            Output of each unroll, of shape `(batch_size, seq_len, hidden_size)`.
    """  # noqa: D205

    loss: torch.Tensor
    step_losses: torch.Tensor
    step_accuracies: torch.Tensor
    last_hidden_states: list[torch.Tensor]


def training_time_test_loss(
    draft: EagleDraftModel,
    features: torch.Tensor,
    input_ids: torch.Tensor,
    target_logits: torch.Tensor,
    loss_mask: torch.Tensor,
    embed_tokens: Callable[[torch.Tensor], torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    num_steps: int = 7,
    step_decay: float = 0.8,
) -> TrainingTimeTestOutput:
    """
    Compute the loss of one batch, as the authors do: the cross-entropy with the target's distribution, restricted to
    the draft vocabulary, at positions that are trained and whose likeliest target token the head can draft; averaged
    over all positions of the batch.

    Args:
        draft ([`EagleDraftModel`]): An EAGLE-3 head.
        features (`torch.Tensor` of shape `(batch_size, seq_len, num_features * target_hidden_size)`): Of the target.
        input_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`): The text.
        target_logits (`torch.Tensor` of shape `(batch_size, seq_len, vocab_size)`): The target's logits for it.
        loss_mask (`torch.Tensor` of shape `(batch_size, seq_len)`): 1 where the text is trained, such as answers.
        embed_tokens (`Callable`): Target ids to embeddings; frozen. Used where the head has none of its own.
        attention_mask (`torch.Tensor` of shape `(batch_size, seq_len)`, *optional*): 0 where the text is padding.
        num_steps (`int`, defaults to 7): Unrolls.
        step_decay (`float`, defaults to 0.8): Weight of unroll `i` is `step_decay ** i`.

    Returns:
        [`TrainingTimeTestOutput`]
    """
    seq_len = input_ids.shape[1]
    if draft.embed_tokens is not None:
        embed_tokens = draft.embed_tokens
    # Everything that an unroll reads moves one to the left from unroll to unroll; zeros come in from the right.
    pad = (0, num_steps)
    token_ids = nn.functional.pad(input_ids[:, 1:], (0, num_steps))
    masks = nn.functional.pad(loss_mask.bool(), pad)
    with torch.no_grad():
        logits = nn.functional.pad(target_logits[:, 1:].float(), (0, 0, 0, num_steps))
        draft_ids = draft.draft_to_target_ids
        in_draft = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        in_draft[draft_ids] = True
        is_draftable = in_draft[logits.argmax(-1)]  # (batch_size, seq_len + num_steps - 1)
        learned = masks[:, : is_draftable.shape[1]] & is_draftable
        # Only rows that are learned are ever needed: with long prompts and padding, most are not.
        draft_logits = logits[learned] if len(draft_ids) == logits.shape[-1] else logits[learned][:, draft_ids]
        probs = draft_logits.softmax(-1)  # (num_learned, draft_vocab_size)
        best = probs.argmax(-1)
        row_of = torch.full_like(learned, -1, dtype=torch.long)
        row_of[learned] = torch.arange(len(probs), device=probs.device)  # where a position stands in `probs`

    hidden_states = draft.project_features(features)
    # What no row may see in the rows of unroll 0: those after it, and padding (but for itself, or it would see
    # nothing).
    hidden_keys = torch.ones(seq_len, seq_len, dtype=torch.bool, device=input_ids.device).triu(1)[None, None]
    if attention_mask is not None:
        itself = torch.eye(seq_len, dtype=torch.bool, device=input_ids.device)
        hidden_keys = hidden_keys | ((attention_mask == 0)[:, None, None] & ~itself)
    positions = torch.arange(seq_len, device=input_ids.device)[None]
    histories: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in draft.layers]  # keys, values per unroll
    losses, accuracies, outputs = [], [], []
    for step in range(num_steps):
        window = slice(step, step + seq_len)
        embeds = embed_tokens(token_ids[:, window]).to(hidden_states.dtype)
        rotary = draft.rotary(positions + step)
        for layer, history in zip(cast(list[EagleDecoderLayer], draft.layers), histories, strict=True):
            attention_inputs, residual = layer.attention_inputs(hidden_states, embeds)
            hidden_states = residual + _unrolled_attention(
                layer.self_attn, attention_inputs, rotary, hidden_keys, history
            )
            hidden_states = hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))
        if draft.config.norm_output:
            hidden_states = draft.norm(hidden_states)
        outputs.append(hidden_states)

        learned_here = learned[:, window]  # (batch_size, seq_len)
        rows = row_of[:, window][learned_here]  # (num_learned_here,)
        log_probs = draft.compute_logits(hidden_states[learned_here]).float().log_softmax(-1)
        losses.append(-(probs[rows] * log_probs).sum() / learned_here.numel())
        with torch.no_grad():
            hits = (log_probs.argmax(-1) == best[rows]).sum()
            accuracies.append(hits / (masks[:, window].sum() + 1e-6))

    step_losses = torch.stack(losses)
    weights = step_decay ** torch.arange(num_steps, device=step_losses.device)
    return TrainingTimeTestOutput((step_losses * weights).sum(), step_losses.detach(), torch.stack(accuracies), outputs)


def _unrolled_attention(
    attention: EagleAttention | MultiHeadLatentAttention,
    inputs: torch.Tensor,
    rotary: Rotary,
    hidden_keys: torch.Tensor,
    history: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """
    Attention of one unroll, which appends its keys and values to `history`: causal over the rows of unroll 0, and the
    same row only of every later unroll. `inputs` and the result are of shape `(batch_size, seq_len, size)`;
    `hidden_keys`, of shape `(batch_size or 1, 1, seq_len, seq_len)`, is `True` where a row of unroll 0 is not to be
    seen.
    """
    query, key, value = attention.project(inputs, rotary)  # (batch_size, heads, seq_len, head_dim)
    groups = attention.num_heads // attention.num_key_value_heads
    history.append((repeat_kv(key, groups), repeat_kv(value, groups)))
    (true_keys, true_values), *guesses = history
    query = query * attention.scaling
    scores = query @ true_keys.transpose(2, 3)  # (batch_size, heads, seq_len, seq_len)
    seq_len = scores.shape[-1]
    scores = scores.masked_fill(hidden_keys, torch.finfo(scores.dtype).min)
    own_scores = [(query * keys).sum(-1, keepdim=True) for keys, _ in guesses]  # (batch_size, heads, seq_len, 1) each
    weights = torch.cat([scores, *own_scores], dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
    output = weights[..., :seq_len] @ true_values
    for i, (_, values) in enumerate(guesses):
        output = output + weights[..., seq_len + i, None] * values
    return attention.o_proj(output.transpose(1, 2).flatten(2))
