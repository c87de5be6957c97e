"""Learning the target's distribution row by row, without holding the logits of all rows and unrolls at once."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from .losses import Loss


# Rows whose logits exist at once. Where there are more, logits are computed again for the gradient instead of kept.
ROWS_AT_ONCE = 2048
# Of float32 logits kept for the gradient over all unrolls: 1 GiB.
MAX_KEPT_LOGITS = 2**28


class TargetRows:
    """
    The target's distribution over the draft vocabulary at the positions that are learned: those that are trained and
    whose likeliest token the head can draft.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, seq_len, vocab_size)` or `Callable`):
            The target's logits; or what computes those of positions, given as indices of shape `(num_rows,)` into the
            flattened batch.
        is_trained (`torch.BoolTensor` of shape `(batch_size, seq_len)`):
            Whether the head learns what follows the token after a position, that is, `logits` one further on.
        draft_ids (`torch.LongTensor` of shape `(draft_vocab_size,)`): Target id of every draft id.
        vocab_size (`int`): The target's.

    Attributes:
        index (`torch.LongTensor` of shape `(batch_size, seq_len)`): Row of a position in the following, -1 without one.
        probs (`torch.Tensor` of shape `(num_rows, draft_vocab_size)`): Restricted to the draft vocabulary; sum to 1.
        best (`torch.LongTensor` of shape `(num_rows,)`): Likeliest draft id.
    """

    @torch.no_grad()
    def __init__(
        self,
        logits: torch.Tensor | Callable[[torch.Tensor], torch.Tensor],
        is_trained: torch.Tensor,
        draft_ids: torch.Tensor,
        vocab_size: int,
    ):
        seq_len = is_trained.shape[1]
        reads = logits if callable(logits) else logits.flatten(0, 1).__getitem__
        is_draftable = torch.zeros(vocab_size, dtype=torch.bool, device=is_trained.device)
        is_draftable[draft_ids] = True
        is_whole = len(draft_ids) == vocab_size
        candidates = is_trained.flatten().nonzero()[:, 0]
        learned, probs = [], []
        for positions in candidates.split(ROWS_AT_ONCE):
            at_end = positions % seq_len == seq_len - 1
            rows = reads(positions + (~at_end).long()).float()  # (num_positions, vocab_size)
            # As the authors do, logits behind the end of the text are zeros; see `training_time_test_loss`.
            rows = rows.masked_fill(at_end[:, None], 0.0)
            keep = is_draftable[rows.argmax(-1)]
            rows = rows[keep]
            learned.append(positions[keep])
            probs.append((rows if is_whole else rows[:, draft_ids]).softmax(-1))
        self.index = torch.full_like(is_trained, -1, dtype=torch.long)
        self.probs = torch.cat(probs) if probs else torch.zeros(0, len(draft_ids), device=is_trained.device)
        self.index.view(-1)[torch.cat(learned) if learned else candidates] = torch.arange(
            len(self.probs), device=is_trained.device
        )
        self.best = self.probs.argmax(-1)


def distill(
    compute_logits: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    target_probs: Callable[[torch.Tensor], torch.Tensor],
    loss: Loss,
    num_unrolls: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Returns the sums of the losses of all rows.

    Args:
        compute_logits (`Callable`): Hidden states to draft logits.
        hidden_states (`torch.Tensor` of shape `(num_rows, hidden_size)`): Outputs of the head.
        target_probs (`Callable`):
            The target's probabilities, of shape `(n, draft_vocab_size)`, of rows given as indices of shape `(n,)`.
        loss (`Callable`): One of [`LOSSES`].
        num_unrolls (`int`): How many times a batch comes here before its gradient is computed.

    Returns:
        The sum, and the likeliest draft id of every row, of shape `(num_rows,)`.
    """

    def of_rows(hidden: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_q = compute_logits(hidden).float().log_softmax(-1)  # (n, draft_vocab_size)
        return loss(log_q, target_probs(rows)).sum(), log_q.detach().argmax(-1)

    rows = torch.arange(len(hidden_states), device=hidden_states.device)
    width = target_probs(rows[:1]).shape[-1]
    keeps_logits = num_unrolls * len(rows) * width <= MAX_KEPT_LOGITS or not torch.is_grad_enabled()
    total, best = hidden_states[:0].sum(), []  # zero, with a gradient even if there are no rows at all
    for hidden, piece in zip(hidden_states.split(ROWS_AT_ONCE), rows.split(ROWS_AT_ONCE), strict=True):
        if keeps_logits:
            piece_sum, piece_best = of_rows(hidden, piece)
        else:
            piece_sum, piece_best = checkpoint(of_rows, hidden, piece, use_reentrant=False)
        total = total + piece_sum
        best.append(piece_best)
    return total, torch.cat(best)
