"""Scores and logits of the new columns of a text, as `return_dict_in_generate` returns them."""

import torch
from transformers import GenerationConfig


class ScoreRecords:
    """
    Collects scores and logits of every new column, as `return_dict_in_generate` returns them: tensors of shape
    `(batch_size, vocab_size)`. What they hold for rows that have finished is of no meaning, as in plain `generate`.

    Args:
        generation_config ([`~transformers.GenerationConfig`]): Says which of them are wanted.
        batch_size (`int`): Rows of the batch.
    """

    def __init__(self, generation_config: GenerationConfig, batch_size: int):
        wanted = generation_config.return_dict_in_generate
        self.scores: tuple[torch.Tensor, ...] | None = () if wanted and generation_config.output_scores else None
        self.logits: tuple[torch.Tensor, ...] | None = () if wanted and generation_config.output_logits else None
        self.is_wanted = self.scores is not None or self.logits is not None
        self.batch_size = batch_size

    def add_column(self, scores: torch.Tensor, logits: torch.Tensor) -> None:
        """Records a new column; both tensors of shape `(batch_size, vocab_size)`."""
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (logits,)

    def add(self, column: int, row: int, scores: torch.Tensor, logits: torch.Tensor) -> None:
        """Records one row of a column; both tensors of shape `(vocab_size,)`."""
        if not self.is_wanted:
            return
        nothing = scores.new_zeros(self.batch_size, len(scores))
        while column >= len(self.scores if self.scores is not None else self.logits or ()):
            self.add_column(nothing.clone(), nothing.clone())
        if self.scores is not None:
            self.scores[column][row] = scores
        if self.logits is not None:
            self.logits[column][row] = logits
