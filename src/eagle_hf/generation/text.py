"""The growing sequences: appending tokens, stopping, streaming, in the order in which plain `generate` does it."""

import sys
from collections.abc import Sequence

import torch
from transformers import GenerationConfig
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer


# Criteria that look at one row at a time, and at nothing but its tokens and the clock.
ROW_WISE_CRITERIA = (MaxLengthCriteria, EosTokenCriteria, StopStringCriteria, MaxTimeCriteria)


class Text:
    """
    Holds the growing texts of a call, one per row of the batch.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, prompt_len)`): The prompt.
        stopping_criteria ([`~transformers.StoppingCriteriaList`]): As prepared by `generate`.
        generation_config ([`~transformers.GenerationConfig`]): As prepared by `generate`.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*): Gets every new token.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None,
    ):
        self.batch_size, self.prompt_len = input_ids.shape
        self.lengths = [self.prompt_len] * self.batch_size
        self.finished = [False] * self.batch_size
        self.new_tokens: list[list[int]] = [[] for _ in range(self.batch_size)]  # what rows got, on the host
        self.stopping_criteria = stopping_criteria
        self.streamer = streamer
        self.has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        pad_token = generation_config._pad_token_tensor
        self.pad_token = 0 if pad_token is None else int(pad_token)
        limits = [c.max_length for c in stopping_criteria if type(c) is MaxLengthCriteria]
        self.max_length: int | None = min(limits) if limits else None
        self._eos_tokens = {
            t for c in stopping_criteria if type(c) is EosTokenCriteria for t in c.eos_token_id.tolist()
        }
        self._other_criteria = [c for c in stopping_criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)]
        self._streamed = self.prompt_len
        self._buffer = input_ids.new_full(
            (self.batch_size, max(self.max_length or 0, self.prompt_len + 64)), self.pad_token
        )
        self._buffer[:, : self.prompt_len] = input_ids

    @property
    def done(self) -> bool:
        """Whether every row is finished."""
        return all(self.finished)

    def closed_rows(self) -> list[bool]:
        """
        Returns which rows get no more tokens of their own. Without an end-of-sequence token, plain `generate` goes on
        with rows that have stopped until all have, so that only the length limit closes a row.
        """
        return [
            done and (self.has_eos or length == self.max_length)
            for done, length in zip(self.finished, self.lengths, strict=True)
        ]

    def open_rows(self) -> list[int]:
        """Returns the rows that still get tokens of their own."""
        return [row for row, closed in enumerate(self.closed_rows()) if not closed]

    @property
    def stops_row_wise(self) -> bool:
        """
        Whether each row can run ahead of the others: known criteria only, and a finished row stays as it is. (Without
        an end-of-sequence token, plain `generate` appends to stopped rows until all have stopped.)
        """
        known = all(type(c) in ROW_WISE_CRITERIA for c in self.stopping_criteria)
        return known and (self.has_eos or not self._other_criteria)

    @property
    def ids(self) -> torch.Tensor:
        """All rows up to the longest, of shape `(batch_size, length)`; shorter ones are padded on the right."""
        return self._buffer[:, : max(self.lengths)]

    def newest(self) -> torch.Tensor:
        """Returns the newest token of every row, of shape `(batch_size,)`: the roots of the next trees."""
        return self.last(1, [1] * self.batch_size)[:, 0]

    def last(self, width: int, counts: Sequence[int]) -> torch.Tensor:
        """
        Returns the last `counts[b]` tokens of every row, left-aligned, of shape `(batch_size, width)`; the rest is
        undefined, but can be embedded: the padding of old configurations is -1, which stands for none.
        """
        if self.batch_size == 1:
            start = self.lengths[0] - counts[0]
            return self._buffer[:, start : start + width]
        starts = torch.tensor(
            [[n - count] for n, count in zip(self.lengths, counts, strict=True)], device=self._buffer.device
        )
        columns = starts + torch.arange(width, device=self._buffer.device)
        tokens = self._buffer.gather(1, columns.clamp(max=self._buffer.shape[1] - 1))
        return tokens if self.pad_token >= 0 else tokens.clamp(min=0)

    def max_draft_depth(self) -> int:
        """Returns how many drafts on a path any row can still use, besides the token that every step adds anyway."""
        if self.max_length is None:
            return sys.maxsize
        return max(self.max_length - n - 1 for n, done in zip(self.lengths, self.finished, strict=True) if not done)

    # ------------------------------------------------------------------ one row at a time

    def append_rows(self, tokens: Sequence[Sequence[int]]) -> list[int]:
        """
        Appends tokens to every row until it stops. Stopping is decided after every token, row by row.

        Args:
            tokens (`Sequence[Sequence[int]]` of length `batch_size`): New tokens of every row; may be none.

        Returns:
            `list[int]`: How many of the tokens each row took.
        """
        self._reserve(max(n + len(new) for n, new in zip(self.lengths, tokens, strict=True)))
        device = self._buffer.device
        if self.batch_size == 1:
            start = self.lengths[0]
            self._buffer[0, start : start + len(tokens[0])] = torch.tensor(tokens[0], device=device)
        else:  # all rows in one go
            cells = [
                (row, column, token)
                for row, (start, new) in enumerate(zip(self.lengths, tokens, strict=True))
                for column, token in enumerate(new, start)
            ]
            rows, columns, values = torch.tensor(cells, device=device).unbind(1)
            self._buffer[rows, columns] = values
        return [self._advance(row, new) for row, new in enumerate(tokens)]

    def _advance(self, row: int, tokens: Sequence[int]) -> int:
        """Takes over tokens that are in the buffer already, until the row stops."""
        for count, token in enumerate(tokens, start=1):
            self.lengths[row] += 1
            self.new_tokens[row].append(token)
            self.finished[row] = self._stops(row, token)
            if self.batch_size == 1:  # the token's turn has come: a batch waits for the whole column
                self._stream(self.lengths[0])
            if self.finished[row]:
                self._buffer[row, self.lengths[row] :] = self.pad_token
                return count
        return len(tokens)

    def _stops(self, row: int, token: int) -> bool:
        stops = [token in self._eos_tokens, self.lengths[row] == self.max_length]
        if self._other_criteria:  # all of them are asked, as by plain `generate`
            ids = self._buffer[row : row + 1, : self.lengths[row]]
            stops += [bool(criterion(ids, None)) for criterion in self._other_criteria]
        return any(stops)

    def stream_columns(self) -> None:
        """Streams what all rows have by now."""
        open_rows = [n for n, done in zip(self.lengths, self.finished, strict=True) if not done]
        self._stream(min(open_rows) if open_rows else max(self.lengths))

    # ------------------------------------------------------------------ one column at a time

    def append_column(self, tokens: torch.Tensor, scores: tuple[torch.Tensor, ...] | None) -> None:
        """
        Appends one token to every row, exactly as plain `generate` does.

        Args:
            tokens (`torch.LongTensor` of shape `(batch_size,)`): The next token of every row.
            scores (`tuple[torch.Tensor, ...]`, *optional*): What criteria get besides the ids.
        """
        if any(closed := self.closed_rows()):
            tokens = tokens.masked_fill(torch.tensor(closed, device=tokens.device), self.pad_token)
        length = self.lengths[0]
        self._reserve(length + 1)
        self._buffer[:, length] = tokens
        self.lengths = [length + 1] * self.batch_size
        for row, token in zip(self.new_tokens, tokens.tolist(), strict=True):
            row.append(token)
        stops = self.stopping_criteria(self.ids.contiguous(), scores)
        self.finished = [done or stop for done, stop in zip(self.finished, stops.tolist(), strict=True)]
        self._stream(length + 1)

    def _stream(self, end: int) -> None:
        if self.streamer is not None:
            while self._streamed < end:
                self.streamer.put(self._buffer[:, self._streamed].to("cpu", copy=True))
                self._streamed += 1

    def _reserve(self, length: int) -> None:
        if length > self._buffer.shape[1]:
            more = self._buffer.new_full((self.batch_size, length), self.pad_token)
            self._buffer = torch.cat([self._buffer, more], dim=1)
