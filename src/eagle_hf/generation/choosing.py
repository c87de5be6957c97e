"""
Choosing the target's next tokens along the tree, with the same processors, the same random numbers and the same stop
rules as plain `generate`. Three ways lead to the same tokens: at all nodes at once ([`NodeChooser`], here), along the
accepted path ([`PathChooser`]), and token by token ([`TokenChooser`]).
"""

from abc import ABC, abstractmethod

import torch
from transformers.generation.logits_process import LogitsProcessorList, TemperatureLogitsWarper

from ..drafting.coupling import Noise
from ..tree import DraftTree
from ..verification import accepted_path, choose_greedy, choose_sampled
from .noise import SamplingNoise
from .scores import ScoreRecords
from .text import Text


class Chooser(ABC):
    """
    Chooses the target's next tokens and appends them to the text.

    Args:
        text ([`Text`]): Gets the chosen tokens.
        processors ([`~transformers.LogitsProcessorList`]): As prepared by `generate`.
        records ([`ScoreRecords`]): Get scores and logits.
    """

    def __init__(self, text: Text, processors: LogitsProcessorList, records: ScoreRecords):
        self.text = text
        self.processors = processors
        self.records = records
        temperatures = [float(p.temperature) for p in processors if type(p) is TemperatureLogitsWarper]
        self.temperature = temperatures[0] if temperatures else 1.0

    @abstractmethod
    def advance(self, logits: torch.Tensor, tree: DraftTree) -> list[list[int]]:
        """
        Walks every tree along the target's choices, and appends what the walk emits to the text.

        Args:
            logits (`torch.Tensor` of shape `(batch_size, num_nodes, vocab_size)`): The target's logits after every
                node.
            tree ([`DraftTree`]): The verified trees.

        Returns:
            `list[list[int]]`: Per row the nodes to keep in the cache, the root first.
        """

    @abstractmethod
    def noise_ahead(self, num_tokens: int) -> Noise | None:
        """
        Returns the noise that the next tokens of every row are going to be sampled with; `None` in greedy decoding. Of
        the processors, drafts follow the temperature only: others take away tokens that are hardly drafted anyway.
        """

    def _with_temperature(self, gumbels: torch.Tensor) -> Noise:
        return gumbels, gumbels.new_tensor(1 / self.temperature)

    @abstractmethod
    def finish(self) -> None:
        """Leaves the global generator as plain `generate` leaves it."""

    def rows_without_last_token(self) -> list[int]:
        """
        Returns the rows that ended before the longest, and whose last token plain `generate` has in the cache, but we
        have not.
        """
        return []

    def _read_back(self, tree: DraftTree, *more: torch.Tensor) -> list[list[list[int]]]:
        """
        Returns tokens, parents and further tensors of shape `(batch_size, num_nodes)` as lists: the only wait of a step
        for an accelerator.
        """
        return torch.stack([tree.tokens, tree.parents, *more]).tolist()


class NodeChooser(Chooser):
    """
    Chooses at all nodes at once and reads the choices back in one go. Rows that have finished keep nothing any more. It
    needs processors that look at nothing but the logits, and rows that may run ahead of each other.

    Args:
        text ([`Text`]): Gets the chosen tokens.
        processors ([`~transformers.LogitsProcessorList`]): Prefix-free processors.
        records ([`ScoreRecords`]): Get scores and logits.
        noise ([`SamplingNoise`], *optional*): The random numbers to sample with; `None` in greedy decoding.
    """

    def __init__(self, text: Text, processors: LogitsProcessorList, records: ScoreRecords, noise: SamplingNoise | None):
        super().__init__(text, processors, records)
        self.noise = noise

    def advance(self, logits: torch.Tensor, tree: DraftTree) -> list[list[int]]:
        """Implements [`Chooser.advance`]."""
        scores = self._process(logits)
        if self.noise is None:
            chosen = choose_greedy(scores)
        else:
            chosen = choose_sampled(scores, self.noise.at_nodes(self._first_columns(), tree.depths, tree.max_depth))
        tokens, parents, choices = self._read_back(tree, chosen)
        walks = [
            [] if finished else accepted_path(*row)
            for finished, *row in zip(self.text.finished, tokens, parents, choices, strict=True)
        ]
        columns = [length - self.text.prompt_len for length in self.text.lengths]
        paths = self._append(walks, choices)
        if self.records.is_wanted:
            for row, path in enumerate(paths):
                for i, node in enumerate(path):
                    self.records.add(columns[row] + i, row, scores[row, node], logits[row, node])
        self.text.stream_columns()
        return paths

    def _append(self, walks: list[list[int]], choices: list[list[int]]) -> list[list[int]]:
        """Appends what the walks emit. Returns the walks as far as their rows go on."""
        emitted = [[row[node] for node in walk] for walk, row in zip(walks, choices, strict=True)]
        # A choice of -1 stands for a distribution with NaN. Behind the end of a row it does no harm.
        sound = [tokens[: tokens.index(-1)] if -1 in tokens else tokens for tokens in emitted]
        counts = self.text.append_rows(sound) if any(sound) else [0] * len(sound)
        for row, (before, after) in enumerate(zip(emitted, sound, strict=True)):
            if len(after) < len(before) and not self.text.finished[row]:
                raise ValueError(
                    f"The target's distribution after {self.text.lengths[row]} tokens of row {row} contains NaN, so "
                    "that no token can be sampled. Check the target's weights and dtype (float16 overflows in some "
                    "models)."
                )
        return [walk[:count] for walk, count in zip(walks, counts, strict=True)]

    def _first_columns(self) -> list[int]:
        """
        Returns the new column that each row fills next; for rows that have finished, one that the others still need
        anyway.
        """
        columns = [n - self.text.prompt_len for n in self.text.lengths]
        slowest = min(c for c, done in zip(columns, self.text.finished, strict=True) if not done)
        return [slowest if done else c for c, done in zip(columns, self.text.finished, strict=True)]

    def noise_ahead(self, num_tokens: int) -> Noise | None:
        """Implements [`Chooser.noise_ahead`]."""
        if self.noise is None:
            return None
        return self._with_temperature(self.noise.gumbels(self._first_columns(), num_tokens))

    def _process(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.processors and self.noise is None and not self.records.is_wanted:
            return logits  # only their order matters
        # What is recorded must not be a view, which would keep the logits of the whole tree.
        copy = bool(self.processors) or self.records.is_wanted
        scores = logits.flatten(0, 1).to(copy=copy, dtype=torch.float32)
        # Prefix-free processors get no prefix: one that reads it fails instead of seeing a wrong one.
        return self.processors(None, scores).view(logits.shape)

    def rows_without_last_token(self) -> list[int]:
        """Implements [`Chooser.rows_without_last_token`]."""
        length = max(self.text.lengths)
        return [row for row, n in enumerate(self.text.lengths) if n < length]

    def finish(self) -> None:
        """Leaves the global generator as plain `generate` leaves it."""
        if self.noise is not None:
            self.noise.rewind(max(self.text.lengths) - self.text.prompt_len)
