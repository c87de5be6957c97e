"""The random numbers of plain `generate`, drawn ahead of time without changing what they are."""

from typing import cast

import torch


class SamplingNoise:
    """
    Plain sampling calls `torch.multinomial(probs, 1)` once per new column, and that draws one block of exponentials of
    shape `(batch_size, vocab_size)` from the global generator. This class draws the same blocks in the same order,
    keeps those that a faster row of the batch needed first, and in the end sets the generator to where plain `generate`
    would have left it, however many blocks were drawn ahead.

    Args:
        batch_size (`int`): Rows of the batch.
        vocab_size (`int`): Tokens of the target.
        device (`torch.device`): Device of the target's logits, one that `is_known`.
    """

    def __init__(self, batch_size: int, vocab_size: int, device: torch.device):
        self.shape = (batch_size, vocab_size)
        self.device = device
        self._generator = cast(torch.Generator, _global_generator(device))
        self._first = 0  # column of `_blocks[0]`
        self._blocks: list[torch.Tensor] = []
        self._states: list[torch.Tensor] = []  # generator state before each block, for all columns from 0 on

    @staticmethod
    def is_known(device: torch.device) -> bool:
        """Returns whether `multinomial` is known to draw its random numbers like this on a device."""
        return _global_generator(device) is not None

    def at_nodes(self, first_columns: list[int], depths: torch.Tensor, max_depth: int) -> torch.Tensor:
        """
        Returns the exponentials for the nodes of draft trees.

        Args:
            first_columns (`list[int]` of length `batch_size`): New column that the token after the root goes to.
            depths (`torch.LongTensor` of shape `(batch_size, num_nodes)`): Depth of every node.
            max_depth (`int`): A bound on `depths`.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_nodes, vocab_size)`
        """
        self._forget(min(first_columns))
        while self._first + len(self._blocks) <= max(first_columns) + max_depth:
            self._states.append(self._generator.get_state())
            self._blocks.append(torch.empty(self.shape, dtype=torch.float32, device=self.device).exponential_())
        batch_size, vocab_size = self.shape
        if batch_size == 1 and max_depth == 0:
            return self._blocks[0][None]  # (1, 1, vocab_size)
        offsets = torch.tensor(first_columns, device=self.device)[:, None] - self._first
        rows = (offsets + depths) * batch_size + torch.arange(batch_size, device=self.device)[:, None]
        # Selecting whole rows copies them; indexing would go through every number.
        blocks = self._blocks[: max(first_columns) - self._first + max_depth + 1]
        return torch.cat(blocks).index_select(0, rows.flatten()).view(*depths.shape, vocab_size)

    def gumbels(self, first_columns: list[int], num_columns: int) -> torch.Tensor:
        """
        Returns the same numbers as Gumbel noise, for drafts of the next columns: sampling takes the largest
        `log p + noise`.

        Args:
            first_columns (`list[int]` of length `batch_size`): New column that the next token of each row goes to.
            num_columns (`int`): Columns of each row.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_columns, vocab_size)`
        """
        offsets = torch.arange(num_columns, device=self.device).expand(len(first_columns), -1)
        exponentials = self.at_nodes(first_columns, offsets, num_columns - 1)
        return -exponentials.clamp(min=torch.finfo(exponentials.dtype).tiny).log()

    def _forget(self, column: int) -> None:
        del self._blocks[: column - self._first]
        self._first = column

    def rewind(self, num_columns: int) -> None:
        """Sets the global generator to where it stands after `num_columns` columns of plain `generate`."""
        if num_columns < len(self._states):
            self._generator.set_state(self._states[num_columns])


def _global_generator(device: torch.device) -> torch.Generator | None:
    """Returns the generator that `multinomial` draws from on a device; `None` where it may work otherwise."""
    generators = {"cpu": [torch.default_generator], "cuda": torch.cuda.default_generators}.get(device.type)
    if generators is None:
        return None
    return generators[torch.tensor([], device=device).device.index or 0]  # a device without a number is the current one
