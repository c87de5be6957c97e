"""A conversation whose answers the target writes again, turn after turn."""

import json
from typing import Any

from .chat_text import ChatText, NotRenderable
from .conversations import Conversation, Row


class Dialogue:
    """
    A row whose answers are being written.

    Args:
        number (`int`): Of the row in the data.
        row (`dict`): The row.
        chat_text ([`ChatText`]): Renders its prompts.
        turns (`str`): Whether `"all"` turns of the assistant are written or the `"first"`.

    `turns` holds the messages that are still to be written, `lines` what has been.
    """

    def __init__(self, number: int, row: Row, chat_text: ChatText, turns: str):
        self.number, self.row, self.chat_text = number, row, chat_text
        self.conversation = Conversation.from_row(row)
        self.turns = [0] if self.conversation is None else _turns_to_answer(self.conversation)
        self.turns = self.turns[:1] if turns == "first" else self.turns
        self.lines: list[dict[str, Any]] = []

    @property
    def prompt_key(self) -> str:
        """Equal for rows whose prompts are equal."""
        if self.conversation is None:
            return json.dumps(self.row["prompt"])
        given = [message for i, message in enumerate(self.conversation.messages) if i not in self.turns]
        tools, kwargs = self.conversation.tools, self.conversation.chat_template_kwargs
        moment = self.conversation.rendered_at
        return json.dumps([given, self.turns, tools, kwargs, moment], sort_keys=True, default=str)

    def prompt_ids(self) -> list[int]:
        """Returns the tokens of the prompt of the next answer."""
        tokenizer = self.chat_text.tokenizer
        if self.conversation is None:
            ids = tokenizer(self.row["prompt"]).input_ids
            return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids  # some tokenizers end every text
        text = self.chat_text.render_prompt(self.conversation, self.turns[0])
        return tokenizer(text, add_special_tokens=False).input_ids

    def next_prompt(self, max_length: int | None) -> list[int] | None:
        """Returns the tokens of the prompt of the next answer; `None` if there is no further one, or no room for it."""
        if not self.turns:
            return None
        try:
            ids = self.prompt_ids()
        except NotRenderable:  # the template refuses what the target wrote before, such as an empty answer
            self.turns.clear()
            return None
        if max_length is not None and len(ids) >= max_length:
            self.turns.clear()
            return None
        return ids

    def take(self, prompt_ids: list[int], answer_ids: list[int], stop_ids: set[int]) -> None:
        """Writes down the next answer, and goes on to the turn after it."""
        is_finished = answer_ids[-1] in stop_ids
        content = answer_ids[:-1] if is_finished else answer_ids
        # With its control tokens: where an answer holds `</think>`, the chat template must find it.
        text = self.chat_text.tokenizer.decode(content)
        line: dict[str, Any] = {"row": self.number, "turn": len(self.lines)}
        line |= {name: self.row[name] for name in ("id", "tools") if self.row.get(name)}
        turn = self.turns.pop(0)
        if self.conversation is None:
            line |= {"prompt": self.row["prompt"], "completion": text}
        else:
            self.conversation.messages[turn : turn + 1] = [{"role": "assistant", "content": text}]
            line["messages"] = self.conversation.messages[: turn + 1]
            # Whoever renders these messages again gets the tokens that were answered.
            if kwargs := self.chat_text.chat_template_kwargs | self.conversation.chat_template_kwargs:
                line["chat_template_kwargs"] = kwargs
            if self.chat_text.reads_clock(self.conversation):
                line["rendered_at"] = self.conversation.rendered_at or self.chat_text.rendered_at
        line |= {"prompt_ids": prompt_ids, "answer_ids": answer_ids, "finished": is_finished}
        self.lines.append(line)
        if not is_finished:
            self.turns.clear()


def _turns_to_answer(conversation: Conversation) -> list[int]:
    """Places of the answers among the messages; the last may come after all of them."""
    messages, turns = conversation.messages, conversation.turns
    if messages[-1]["role"] != "assistant":
        turns = [*turns, len(messages)]
    for i, turn in enumerate(turns):
        if turn + 1 < len(messages) and messages[turn + 1]["role"] == "tool":
            return turns[: i + 1]
    return turns
