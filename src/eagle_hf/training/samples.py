"""From rows to a dataset of token ids and loss masks, and a report of what became of every row."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.chat_text import ChatText, NotRenderable, Sample
from ..data.conversations import Row, RowReader, RowReport
from ..data.data_files import Data


logger = logging.get_logger(__name__)


@dataclass
class DataReport:
    """
    Counts what became of the rows.

    Args:
        rows ([`RowReport`]): The rows that were read, and the malformed ones among them.
        num_samples (`int`): Samples to train on.
        num_tokens (`int`): Their tokens.
        num_trained_tokens (`int`): Those of them that are trained.
        longest (`int`): Tokens of the longest sample before any was cut or dropped.
        num_cut (`int`): Samples that were cut because they were too long.
        num_cut_tokens (`int`): Tokens that were cut off.
        num_dropped (`int`): Samples that were dropped because they were too long.
        num_untrained (`int`): Samples that were dropped because no token of them is trained.
    """

    rows: RowReport = field(default_factory=RowReport)
    num_samples: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    longest: int = 0
    num_cut: int = 0
    num_cut_tokens: int = 0
    num_dropped: int = 0
    num_untrained: int = 0

    def __str__(self) -> str:
        share = self.num_trained_tokens / max(self.num_tokens, 1)
        return "\n".join(
            [
                str(self.rows),
                f"{self.num_samples} samples of {self.num_tokens} tokens, {self.num_trained_tokens} ({share:.1%}) of "
                f"them trained; the longest had {self.longest} tokens",
                f"too long: {self.num_cut} cut (by {self.num_cut_tokens} tokens in all), {self.num_dropped} dropped; "
                f"{self.num_untrained} dropped without a trained token",
            ]
        )


class SampleDataset(Dataset):
    """
    Samples in little memory: five bytes per token.

    Args:
        samples (`Iterable[dict[str, list[int]]]`): Samples with `input_ids` and `loss_mask`.
        report ([`DataReport`], *optional*): What became of the rows they were made of.

    Items are dicts of `input_ids` (`torch.LongTensor` of shape `(seq_len,)`) and `loss_mask` (the same shape, 1 where
    the token is trained). `lengths` holds the tokens of each sample, and `token_counts` how often each token is
    trained, which chooses the draft vocabulary ([`most_frequent_tokens`]).
    """

    def __init__(self, samples: Iterable[Sample], report: DataReport | None = None):
        ids, masks = [], []
        for sample in samples:
            ids.append(torch.as_tensor(sample["input_ids"], dtype=torch.int32))
            masks.append(torch.as_tensor(sample["loss_mask"], dtype=torch.bool))
        self.lengths: list[int] = [len(row) for row in ids]
        self._ids = torch.cat(ids) if ids else torch.empty(0, dtype=torch.int32)
        self._masks = torch.cat(masks) if masks else torch.empty(0, dtype=torch.bool)
        self._ends = torch.tensor(self.lengths, dtype=torch.long).cumsum(0).tolist()
        if report is None:
            report = DataReport(longest=max(self.lengths, default=0))
        report.num_samples = len(self.lengths)
        report.num_tokens = len(self._ids)
        report.num_trained_tokens = int(self._masks.sum())
        self.report = report

    @property
    def token_counts(self) -> Counter[int]:
        """How often each token is trained."""
        tokens, counts = self._ids[self._masks].unique(return_counts=True)
        return Counter(dict(zip(tokens.tolist(), counts.tolist(), strict=True)))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        end = self._ends[index]
        window = slice(end - self.lengths[index], end)
        return {"input_ids": self._ids[window].long(), "loss_mask": self._masks[window].long()}


def make_samples(
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = 2048,
    overflow: Literal["cut", "drop"] = "cut",
    last_turn_only: bool = False,
    stop_token_ids: Iterable[int] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    vocab_size: int | None = None,
    max_malformed: float = 0.01,
    split: str = "train",
    rendered_at: str | None = None,
) -> SampleDataset:
    """
    Reads rows and turns them into samples, ready to train on. The report is logged at INFO.

    Args:
        data: Rows in any form that [`RowReader`] takes.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        max_length (`int`, *optional*, defaults to 2048): Most tokens of a sample; `None` for no limit.
        overflow (`str`, *optional*, defaults to `"cut"`):
            Whether longer samples are cut from the right (`"cut"`) or left out (`"drop"`).
        last_turn_only (`bool`, *optional*, defaults to `False`): Train only the last answer of a conversation.
        stop_token_ids (`Iterable[int]`, *optional*): Tokens at which the target stops; see [`ChatText`].
        chat_template_kwargs (`dict`, *optional*): Variables of the chat template; see [`ChatText`].
        vocab_size (`int`, *optional*): Vocabulary size of the target, to refuse data of another tokenizer.
        max_malformed (`float`, *optional*, defaults to 0.01): Share of malformed rows above which this fails.
        split (`str`, *optional*, defaults to `"train"`): Split of a dataset that has several.
        rendered_at (`str`, *optional*): The time that chat templates see; see [`ChatText`].

    Returns:
        [`SampleDataset`]

    Raises:
        `ValueError`: if too many rows are malformed or nothing is left to train on.
    """
    if overflow not in ("cut", "drop"):
        raise ValueError(f"overflow is {overflow!r}, and must be 'cut' or 'drop'.")
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length is {max_length}; a sample needs two tokens at least, one to predict from.")
    reader = RowReader(data, max_malformed=max_malformed, split=split)
    chat_text = ChatText(
        tokenizer, last_turn_only, stop_token_ids, chat_template_kwargs, rendered_at, needs_offsets=False
    )
    report = DataReport()

    def fitting() -> Iterable[Sample]:
        for sample in _joined(_rendered(reader, chat_text, vocab_size)):
            length = len(sample["input_ids"])
            report.longest = max(report.longest, length)
            if max_length is not None and length > max_length:
                if overflow == "drop":
                    report.num_dropped += 1
                    continue
                sample = {name: values[:max_length] for name, values in sample.items()}
                report.num_cut += 1
                report.num_cut_tokens += length - max_length
            if any(sample["loss_mask"]):
                yield sample
            else:
                report.num_untrained += 1

    dataset = SampleDataset(fitting(), report)
    report.rows = reader.report
    if len(dataset) == 0:
        raise ValueError(
            f"Nothing is left to train on. Raise max_length ({max_length}) if samples are too long.\n{report}"
        )
    logger.info(str(report))
    return dataset


def _rendered(reader: RowReader, chat_text: ChatText, vocab_size: int | None) -> Iterable[tuple[Row, Sample]]:
    """Returns every sample with its row; rows that the chat template refuses count as malformed."""
    for row in logging.tqdm(reader, unit=" rows", desc="Samples"):
        try:
            samples = chat_text(row)
        except NotRenderable as error:
            reader.reject("the chat template cannot take it", str(error))
            continue
        for sample in samples:
            if not sample["input_ids"]:
                continue
            if vocab_size is not None and (largest := max(sample["input_ids"])) >= vocab_size:
                raise ValueError(
                    f"The data holds token {largest}, and the target has {vocab_size} tokens: the data was prepared, "
                    "or the tokenizer made, for another target."
                )
            yield row, sample


def _joined(rendered: Iterable[tuple[Row, Sample]]) -> Iterable[Sample]:
    """
    Joins exact tokens of consecutive turns of one conversation where the next prompt goes on from the last answer, so
    that what they have in common is trained once.
    """
    pending: Sample | None = None
    source: object = None
    for row, sample in rendered:
        is_exact = row.get("prompt_ids") is not None
        if pending is not None:
            num_known = len(pending["input_ids"])
            if (
                is_exact
                and source is not None
                and row.get("row") == source
                and _starts_with(row["prompt_ids"], pending["input_ids"])
            ):
                loss_mask = pending["loss_mask"] + sample["loss_mask"][num_known:]
                pending = {"input_ids": sample["input_ids"], "loss_mask": loss_mask}
                continue
            yield pending
        pending, source = sample, row.get("row") if is_exact else None
    if pending is not None:
        yield pending


def _starts_with(ids: Sequence[int], beginning: Sequence[int]) -> bool:
    return list(ids[: len(beginning)]) == list(beginning)
