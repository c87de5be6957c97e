"""
Rows of training data, as people have them, and what is wrong with those that cannot be used.

A row is one of these, and the first that fits is taken:

```text
{"prompt_ids": [...], "answer_ids": [...]}                 exact tokens, as `eagle-hf prepare` writes them
{"messages": [{"role": ..., "content": ...}, ...]}         a conversation
{"conversations": [{"from": ..., "value": ...}, ...]}      the same in the words of ShareGPT
{"prompt": ..., "completion": ...}                         both strings, or both lists of messages
{"text": "..."}                                            plain text
```

Other fields are left alone; `tools` and `chat_template_kwargs` reach the chat template, and `rendered_at` is the time
that it sees.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from .data_files import Data, name_of, read_data
from .foreign_rows import as_messages, what_it_has
from .frozen_clock import is_moment


Row = dict[str, Any]

UNKNOWN_FORM = "none of `messages`, `conversations`, `prompt` with `completion`, `text`"
# Parts of a content that the training of a head, which is on text, would leave out.
_MEDIA = ("image", "video", "audio", "file")


@dataclass
class RowReport:
    """
    Holds what was read.

    Args:
        num_rows (`int`): Rows read, good and malformed.
        malformed (`Counter`): How many rows could not be used, by reason.
        shown (`list[str]`): The first of them, with file and line.
    """

    num_rows: int = 0
    malformed: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    @property
    def num_malformed(self) -> int:
        """Rows that could not be used."""
        return self.malformed.total()

    def __str__(self) -> str:
        lines = [f"{self.num_rows} rows read, {self.num_malformed} of them malformed"]
        lines += [f"  {count} x {reason}" for reason, count in self.malformed.most_common()]
        lines += [f"    {line}" for line in self.shown]
        return "\n".join(lines)


class RowReader:
    """
    Iterates over the usable rows of `data` and counts the others in `report`. Every iteration starts anew.

    Args:
        data (`str`, `Path` or `Iterable`):
            A `.jsonl` file, or a `.json` file that holds a list (both also `.gz` or `.xz`); a folder of such files or
            one saved by `datasets`; the name of a dataset on the Hub; a dataset of `datasets`, streaming or not; any
            iterable of dicts; or a list of files, folders and names.
        need_answers (`bool`, *optional*, defaults to `True`):
            Whether rows must hold an answer. Without it, prompts are enough.
        max_malformed (`float`, *optional*, defaults to 0.01):
            Share of malformed rows above which reading ends with an error.
        split (`str`, *optional*, defaults to `"train"`): Which split to take where there are several.
        num_shown (`int`, *optional*, defaults to 5): How many malformed rows to show.

    Raises:
        `ValueError`: at the end of an iteration, if more rows than that are malformed, or none is usable.
    """

    def __init__(
        self,
        data: Data,
        need_answers: bool = True,
        max_malformed: float = 0.01,
        split: str = "train",
        num_shown: int = 5,
    ):
        if not 0 <= max_malformed <= 1:
            raise ValueError(f"max_malformed is {max_malformed}, and must be a share between 0 and 1.")
        self.data = data
        self.need_answers = need_answers
        self.max_malformed = max_malformed
        self.split = split
        self.num_shown = num_shown
        self.report = RowReport()
        self._place = ""

    def __iter__(self) -> Iterator[Row]:
        self.report = RowReport()
        for place, row in read_data(self.data, self.split):
            self._place = place
            self.report.num_rows += 1
            if isinstance(row, Mapping):
                row = as_messages(row)
            reason = row if isinstance(row, str) else why_malformed(row, self.need_answers)
            if reason is None:
                yield cast(Row, row)
            else:
                self.reject(reason, what_it_has(row) if reason == UNKNOWN_FORM else "")
        self._check()

    def reject(self, reason: str, detail: str = "") -> None:
        """Counts the row that was yielded last as malformed."""
        self.report.malformed[reason] += 1
        if len(self.report.shown) < self.num_shown:
            self.report.shown.append(f"{self._place}: {reason}" + (f" ({detail})" if detail else ""))

    def _check(self) -> None:
        report = self.report
        if report.num_rows == 0:
            raise ValueError(f"No rows in {name_of(self.data)}. Rows are expected, one JSON object per line.")
        if report.num_malformed == report.num_rows:
            raise ValueError(f"No usable row in {name_of(self.data)}. {report}")
        if report.num_malformed > self.max_malformed * report.num_rows:
            raise ValueError(
                f"{report.num_malformed / report.num_rows:.1%} of the rows of {name_of(self.data)} are malformed, more "
                f"than the {self.max_malformed:.1%} that are let pass. Repair them, or raise max_malformed if they "
                f"can be spared.\n{report}"
            )


@dataclass(frozen=True)
class Conversation:
    """
    Messages, and how to render them.

    Args:
        messages (`list[dict]`): The messages.
        first_turn (`int`, *optional*, defaults to 1): Answers before this message are part of the prompt.
        tools (`list[dict]`, *optional*): Tools that the chat template announces.
        chat_template_kwargs (`dict`, *optional*): Further variables of the chat template.
        is_finished (`bool`, *optional*, defaults to `True`): Whether the last answer is whole.
        rendered_at (`str`, *optional*): Local time that the chat template sees, in ISO format.
    """

    messages: list[dict[str, Any]]
    first_turn: int = 1
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    is_finished: bool = True
    rendered_at: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Conversation | None":
        """Returns the conversation that a row holds, or `None` if it is text."""
        if row.get("messages") is not None:
            messages, first_turn = row["messages"], 1
        elif isinstance(row.get("prompt"), list):
            messages, first_turn = row["prompt"] + (row.get("completion") or []), len(row["prompt"])
        else:
            return None
        return cls(
            [{name: value for name, value in message.items() if value is not None} for message in messages],
            first_turn,
            row.get("tools") or None,
            row.get("chat_template_kwargs") or {},
            row.get("finished") is not False,
            row.get("rendered_at"),
        )

    @property
    def turns(self) -> list[int]:
        """Which messages are answers of the assistant to a prompt."""
        first = max(self.first_turn, 1)
        return [i for i, message in enumerate(self.messages) if i >= first and message["role"] == "assistant"]


def why_malformed(row: Any, need_answers: bool = True) -> str | None:
    """Returns why a row cannot be used, or `None` if it can."""
    if not isinstance(row, Mapping):
        return "not an object"
    if row.get("prompt_ids") is not None or row.get("answer_ids") is not None:
        return _why_malformed_ids(row)
    if row.get("rendered_at") is not None and not is_moment(row["rendered_at"]):
        return "`rendered_at` is no time in ISO format"
    if any(row.get(name) for name in ("image", "images", "video", "videos", "audio", "audios")):
        return "a row with images or sound: heads are trained on text"
    if row.get("messages") is not None:
        return _why_malformed_messages(row["messages"], need_answers)
    if row.get("prompt") is not None:
        return _why_malformed_prompt(row["prompt"], row.get("completion"), need_answers)
    if row.get("text") is not None:
        if not isinstance(row["text"], str) or not row["text"].strip():
            return "`text` is no text"
        return None
    return UNKNOWN_FORM


def _why_malformed_ids(row: Mapping[str, Any]) -> str | None:
    for name in ("prompt_ids", "answer_ids"):
        ids = row.get(name)
        if not isinstance(ids, list) or not ids or not all(type(token) is int and token >= 0 for token in ids):
            return f"`{name}` is no list of token ids"
    return None


def _why_malformed_prompt(prompt: Any, completion: Any, need_answers: bool) -> str | None:
    if completion is None and not need_answers:
        completion = "?" if isinstance(prompt, str) else []
    if completion is None:
        return "`prompt` without `completion`"
    if isinstance(prompt, str):
        return None if isinstance(completion, str) and completion and prompt else "`prompt` or `completion` is empty"
    if not isinstance(prompt, list) or not isinstance(completion, list):
        return "`prompt` and `completion` are neither both strings nor both lists of messages"
    if not prompt:
        return "`prompt` is empty"
    if (reason := _why_malformed_messages(prompt, need_answers=False)) is not None:
        return reason
    return _why_malformed_messages(completion, need_answers) if need_answers or completion else None


def _why_malformed_messages(messages: Any, need_answers: bool) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "`messages` is no list of messages"
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return "a message without `role`"
        if message.get("content") is not None and not isinstance(message["content"], str | list):
            return "a message whose `content` is neither text nor a list of parts"
        if (kind := _media(message)) is not None:
            return f"a message with {kind!r} in it: heads are trained on text"
        if message["role"] in ("user", "assistant") and not _says_something(message):
            return f"a message of the {message['role']} without `content`"
    if need_answers and not any(message["role"] == "assistant" for message in messages):
        return "no turn of the assistant"
    return None


def _media(message: Mapping[str, Any]) -> str | None:
    """Returns the kind of a part that is no text."""
    parts = message["content"] if isinstance(message.get("content"), list) else []
    kinds = [str(part.get("type")) for part in parts if isinstance(part, Mapping)]
    return next((kind for kind in kinds if any(name in kind for name in _MEDIA)), None)


def _says_something(message: Mapping[str, Any]) -> bool:
    return any(message.get(name) for name in ("content", "tool_calls", "reasoning_content", "thinking"))
