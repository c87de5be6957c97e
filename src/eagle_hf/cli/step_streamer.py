"""New tokens as they come, step by step, while `generate` is still running."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer


class StepStreamer(BaseStreamer):
    """
    A streamer that knows which forward of the target every token came from. A streamer alone gets one token after the
    other; those that come between two forwards are one step:

    ```text
    forward   prompt        tree              tree
    tokens           The         quick brown       fox
    steps            [The]       [quick brown]     [fox]
    ```

    Used as a context manager, for one call of `generate` and one row.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        on_step (`Callable[[list[int]], None]`): Called with the tokens of every step. It delays the next one.
    """

    def __init__(self, target: PreTrainedModel, on_step: Callable[[list[int]], None]):
        self.target = target
        self.on_step = on_step
        self.steps: list[list[int]] = []
        self._pending: list[int] = []
        self._has_prompt = False

    @property
    def tokens(self) -> list[int]:
        """All new tokens so far."""
        return [token for step in self.steps for token in step]

    @property
    def acceptance_lengths(self) -> list[int]:
        """Tokens that each verification added, as [`EagleGenerateOutput`] has them in the end."""
        return [len(step) for step in self.steps[1:]]

    def __enter__(self) -> "StepStreamer":
        self._hook = self.target.register_forward_pre_hook(lambda *_: self._flush())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then every new token."""
        if self._has_prompt:
            self._pending += value.reshape(-1).tolist()
        self._has_prompt = True

    def end(self) -> Any:
        """Closes the last step."""
        self._flush()

    def _flush(self) -> None:
        if self._pending:
            self.steps.append(self._pending)
            self._pending = []
            self.on_step(self.steps[-1])
