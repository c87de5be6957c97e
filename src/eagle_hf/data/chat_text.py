"""
Tokens of a row and which of them are trained: those that the assistant generates, and no others.

```text
<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n
                                                      ^^^^^^^^^^^^^^^^      trained: what the target writes itself
```

The chat template of the target decides both. A turn starts where its rendering goes beyond the prompt that the target
is given when it serves the turn, and ends with the token at which the target stops.

Some templates render a turn otherwise once later turns follow it; those of reasoning models leave out what was thought
in earlier turns. Then a conversation becomes several samples, each of them the text that the target sees when it serves
its last turn:

```text
user 1  assistant 1 with its thoughts                                          sample 1
                    ^^^^^^^^^^^^^^^^^
user 1  assistant 1 without them       user 2  assistant 2 with its thoughts   sample 2
                                                           ^^^^^^^^^^^^^^^^^
```
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from . import frozen_clock
from .conversations import Conversation
from .prompts import in_parts, reads_only_parts


Sample = dict[str, list[int]]
Span = tuple[int, int]  # characters, the end excluded

_NO_MASK = (
    "so it cannot be told which tokens the assistant generates. Give rows with `prompt` and `completion` (strings that "
    "hold the rendered text; the completion is trained) or `text` (trained whole), or a tokenizer whose chat template "
    "has `{% generation %}` around what the assistant generates."
)


class NotRenderable(ValueError):
    """The chat template refuses a conversation or cannot mark its answers; a fault of the row."""


@dataclass
class _Text:
    """Rendered text and the spans of it that are trained."""

    text: str
    spans: list[Span] = field(default_factory=list)


class ChatText:
    """
    Turns rows into samples with the tokenizer of the target.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer; a fast one.
        last_turn_only (`bool`, *optional*, defaults to `False`): Train only the last answer of a conversation.
        stop_token_ids (`Iterable[int]`, *optional*):
            Tokens at which the target stops, such as `target.generation_config.eos_token_id`. An answer is trained up
            to the first of them. Without any (the tokenizer's EOS token always is one), an answer ends with the last
            token of its turn that is not blank, which is the same for all templates that write one end of turn.
        chat_template_kwargs (`dict`, *optional*):
            Variables of the chat template, such as `{"enable_thinking": False}`. Those of a row go before them.
        rendered_at (`str`, *optional*):
            Local time in ISO format that templates which write the date see, such as `"2026-11-30T17:49:34"`; now by
            default. The `rendered_at` of a row goes before it.
        needs_offsets (`bool`, *optional*, defaults to `True`):
            Whether to refuse a tokenizer without offsets at once, and not at the first row that needs them: rows of
            `prompt_ids` and `answer_ids` do not.

    Example:

    ```python
    >>> from transformers import AutoTokenizer
    >>> from eagle_hf.training import ChatText

    >>> chat_text = ChatText(AutoTokenizer.from_pretrained("hub_cards/demo-llama-10m"))
    >>> row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    >>> sample = chat_text(row)[0]
    >>> trained = [token for token, mask in zip(sample["input_ids"], sample["loss_mask"]) if mask]
    >>> chat_text.tokenizer.decode(trained)
    'Hello!<|eos|>'
    ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        last_turn_only: bool = False,
        stop_token_ids: Iterable[int] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        rendered_at: str | None = None,
        needs_offsets: bool = True,
    ):
        if rendered_at is not None and not frozen_clock.is_moment(rendered_at):
            raise ValueError(
                f"`rendered_at` is {rendered_at!r}, expected a local time in ISO format, such as '2026-11-30T17:49:34'."
            )
        if needs_offsets:
            _check_offsets(tokenizer)
        self.tokenizer = tokenizer
        self.last_turn_only = last_turn_only
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.rendered_at = rendered_at or frozen_clock.now()
        stop_ids = set(stop_token_ids or ()) | {tokenizer.eos_token_id} - {None}
        self._stops = [tokenizer.decode([token]) for token in sorted(stop_ids)]
        self._added_ids = set(tokenizer.added_tokens_decoder)
        self._template_is_checked = False

    def __call__(self, row: Mapping[str, Any]) -> list[Sample]:
        """
        Returns the samples of one usable row (see [`why_malformed`]).

        Returns:
            `list[dict[str, list[int]]]`: `input_ids` and `loss_mask`, both of shape `(seq_len,)`.

        Raises:
            [`NotRenderable`]: if the chat template cannot take the row.
            `ValueError`: if the tokenizer cannot take any row of this kind.
        """
        if row.get("prompt_ids") is not None:
            prompt, answer = list(row["prompt_ids"]), list(row["answer_ids"])
            return [{"input_ids": prompt + answer, "loss_mask": [0] * len(prompt) + [1] * len(answer)}]
        conversation = Conversation.from_row(row)
        if conversation is not None:
            return [self._encode(part) for part in self._conversation(conversation)]
        if row.get("prompt") is not None:
            prompt, text = row["prompt"], row["prompt"] + row["completion"]
            sample = self._encode(_Text(text, [(len(prompt), len(text))]), add_special_tokens=True)
            is_finished = row.get("finished") is not False
            if is_finished and self.tokenizer.eos_token_id not in (None, sample["input_ids"][-1]):
                sample["input_ids"].append(self.tokenizer.eos_token_id)
                sample["loss_mask"].append(1)
            return [sample]
        return [self._encode(_Text(row["text"], [(0, len(row["text"]))]), add_special_tokens=True)]

    def render_prompt(self, conversation: Conversation, num_messages: int) -> str:
        """Returns the text that the target is given to write the next turn after so many messages."""
        return self._render(conversation, num_messages, add_generation_prompt=True)[0]

    def _conversation(self, conversation: Conversation) -> list[_Text]:
        """Returns the texts whose spans together hold every answer once, each in the context in which it is served."""
        self._check_template()
        turns = conversation.turns[-1:] if self.last_turn_only else conversation.turns
        if not turns:
            raise NotRenderable("no turn of the assistant that follows a prompt")
        texts: list[_Text] = []
        for turn in turns:
            text, spans = self._turn(conversation, turn)
            if texts and text.startswith(texts[-1].text[: texts[-1].spans[-1][1]]):
                texts[-1] = _Text(text, texts[-1].spans + spans)  # the same text, going on
            else:
                texts.append(_Text(text, spans))
        return texts

    def _turn(self, conversation: Conversation, turn: int) -> tuple[str, list[Span]]:
        """Returns the text up to a turn, and what the target generates of this turn."""
        prompt, _ = self._render(conversation, turn, add_generation_prompt=True)
        before, _ = self._render(conversation, turn, add_generation_prompt=False)
        text, marked = self._render(conversation, turn + 1, add_generation_prompt=False, mark=True)
        if self._has_generation_blocks:
            others = _common_prefix(before, text)
            spans = [(max(start, others), end) for start, end in marked if end > others]
            if not spans:
                raise NotRenderable("the chat template has `{% generation %}` but marks nothing of a turn")
        else:
            spans = [(self._start(prompt, before, text), len(text))]
        start, end = spans[-1]
        spans[-1] = (start, self._end(text, start, end))
        if turn == conversation.turns[-1] and not conversation.is_finished:
            spans[-1] = (start, _end_of_content(conversation.messages[turn], text, start))
        return text, spans

    def _start(self, prompt: str, before: str, text: str) -> int:
        """Returns the character with which a turn starts."""
        start = _common_prefix(prompt, text)
        if start < _common_prefix(before, text):
            raise NotRenderable("the chat template renders a prompt otherwise when it is to be answered")
        if start < len(prompt):
            # The prompt opens the turn with more than the turn then holds, such as a block of thoughts that is left
            # out. Only whole tokens count as equal: that "<th" opens both "<think>" and "<the" means nothing.
            prompt_ids, ids = self._tokens(prompt), self._tokens(text)
            num_equal = _common_prefix(prompt_ids["input_ids"], ids["input_ids"])
            start = min(start, ids["offset_mapping"][num_equal - 1][1] if num_equal else 0)
        return start

    def _end(self, text: str, start: int, end: int) -> int:
        """Returns the character after that token at which the target stops."""
        found = [
            index + len(stop) for stop in self._stops if stop and (index := text.find(stop, start, end)) != -1
        ]  # fmt: skip
        return min(found) if found else start + len(text[start:end].rstrip())

    def _encode(self, part: _Text, add_special_tokens: bool = False) -> Sample:
        """Returns the tokens of a text; those that lie in one of its spans are trained."""
        encoding = self._tokens(part.text, add_special_tokens)
        ids, loss_mask = encoding["input_ids"], [0] * len(encoding["input_ids"])
        spans, current = sorted(part.spans), 0
        for i, (first, last) in enumerate(encoding["offset_mapping"]):
            while current < len(spans) and first >= spans[current][1]:
                current += 1
            if current == len(spans):
                break
            start, end = spans[current]
            # Some added tokens take the blanks that follow them.
            swallows = last > end and ids[i] in self._added_ids and not part.text[end:last].strip()
            if first >= start and first < last and (last <= end or swallows):
                loss_mask[i] = 1
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:1] == [bos]:
            loss_mask[0] = 0  # given, never generated
            if add_special_tokens and ids[:2] == [bos, bos]:  # the text had its own
                return {"input_ids": ids[1:], "loss_mask": [0, *loss_mask[2:]]}
        return {"input_ids": ids, "loss_mask": loss_mask}

    def _tokens(self, text: str, add_special_tokens: bool = False) -> dict[str, Any]:
        _check_offsets(self.tokenizer)
        return self.tokenizer(
            text,
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,  # long texts are cut later
        )

    def _render(
        self, conversation: Conversation, num_messages: int, add_generation_prompt: bool, mark: bool = False
    ) -> tuple[str, list[Span]]:
        """Returns the first messages as text, and what the template marks as generated in it."""
        import jinja2  # comes with torch, and chat templates cannot be rendered without

        if num_messages == 0:
            return "", []
        messages = conversation.messages[:num_messages]
        try:
            texts, spans = render_jinja_template(
                conversations=[in_parts(messages) if self._reads_only_parts else messages],
                tools=conversation.tools,
                chat_template=self._template(conversation),
                return_assistant_tokens_mask=mark and self._has_generation_blocks,
                add_generation_prompt=add_generation_prompt,
                **(self.tokenizer.special_tokens_map | self.chat_template_kwargs | conversation.chat_template_kwargs),
            )
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError) as error:
            raise NotRenderable(f"the chat template refuses it: {error}") from error
        return texts[0], spans[0] if spans else []

    def _template(self, conversation: Conversation) -> str:
        template = self.tokenizer.get_chat_template(tools=conversation.tools)
        return frozen_clock.with_clock(template, conversation.rendered_at or self.rendered_at)

    def reads_clock(self, conversation: Conversation) -> bool:
        """Checks whether the template may render a conversation otherwise at another time."""
        return frozen_clock.reads_clock(self.tokenizer.get_chat_template(tools=conversation.tools))

    @cached_property
    def _reads_only_parts(self) -> bool:
        return reads_only_parts(self.tokenizer)

    @property
    def _has_generation_blocks(self) -> bool:
        return re.search(r"{%-?\s*generation\s*-?%}", self.tokenizer.get_chat_template()) is not None

    def _check_template(self) -> None:
        """Refuses, once, a tokenizer whose template is missing or cannot mark what the assistant generates."""
        if self._template_is_checked:
            return
        if not self.tokenizer.chat_template:
            raise ValueError(f"The tokenizer {self.tokenizer.name_or_path!r} has no chat template, {_NO_MASK}")
        probe = Conversation([{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}])
        where = f"The chat template of {self.tokenizer.name_or_path!r}"
        try:
            text, spans = self._turn(probe, 1)
        except NotRenderable as error:
            raise ValueError(f"{where} fails on a plain question and answer ({error}), {_NO_MASK}") from error
        trained = "".join(text[start:end] for start, end in spans)
        if "answer" not in trained:
            raise ValueError(f"{where} renders `answer` as {trained!r}, {_NO_MASK}")
        opens_turn = self.render_prompt(probe, 1) != self._render(probe, 1, add_generation_prompt=False)[0]
        if not opens_turn and not self._has_generation_blocks and not trained.lstrip().startswith("answer"):
            raise ValueError(f"{where} ignores `add_generation_prompt` and renders `answer` as {trained!r}, {_NO_MASK}")
        self._template_is_checked = True


def _check_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer is a {type(tokenizer).__name__}, which does not tell where in the text its tokens "
            "stand, and the loss mask needs that. Load a fast one (`AutoTokenizer` does by default), or give rows "
            "with `prompt_ids` and `answer_ids`, as `eagle-hf prepare` writes them with any tokenizer."
        )


def _end_of_content(message: Mapping[str, Any], text: str, start: int) -> int:
    """Returns where the content of an unfinished answer ends; its end of turn was never generated."""
    content = message.get("content")
    index = text.rfind(content.strip(), start) if isinstance(content, str) else -1
    if index == -1:
        raise NotRenderable("an unfinished answer whose end is not found in the rendered text")
    return index + len(content.strip())  # type: ignore[union-attr]


def _common_prefix(a: Any, b: Any) -> int:
    """Returns the length of the common beginning of two strings or two lists."""
    if b[: len(a)] == a:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))
