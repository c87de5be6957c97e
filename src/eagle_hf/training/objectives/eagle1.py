"""
The objective of EAGLE-1 and EAGLE-2 heads (section 3.2 of the first paper): the head learns the target's next feature,
and the distribution that the target's `lm_head` makes of it.

The authors train on true features only, made robust by noise. With several unrolls the head learns from its own outputs
as well, in the context that it has when it drafts (the harmonised steps of HASS).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ...head.modeling_eagle import EagleDraftModel
from ..distillation import ROWS_AT_ONCE, distill
from ..losses import Loss, cross_entropy
from ..objective import ChainAcceptance, ObjectiveOutput, windows
from ..unrolling import unroll


def feature_regression_loss(
    draft: EagleDraftModel,
    features: torch.Tensor,
    input_ids: torch.Tensor,
    loss_mask: torch.Tensor,
    embed_tokens: Callable[[torch.Tensor], torch.Tensor],
    lm_head: Callable[[torch.Tensor], torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    num_steps: int = 1,
    step_decay: float = 1.0,
    document_ids: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    loss: Loss = cross_entropy,
    feature_weight: float = 1.0,
    logit_weight: float = 0.1,
    feature_noise: float = 0.0,
    num_trained: torch.Tensor | int | None = None,
) -> ObjectiveOutput:
    """
    Computes the loss of one batch: `feature_weight` times smooth L1 between predicted and true features, and
    `logit_weight` times how far the distributions are that `lm_head` makes of both; averaged over trained positions.

    Args:
        draft ([`EagleDraftModel`]): An EAGLE-1 head.
        features (`torch.Tensor` of shape `(batch_size, seq_len, hidden_size)`): Last hidden states of the target.
        input_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`): The text.
        loss_mask (`torch.Tensor` of shape `(batch_size, seq_len)`):
            1 at the rows that are trained; row `p` learns feature `p + 1`, which drafts token `p + 2`.
            [`rows_that_draft`] makes them of a mask of generated tokens.
        embed_tokens (`Callable`): Target ids to embeddings; frozen. Used where the head has none of its own.
        lm_head (`Callable`): The target's; frozen. Used where the head has none of its own.
        attention_mask (`torch.Tensor` of shape `(batch_size, seq_len)`, *optional*): 0 where the text is padding.
        num_steps (`int`, defaults to 1): Unrolls.
        step_decay (`float`, defaults to 1): Weight of unroll `i` is `step_decay ** i`.
        document_ids, position_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*):
            As in [`training_time_test_loss`].
        loss (`Callable`, defaults to [`cross_entropy`]): One of `LOSSES`.
        feature_weight, logit_weight (`float`): Weights of both losses.
        feature_noise (`float`, defaults to 0): The head reads features with uniform noise between minus and plus this.
        num_trained (`int` or `torch.Tensor` of shape `()`, *optional*):
            What the sums of losses are divided by, such as the trained positions of all batches of a step. Those of
            each unroll of this batch by default.

    Returns:
        [`ObjectiveOutput`]
    """
    features = features.to(device=draft.device, dtype=draft.dtype)  # a target may have others
    documents = document_ids
    if documents is None:
        documents = torch.zeros_like(input_ids) if attention_mask is None else attention_mask.long()
    is_trained = loss_mask.bool().clone()
    is_trained[:, -1] = False  # no feature follows
    if document_ids is not None:
        is_trained = is_trained & (document_ids == nn.functional.pad(document_ids[:, 1:], (0, 1), value=-2))
    next_token_ids = nn.functional.pad(input_ids[:, 1:], (0, num_steps))
    inputs = features
    if feature_noise:
        inputs = features + (torch.rand_like(features) * 2 - 1) * feature_noise
    compute_logits = partial(draft.compute_logits, lm_head=lm_head)
    positions = torch.arange(is_trained.numel(), device=features.device).view_as(input_ids)
    trained_of_steps, documents_of_steps = windows(is_trained, num_steps), windows(documents, num_steps)

    acceptance = ChainAcceptance()
    step_losses, feature_losses, accuracies, trained, outputs = [], [], [], [], []
    for step, hidden_states in enumerate(
        unroll(draft, inputs, next_token_ids, embed_tokens, num_steps, documents, position_ids)
    ):
        outputs.append(hidden_states)
        is_learned = trained_of_steps[step]  # (batch_size, seq_len)
        if document_ids is not None:
            is_learned = is_learned & (documents_of_steps[step] == documents)
        predicted = hidden_states[is_learned]  # (num_learned, hidden_size)
        true = features.flatten(0, 1)[positions[is_learned] + step + 1]

        @torch.no_grad()
        def target_probs(piece: torch.Tensor, true: torch.Tensor = true) -> torch.Tensor:
            return compute_logits(true[piece]).float().softmax(-1)

        total, best = distill(compute_logits, predicted, target_probs, loss, num_steps)
        with torch.no_grad():
            true_best = [compute_logits(piece).argmax(-1) for piece in true.split(ROWS_AT_ONCE)]
        count = is_learned.sum() + 1e-5
        regression = nn.functional.smooth_l1_loss(predicted.float(), true.float(), reduction="none").mean(-1)
        divisor = count if num_trained is None else num_trained
        feature_losses.append(regression.sum() / divisor)
        step_losses.append(total / divisor)
        is_hit = torch.zeros_like(is_learned).masked_scatter(is_learned, best == torch.cat(true_best))
        accuracies.append(is_hit.sum() / count)
        trained.append(is_learned.sum())
        acceptance.add(is_hit, is_learned)

    weights = step_decay ** torch.arange(num_steps, device=features.device)
    on_logits, on_features = torch.stack(step_losses), torch.stack(feature_losses)
    return ObjectiveOutput(
        loss=((feature_weight * on_features + logit_weight * on_logits) * weights).sum(),
        step_losses=on_logits.detach(),
        step_accuracies=torch.stack(accuracies),
        accepted=torch.stack(acceptance.accepted),
        drafted=torch.stack(acceptance.drafted),
        trained=torch.stack(trained),
        last_hidden_states=tuple(outputs),
        feature_losses=on_features.detach(),
    )
