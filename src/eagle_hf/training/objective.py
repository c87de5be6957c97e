"""
Holds what the objectives of EAGLE-1 and EAGLE-3 have in common: their result, and how far a chain would be accepted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from transformers.modeling_outputs import ModelOutput


@dataclass
class ObjectiveOutput(ModelOutput):
    """
    A `ModelOutput`, since DDP and FSDP look for the tensors of what `forward` returns.

    Args:
        loss (`torch.Tensor`): Weighted sum of the losses of all unrolls.
        step_losses (`torch.Tensor` of shape `(num_steps,)`): Loss of each unroll.
        step_accuracies (`torch.Tensor` of shape `(num_steps,)`):
            Share of trained positions at which the likeliest draft token is the target's.
        accepted, drafted (`torch.LongTensor` of shape `(num_steps,)`):
            From how many positions a greedy chain would be accepted to each depth, and from how many there is text to
            tell. Exact where the text is the target's greedy answer.
        trained (`torch.LongTensor` of shape `(num_steps,)`): Positions that each unroll's accuracy is a share of.
        last_hidden_states (`tuple[torch.Tensor]`):
            Output of each unroll, of shape `(batch_size, seq_len, hidden_size)`.
        feature_losses (`torch.Tensor` of shape `(num_steps,)`, *optional*): EAGLE-1: loss on features of each unroll.
    """

    loss: torch.Tensor = cast(torch.Tensor, None)  # `ModelOutput` wants a default
    step_losses: torch.Tensor = cast(torch.Tensor, None)
    step_accuracies: torch.Tensor = cast(torch.Tensor, None)
    accepted: torch.Tensor = cast(torch.Tensor, None)
    drafted: torch.Tensor = cast(torch.Tensor, None)
    trained: torch.Tensor = cast(torch.Tensor, None)
    last_hidden_states: tuple[torch.Tensor, ...] = cast(tuple[torch.Tensor, ...], None)
    feature_losses: torch.Tensor | None = None


def rows_that_draft(loss_mask: torch.Tensor, document_ids: torch.Tensor | None = None) -> torch.Tensor:
    """
    Returns the rows that draft a token of an answer in `generate`, from a mask of the tokens that the target generates.
    What the objectives take as `loss_mask` are rows, and what data holds are tokens.

    ```text
    tokens                 prompt  prompt  answer  answer  answer  answer
    position                 0       1       2       3       4       5
    loss_mask (tokens)       0       0       1       1       1       1
    row reads the token      1       2       3       4       5       -
    row drafts the token     2       3       4       5       -       -
    trained (rows)           0       1       1       1       0       0
    ```

    Row `p` reads the feature of position `p` and token `p + 1`, and drafts token `p + 2`. The first token of an answer
    comes from the target, so that the row of the prompt's last feature makes the first draft; nothing is drafted behind
    the last token.

    Args:
        loss_mask (`torch.Tensor` of shape `(batch_size, seq_len)`): 1 where the target generates the token.
        document_ids (`torch.LongTensor` of shape `(batch_size, seq_len)`, *optional*):
            Which text a position belongs to. Nothing is drafted across the end of a text. One text by default.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, seq_len)`
    """

    def ahead(values: torch.Tensor, by: int) -> torch.Tensor:
        return torch.nn.functional.pad(values[:, by:], (0, min(by, values.shape[1])))

    is_generated = loss_mask.bool()
    drafts = ahead(is_generated, 1) & ahead(is_generated, 2)
    if document_ids is not None:
        drafts = drafts & (document_ids == ahead(document_ids, 1)) & (document_ids == ahead(document_ids, 2))
    return drafts


def simulated_acceptance_length(accepted: torch.Tensor, drafted: torch.Tensor) -> float:
    """
    Returns the tokens per verification of a greedy chain: one, and the chance that it is accepted to each depth. Both
    arguments are of shape `(num_steps,)`, as in [`ObjectiveOutput`].
    """
    return 1.0 + float((accepted / drafted.clamp(min=1)).sum())


class Figures:
    """Sums up the figures of several batches, so that every trained position counts the same."""

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._hits: list[torch.Tensor] = []
        self._counts: list[torch.Tensor] = []

    def add(self, output: ObjectiveOutput) -> None:
        """Counts one batch, whose loss is an average over its own trained positions where [`loss`] is asked for."""
        self._losses.append(output.loss.detach().float() * output.trained[0])
        self._hits.append(output.step_accuracies.detach() * output.trained)
        self._counts.append(torch.stack([output.accepted, output.drafted, output.trained]))

    def loss(self, reduce: Callable[..., torch.Tensor]) -> float:
        """Returns the loss per trained position; `reduce` as in [`metrics`]."""
        trained = torch.stack(self._counts).sum(0)[2, 0]
        total, trained = reduce(torch.stack([torch.stack(self._losses).sum(), trained.float()]), "sum")
        return float(total / trained.clamp(min=1))

    def metrics(self, reduce: Callable[..., torch.Tensor]) -> dict[str, float]:
        """
        Returns the accuracy of every unroll, share of positions from which a greedy chain is accepted to every depth,
        and its acceptance length.

        Args:
            reduce (`Callable`): Sums a tensor over processes, with `"sum"` as second argument.
        """
        if not self._counts:
            return {}
        hits = reduce(torch.stack(self._hits).sum(0), "sum")
        accepted, drafted, trained = reduce(torch.stack(self._counts).sum(0), "sum")
        accuracies = hits / trained.clamp(min=1)
        metrics = {f"accuracy_{i}": round(float(accuracy), 4) for i, accuracy in enumerate(accuracies)}
        for i, share in enumerate(accepted / drafted.clamp(min=1)):
            metrics[f"accepted_at_depth_{i + 1}"] = round(float(share), 4)
        return metrics | {"simulated_acceptance_length": round(simulated_acceptance_length(accepted, drafted), 4)}


class ChainAcceptance:
    """
    Counts from how many positions a greedy chain would be accepted, unroll by unroll.

    Attributes:
        accepted, drafted (`list[torch.Tensor]`): One number per unroll.
    """

    def __init__(self) -> None:
        self.accepted: list[torch.Tensor] = []
        self.drafted: list[torch.Tensor] = []
        self._accepted_so_far: torch.Tensor | bool = True
        self._trained_so_far: torch.Tensor | bool = True

    def add(self, is_hit: torch.Tensor, is_trained: torch.Tensor) -> None:
        """Counts one unroll. Both arguments are boolean and of shape `(batch_size, seq_len)`."""
        self._trained_so_far = is_trained & self._trained_so_far
        self._accepted_so_far = is_hit & self._trained_so_far & self._accepted_so_far
        self.accepted.append(self._accepted_so_far.sum())
        self.drafted.append(self._trained_so_far.sum())


def windows(values: torch.Tensor, num_steps: int) -> list[torch.Tensor]:
    """
    Returns `values` of shape `(batch_size, seq_len)` moved one to the left per unroll; zeros come in from the right.
    """
    seq_len = values.shape[1]
    padded = torch.nn.functional.pad(values, (0, num_steps))
    return [padded[:, step : step + seq_len] for step in range(num_steps)]
