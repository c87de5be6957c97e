"""
Counts what a run has done so far, over all of its pieces: a run that was interrupted goes on counting where it stopped.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch


@dataclass
class Progress:
    """
    Counts of a run.

    Args:
        seconds (`float`): Time of training, evaluation and checkpoints between included. What was lost in an
            interruption, after the last checkpoint, is not in it.
        num_starts (`int`): In how many pieces it was trained.
        num_tokens (`int`): Tokens that the head has read, padding left out, in all epochs and processes.
        num_trained_tokens (`int`): Those of them that were trained.
        longest (`int`): Tokens of the longest text that was trained.
        total_loss (`float`): Sum of the losses of all steps.
    """

    seconds: float = 0.0
    num_starts: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    longest: int = 0
    total_loss: float = 0.0

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> "Progress":
        """Returns what a checkpoint has recorded."""
        return cls(**{field.name: known[field.name] for field in fields(cls) if field.name in known})


class ProgressCounter:
    """
    Counts the steps of one piece, on top of what was done before it.

    Args:
        before ([`Progress`], *optional*): What earlier pieces have done.
    """

    def __init__(self, before: Progress | None = None):
        self.before = before if before is not None else Progress()
        self._start = time.perf_counter()
        self._counts = [0, 0, 0]  # tokens, trained ones, the longest text
        self._loss, self._recent, self._num_recent = 0.0, torch.tensor(0.0), 0

    def add(self, inputs: Mapping[str, Any], loss: torch.Tensor) -> None:
        """
        Counts a batch.

        Args:
            inputs (`dict`): `input_ids` and `loss_mask` of shape `(batch_size, seq_len)`, and where there are any
                `attention_mask` (padding), or `document_ids` and `position_ids` (packed texts).
            loss (`torch.Tensor`): Its part of the loss of its step, a scalar.
        """
        lengths, trained = _lengths(inputs), inputs["loss_mask"]
        self._counts[0] += int(lengths.sum())
        self._counts[1] += int(trained.sum())
        self._counts[2] = max(self._counts[2], int(lengths.max()))
        self._recent = loss.detach().float() + self._recent.to(loss.device)  # reading it here would wait for the step
        self._num_recent += 1
        if self._num_recent == 256:  # float32 would round the sum of very many
            self._drain()

    def _drain(self) -> None:
        self._loss += float(self._recent)
        self._recent, self._num_recent = torch.tensor(0.0), 0

    def read(self, gather: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> Progress:
        """
        Returns everything so far, of all processes.

        Args:
            gather (`Callable`): Makes a tensor of shape `(n * processes,)` of one of shape `(n,)` in each process.
            device (`torch.device`): Where it can do so.
        """
        self._drain()
        counts = gather(torch.tensor(self._counts, device=device)).view(-1, len(self._counts))
        losses = gather(torch.tensor([self._loss], device=device))
        return replace(
            self.before,
            seconds=round(self.before.seconds + time.perf_counter() - self._start, 3),
            num_starts=self.before.num_starts + 1,
            num_tokens=self.before.num_tokens + int(counts[:, 0].sum()),
            num_trained_tokens=self.before.num_trained_tokens + int(counts[:, 1].sum()),
            longest=max(self.before.longest, int(counts[:, 2].max())),
            total_loss=self.before.total_loss + float(losses.mean()),
        )


def as_dict(progress: Progress) -> dict[str, Any]:
    """Returns the counts, ready for JSON."""
    return asdict(progress)


def _lengths(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Returns the tokens of every text of a batch, one row for several packed ones being as good as one for each."""
    ids = inputs["input_ids"]
    documents = inputs.get("document_ids")
    if documents is not None:
        rows, which = torch.where(documents >= 0)
        return torch.unique(rows * (int(documents.max()) + 1) + documents[rows, which], return_counts=True)[1]
    mask = inputs.get("attention_mask")
    return torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(-1)
