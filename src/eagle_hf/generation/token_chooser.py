"""Choosing the target's next tokens one after the other, as plain `generate` does."""

import torch
from transformers.generation.logits_process import LogitsProcessorList

from ..drafting.coupling import Noise
from ..tree import DraftTree
from .choosing import Chooser
from .noise import SamplingNoise
from .scores import ScoreRecords
from .text import Text


class TokenChooser(Chooser):
    """
    Walks the tree one token at a time and calls everything as plain `generate` does: every processor once per emitted
    token with that token's true prefix, never for a rejected branch, on the whole batch. Rows of a batch advance
    together, by the number of tokens that all of them accept.

    Args:
        text ([`Text`]): Gets the chosen tokens.
        processors ([`~transformers.LogitsProcessorList`]): Any processors.
        records ([`ScoreRecords`]): Get scores and logits.
        do_sample (`bool`): Whether to sample.
        vocab_size (`int`): Tokens of the target.
    """

    def __init__(
        self,
        text: Text,
        processors: LogitsProcessorList,
        records: ScoreRecords,
        do_sample: bool,
        vocab_size: int,
    ):
        super().__init__(text, processors, records)
        self.do_sample = do_sample
        self.vocab_size = vocab_size

    def advance(self, logits: torch.Tensor, tree: DraftTree) -> list[list[int]]:
        """Implements [`Chooser.advance`]."""
        children = [
            {(parent, token): node for node, (parent, token) in enumerate(zip(parents, tokens, strict=True))}
            for tokens, parents in zip(*self._read_back(tree), strict=True)
        ]
        rows = torch.arange(len(children), device=logits.device)
        paths = [[0] for _ in children]
        while True:
            at = [path[-1] for path in paths]
            finished_before = self.text.closed_rows()
            chosen = self._next_tokens(logits[rows, at].to(copy=True, dtype=torch.float32))
            closed = self.text.closed_rows()
            # A row that has just finished needs its last token as a root, or the cache would lack it.
            if self.text.done or closed != finished_before:
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
        """Appends one column as plain `generate` does, from logits of shape `(batch_size, vocab_size)`."""
        scores = self.processors(self.text.ids.contiguous(), logits)
        self.records.add_column(scores, logits)
        if self.do_sample:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(dim=-1)
        self.text.append_column(tokens, self.records.scores)
        return tokens.tolist()

    def noise_ahead(self, num_tokens: int) -> Noise | None:
        """Implements [`Chooser.noise_ahead`]. Here a look ahead only: the numbers are drawn again, token by token."""
        device = self.text.ids.device
        if not self.do_sample or not SamplingNoise.is_known(device):
            return None
        noise = SamplingNoise(self.text.batch_size, self.vocab_size, device)
        gumbels = noise.gumbels([0] * self.text.batch_size, num_tokens)
        noise.rewind(0)
        return self._with_temperature(gumbels)

    def finish(self) -> None:
        """Does nothing: the random numbers were drawn as plain `generate` draws them."""
