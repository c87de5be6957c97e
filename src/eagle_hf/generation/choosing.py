"""
Choosing the target's next tokens along the tree, with the same processors, the same random numbers and the same stop
rules as plain `generate`. Three ways lead to the same tokens:

* `NodeSelector` processes all nodes at once and reads the choices back in one go. It needs processors that look at
  nothing but the logits, and rows that may run ahead of each other.
* `PathSelector` does so for the nodes of the accepted path only, one after the other: for single rows on a CPU, where
  reading a choice costs nothing, and processing nodes in vain does.
* `TokenSelector` walks the tree one token at a time and calls everything as plain `generate` does: every processor
  once per emitted token with that token's true prefix, never for a rejected branch, on the whole batch. Rows of a batch
  advance together, by the number of tokens that all of them accept.
"""

from abc import ABC, abstractmethod

import torch
from transformers import GenerationConfig
from transformers.generation import logits_process
from transformers.generation.logits_process import LogitsProcessorList, TemperatureLogitsWarper
from transformers.utils import logging

from ..drafting.coupling import Noise
from ..tree import DraftTree
from ..verification import accepted_path, choose_greedy, choose_sampled
from .noise import SamplingNoise
from .text import Sequences


logger = logging.get_logger(__name__)

# Processors whose output depends on the logits alone: neither on the prefix nor on earlier calls.
PREFIX_FREE_PROCESSORS = tuple(
    getattr(logits_process, name)
    for name in (
        "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper", "TypicalLogitsWarper",
        "EpsilonLogitsWarper", "EtaLogitsWarper", "TopHLogitsWarper", "SuppressTokensLogitsProcessor",
        "InfNanRemoveLogitsProcessor", "LogitNormalization",
    )
)  # fmt: skip


class Records:
    """
    Scores and logits of every new column, as `return_dict_in_generate` returns them: tensors of shape
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
        """Record a new column; both tensors of shape `(batch_size, vocab_size)`."""
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (logits,)

    def add(self, column: int, row: int, scores: torch.Tensor, logits: torch.Tensor) -> None:
        """Record one row of a column; both tensors of shape `(vocab_size,)`."""
        if not self.is_wanted:
            return
        nothing = scores.new_zeros(self.batch_size, len(scores))
        while column >= len(self.scores if self.scores is not None else self.logits or ()):
            self.add_column(nothing.clone(), nothing.clone())
        if self.scores is not None:
            self.scores[column][row] = scores
        if self.logits is not None:
            self.logits[column][row] = logits


class Selector(ABC):
    """
    Chooses the target's next tokens and appends them.

    Args:
        sequences ([`Sequences`]): Get the chosen tokens.
        processors ([`~transformers.LogitsProcessorList`]): As prepared by `generate`.
        records ([`Records`]): Get scores and logits.
    """

    def __init__(self, sequences: Sequences, processors: LogitsProcessorList, records: Records):
        self.sequences = sequences
        self.processors = processors
        self.records = records
        self.draft_is_broken = False
        temperatures = [float(p.temperature) for p in processors if type(p) is TemperatureLogitsWarper]
        self.temperature = temperatures[0] if temperatures else 1.0

    @abstractmethod
    def select(self, tree: DraftTree, logits: torch.Tensor) -> list[list[int]]:
        """
        Walk every tree, and append what the walk emits.

        Args:
            tree ([`DraftTree`]): The verified trees.
            logits (`torch.Tensor` of shape `(batch_size, num_nodes, vocab_size)`): The target's logits after every
            node.

        Returns:
            `list[list[int]]`: Per row the nodes to keep in the cache, the root first.
        """

    @abstractmethod
    def noise_ahead(self, num_tokens: int) -> Noise | None:
        """
        The noise that the next tokens of every row are going to be sampled with; `None` in greedy decoding. Of the
        processors, drafts follow the temperature only: others take away tokens that are hardly drafted anyway.
        """

    def _with_temperature(self, gumbels: torch.Tensor) -> Noise:
        return gumbels, gumbels.new_tensor(1 / self.temperature)

    @abstractmethod
    def finish(self) -> None:
        """Leave the global generator as plain `generate` leaves it."""

    def rows_without_last_token(self) -> list[int]:
        """
        Rows that ended before the longest, and whose last token plain `generate` has in the cache, but we have not.
        """
        return []

    def _nan_error(self, row: int) -> ValueError:
        return ValueError(
            f"The target's distribution after {self.sequences.lengths[row]} tokens of row {row} contains NaN, so that "
            "no token can be sampled. Check the target's weights and dtype (float16 overflows in some models)."
        )

    def _read_back(self, tree: DraftTree, *more: torch.Tensor) -> list[list[list[int]]]:
        """
        Tokens, parents and further tensors of shape `(batch_size, num_nodes)` as lists: the step's synchronisation.
        """
        impossible = tree.scores.isneginf().long()
        *lists, impossible = torch.stack([tree.tokens, tree.parents, *more, impossible]).tolist()
        if tree.num_nodes > 1 and not self.draft_is_broken and any(row[1] for row in impossible):
            self.draft_is_broken = True  # even the likeliest token is impossible: the head's logits are NaN
            logger.warning_once(
                "The draft's logits are NaN, so that the rest of this text is generated without it (the text is right "
                "all the same). Check the head's weights, and its dtype: float16 overflows in some models."
            )
        return lists


class NodeSelector(Selector):
    """
    Chooses at all nodes at once. Rows that have finished keep nothing any more.

    Args:
        sequences ([`Sequences`]): Get the chosen tokens.
        processors ([`~transformers.LogitsProcessorList`]): Prefix-free processors.
        records ([`Records`]): Get scores and logits.
        do_sample (`bool`): Whether to sample.
        vocab_size (`int`): Tokens of the target.
        device (`torch.device`): Device of the logits.
    """

    def __init__(
        self,
        sequences: Sequences,
        processors: LogitsProcessorList,
        records: Records,
        do_sample: bool,
        vocab_size: int,
        device: torch.device,
    ):
        super().__init__(sequences, processors, records)
        self.noise = SamplingNoise(sequences.batch_size, vocab_size, device) if do_sample else None

    def select(self, tree: DraftTree, logits: torch.Tensor) -> list[list[int]]:
        """See [`Selector.select`]."""
        scores = self._process(logits)
        if self.noise is None:
            chosen = choose_greedy(scores)
        else:
            first_columns = self._first_columns()
            chosen = choose_sampled(scores, self.noise.at_nodes(first_columns, tree.depths, tree.max_depth))
        tokens, parents, choices = self._read_back(tree, chosen)
        paths = [
            [] if finished else accepted_path(*row)
            for finished, *row in zip(self.sequences.finished, tokens, parents, choices, strict=True)
        ]
        paths = self._append(paths, choices, scores, logits)
        self.sequences.stream_columns()
        return paths

    def _first_columns(self) -> list[int]:
        """New column that each row fills next; for rows that have finished, one that the others still need anyway."""
        columns = [n - self.sequences.prompt_len for n in self.sequences.lengths]
        slowest = min(c for c, done in zip(columns, self.sequences.finished, strict=True) if not done)
        return [slowest if done else c for c, done in zip(columns, self.sequences.finished, strict=True)]

    def noise_ahead(self, num_tokens: int) -> Noise | None:
        """See [`Selector.noise_ahead`]."""
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

    def _append(
        self, paths: list[list[int]], choices: list[list[int]], scores: torch.Tensor, logits: torch.Tensor
    ) -> list[list[int]]:
        """Append what the walks emit. Returns the paths as far as their rows go on."""
        emitted = [[row[node] for node in path] for path, row in zip(paths, choices, strict=True)]
        columns = [length - self.sequences.prompt_len for length in self.sequences.lengths]
        for row, tokens in enumerate(emitted):
            if -1 in tokens:
                raise self._nan_error(row)
        counts = self.sequences.append_rows(emitted)
        paths = [path[:count] for path, count in zip(paths, counts, strict=True)]
        if self.records.is_wanted:
            for row, path in enumerate(paths):
                for i, node in enumerate(path):
                    self.records.add(columns[row] + i, row, scores[row, node], logits[row, node])
        return paths

    def rows_without_last_token(self) -> list[int]:
        """See [`Selector.rows_without_last_token`]."""
        length = max(self.sequences.lengths)
        return [row for row, n in enumerate(self.sequences.lengths) if n < length]

    def finish(self) -> None:
        """Leave the global generator as plain `generate` leaves it."""
        if self.noise is not None:
            self.noise.rewind(max(self.sequences.lengths) - self.sequences.prompt_len)


class PathSelector(NodeSelector):
    """
    Chooses along the accepted path of a single row. Arguments as in [`NodeSelector`].
    """  # noqa: D200

    DEVICES = ("cpu",)  # where reading a token does not wait for anything

    def select(self, tree: DraftTree, logits: torch.Tensor) -> list[list[int]]:
        """See [`Selector.select`]."""
        child: dict[tuple[int, int], int] = {}
        if tree.num_nodes > 1:
            [tokens], [parents] = self._read_back(tree)
            child = dict(zip(zip(parents, tokens, strict=True), range(len(tokens)), strict=True))
        path: list[int] = []
        next_node: int | None = 0
        while next_node is not None and not self.sequences.done:
            path.append(next_node)
            token = self._next_token(logits[:, next_node : next_node + 1])
            self.sequences.append_rows([[token]])
            next_node = child.get((next_node, token))
        return [path]

    def _next_token(self, logits: torch.Tensor) -> int:
        """The token after one node, from logits of shape `(1, 1, vocab_size)`."""
        scores = self._process(logits)
        if self.records.is_wanted:
            self.records.add_column(scores[0], logits[0].to(copy=True, dtype=torch.float32))
        if self.noise is None:
            return int(choose_greedy(scores))
        depth = torch.zeros(1, 1, dtype=torch.long)
        token = int(choose_sampled(scores, self.noise.at_nodes(self._first_columns(), depth, 0)))
        if token < 0:
            raise self._nan_error(0)
        return token


class TokenSelector(Selector):
    """
    Chooses one token after the other. All rows keep the same number of nodes.

    Args:
        sequences ([`Sequences`]): Get the chosen tokens.
        processors ([`~transformers.LogitsProcessorList`]): Any processors.
        records ([`Records`]): Get scores and logits.
        do_sample (`bool`): Whether to sample.
        vocab_size (`int`): Tokens of the target.
    """

    def __init__(
        self,
        sequences: Sequences,
        processors: LogitsProcessorList,
        records: Records,
        do_sample: bool,
        vocab_size: int,
    ):
        super().__init__(sequences, processors, records)
        self.do_sample = do_sample
        self.vocab_size = vocab_size

    def select(self, tree: DraftTree, logits: torch.Tensor) -> list[list[int]]:
        """See [`Selector.select`]."""
        children = [
            {(parent, token): node for node, (parent, token) in enumerate(zip(parents, tokens, strict=True))}
            for tokens, parents in zip(*self._read_back(tree), strict=True)
        ]
        rows = torch.arange(len(children), device=logits.device)
        paths = [[0] for _ in children]
        while True:
            at = [path[-1] for path in paths]
            finished_before = self.sequences.closed_rows()
            chosen = self._next_tokens(logits[rows, at].to(copy=True, dtype=torch.float32))
            closed = self.sequences.closed_rows()
            # A row that has just finished needs its last token as a root, or the cache would lack it.
            if self.sequences.done or closed != finished_before:
                return paths
            next_nodes = [
                0 if is_closed else child.get((node, token))
                for child, node, token, is_closed in zip(children, at, chosen, closed, strict=True)
            ]
            if any(node is None for node in next_nodes):
                return paths
            for path, next_node in zip(paths, next_nodes, strict=True):
                path.append(next_node or 0)

    def _next_tokens(self, logits: torch.Tensor) -> list[int]:
        """One column of plain `generate`, from logits of shape `(batch_size, vocab_size)`."""
        scores = self.processors(self.sequences.ids.contiguous(), logits)
        self.records.add_column(scores, logits)
        if self.do_sample:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(dim=-1)
        self.sequences.append_column(tokens, self.records.scores)
        return tokens.tolist()

    def noise_ahead(self, num_tokens: int) -> Noise | None:
        """See [`Selector.noise_ahead`]. Here a look ahead only: the numbers are drawn again, token by token."""
        device = self.sequences.ids.device
        if not self.do_sample or device.type not in SamplingNoise.DEVICES:
            return None
        noise = SamplingNoise(self.sequences.batch_size, self.vocab_size, device)
        gumbels = noise.gumbels([0] * self.sequences.batch_size, num_tokens)
        noise.rewind(0)
        return self._with_temperature(gumbels)

    def finish(self) -> None:
        """Nothing to do: the random numbers were drawn as plain `generate` draws them."""


def make_selector(
    sequences: Sequences,
    processors: LogitsProcessorList,
    generation_config: GenerationConfig,
    records: Records,
    logits: torch.Tensor,
    rows_may_run_ahead: bool,
) -> Selector:
    """
    The faster selector that is exact for this call.

    Args:
        sequences, processors, generation_config, records: As for the selectors.
        logits (`torch.Tensor` of shape `(batch_size, 1, vocab_size)`): Logits of the prefill.
        rows_may_run_ahead (`bool`): Whether rows of a batch may have different lengths for a while.
    """
    do_sample, device = bool(generation_config.do_sample), logits.device
    is_prefix_free = all(type(processor) in PREFIX_FREE_PROCESSORS for processor in processors)
    is_known_device = not do_sample or device.type in SamplingNoise.DEVICES
    is_single = sequences.batch_size == 1
    vocab_size = logits.shape[-1]
    if is_prefix_free and is_known_device and sequences.stops_row_wise and (is_single or rows_may_run_ahead):
        kind = PathSelector if is_single and device.type in PathSelector.DEVICES else NodeSelector
        return kind(sequences, processors, records, do_sample, vocab_size, device)
    return TokenSelector(sequences, processors, records, do_sample, vocab_size)
