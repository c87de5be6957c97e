"""
The objective of EAGLE-3 (section 3.1 of the paper, "training-time test"): the head is unrolled in training as it is in
drafting, on its own outputs, and learns the target's distribution at every unrolled step. There is no loss on features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ...head.modeling_eagle import EagleDraftModel
from ..distillation import TargetRows, distill
from ..losses import Loss, cross_entropy
from ..objective import ChainAcceptance, ObjectiveOutput, windows
from ..unrolling import unroll


def training_time_test_loss(
    draft: EagleDraftModel,
    features: torch.Tensor,
    input_ids: torch.Tensor,
    target_logits: torch.Tensor | Callable[[torch.Tensor], torch.Tensor],
    loss_mask: torch.Tensor,
    embed_tokens: Callable[[torch.Tensor], torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    num_steps: int = 7,
    step_decay: float = 0.8,
    document_ids: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    loss: Loss = cross_entropy,
    lm_head: Callable[[torch.Tensor], torch.Tensor] | None = None,
    num_trained: torch.Tensor | int | None = None,
) -> ObjectiveOutput:
    """
    Computes the loss of one batch, as the authors do: how far the head is from the target's distribution, restricted to
    the draft vocabulary, at positions that are trained and whose likeliest target token the head can draft; averaged
    over all positions of the batch, unless `num_trained` is given.

    Args:
        draft ([`EagleDraftModel`]): An EAGLE-3 head.
        features (`torch.Tensor` of shape `(batch_size, seq_len, num_features * target_hidden_size)`): Of the target.
        input_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`): The text.
        target_logits (`torch.Tensor` of shape `(batch_size, seq_len, vocab_size)` or `Callable`):
            The target's logits for it; or what computes those of positions, given as indices of shape `(n,)` into the
            flattened batch.
        loss_mask (`torch.Tensor` of shape `(batch_size, seq_len)`):
            1 at the rows that are trained; row `p` drafts token `p + 2`. [`rows_that_draft`] makes them of a mask of
            generated tokens.
        embed_tokens (`Callable`): Target ids to embeddings; frozen. Used where the head has none of its own.
        attention_mask (`torch.Tensor` of shape `(batch_size, seq_len)`, *optional*): 0 where the text is padding.
        num_steps (`int`, defaults to 7): Unrolls.
        step_decay (`float`, defaults to 0.8): Weight of unroll `i` is `step_decay ** i`.
        document_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*):
            Which text of a packed block a position belongs to, -1 for padding. Texts neither see each other nor are
            trained beyond their ends. Without it the last positions are trained against what follows the text
            (padding, or a uniform distribution), as the authors do; a batch of whole texts is better given zeros.
        position_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*):
            Positions, where they restart with every text of a block.
        loss (`Callable`, defaults to [`cross_entropy`]): One of `LOSSES`.
        lm_head (`Callable`, *optional*): The target's; frozen. Needed where the head has none of its own.
        num_trained (`int` or `torch.Tensor` of shape `()`, *optional*):
            What the sums of losses are divided by, such as the trained positions of all batches of a step. All
            positions of this batch by default.

    Returns:
        [`ObjectiveOutput`]
    """
    is_trained = loss_mask.bool()
    if document_ids is not None:
        is_trained = is_trained & (document_ids == nn.functional.pad(document_ids[:, 1:], (0, 1), value=-2))
        documents = document_ids
    else:
        documents = torch.zeros_like(input_ids) if attention_mask is None else attention_mask.long()
    target = TargetRows(target_logits, is_trained, draft.draft_to_target_ids, draft.config.vocab_size)
    compute_logits = partial(draft.compute_logits, lm_head=lm_head)
    next_token_ids = nn.functional.pad(input_ids[:, 1:], (0, num_steps))
    rows_of_steps = windows(target.index + 1, num_steps)  # 0 where nothing is learned
    trained_of_steps, documents_of_steps = windows(is_trained, num_steps), windows(documents, num_steps)

    acceptance = ChainAcceptance()
    losses, accuracies, trained, outputs = [], [], [], []
    for step, hidden_states in enumerate(
        unroll(draft, features, next_token_ids, embed_tokens, num_steps, documents, position_ids)
    ):
        outputs.append(hidden_states)
        is_same = True if document_ids is None else documents_of_steps[step] == documents
        is_learned = (rows_of_steps[step] > 0) & is_same  # (batch_size, seq_len)
        rows = rows_of_steps[step][is_learned] - 1  # (num_learned,)
        target_probs = _Rows(target.probs, rows)
        total, best = distill(compute_logits, hidden_states[is_learned], target_probs, loss, num_steps)
        losses.append(total / (is_learned.numel() if num_trained is None else num_trained))
        is_hit = torch.zeros_like(is_learned).masked_scatter(is_learned, best == target.best[rows])
        is_trained_here = trained_of_steps[step] & is_same
        trained.append(is_trained_here.sum())
        accuracies.append(is_hit.sum() / (trained[-1] + 1e-6))
        acceptance.add(is_hit, is_trained_here)

    step_losses = torch.stack(losses)
    weights = step_decay ** torch.arange(num_steps, device=step_losses.device)
    return ObjectiveOutput(
        loss=(step_losses * weights).sum(),
        step_losses=step_losses.detach(),
        step_accuracies=torch.stack(accuracies),
        accepted=torch.stack(acceptance.accepted),
        drafted=torch.stack(acceptance.drafted),
        trained=torch.stack(trained),
        last_hidden_states=tuple(outputs),
    )


@dataclass(frozen=True)
class _Rows:
    """Looks up rows of rows: `probs[rows[piece]]`."""

    probs: torch.Tensor
    rows: torch.Tensor

    def __call__(self, piece: torch.Tensor) -> torch.Tensor:
        return self.probs[self.rows[piece]]
