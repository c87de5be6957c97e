"""An answer in a terminal while it is written, with running figures."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..visualization import TextPicture
from ..visualization.tokens import Kind, step_kinds


REFRESH = 0.1  # seconds between two states of the unfinished line


class AnswerView:
    """
    Prints every line once it is complete; below, in a terminal, the unfinished line and the figures so far.

    Args:
        console ([`~rich.console.Console`]): Where to print.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
    """

    def __init__(self, console: Console, tokenizer: PreTrainedTokenizerBase):
        self.console = console
        self.tokenizer = tokenizer
        self.lengths: list[int] = []  # tokens of every step, the prompt's included
        self.start = time.perf_counter()
        self._tail: list[tuple[list[int], list[tuple[Kind, int]]]] = []  # steps that the unfinished line is made of
        self._printed = 0  # characters of the tail that are printed
        self._refreshed = 0.0
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "AnswerView":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        rest = self._text()[self._printed :]
        if rest.plain:
            self.console.print(rest, soft_wrap=True)

    def figures(self) -> str:
        """Returns the tokens, their rate since the start, and tokens per verification."""
        line = f"{sum(self.lengths)} tokens, {sum(self.lengths) / (time.perf_counter() - self.start):.1f} tokens/s"
        verified = self.lengths[1:]
        return line + (f", {sum(verified) / len(verified):.2f} tokens per verification" if verified else "")

    def add_step(self, tokens: list[int]) -> None:
        """Shows the tokens of a step."""
        self._tail.append((tokens, step_kinds(len(self.lengths), len(tokens))))
        self.lengths.append(len(tokens))
        newest = self._text(2).plain
        if "\n" in newest:
            text = self._text()
            end = text.plain.rindex("\n")
            if end >= self._printed:  # else the step before had it
                if self._live is not None:
                    self._live.update(Text(), refresh=True)  # what it shows is about to be printed
                self.console.print(text[self._printed : end], soft_wrap=True)
                # One step more than the unfinished line needs: some tokenizers decode a token by the one before.
                self._tail, self._printed = self._tail[-2:], newest.rindex("\n") + 1
        if self._live is not None and time.perf_counter() - self._refreshed > REFRESH:
            self._refreshed = time.perf_counter()
            line = self._text()[self._printed :]
            room = self.console.width * max(self.console.height - 4, 1)
            self._live.update(Group(line[-room:], Text(self.figures(), style="dim")), refresh=True)

    def _text(self, num_steps: int = 0) -> Text:
        """Returns the text of the last steps, or of the whole tail."""
        steps = self._tail[-num_steps:]
        tokens = [token for step, _ in steps for token in step]
        kinds = [kind for _, step in steps for kind in step]
        return TextPicture.from_kinds(self.tokenizer, tokens, kinds, skip_special_tokens=True).__rich__()
