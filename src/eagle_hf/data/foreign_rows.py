"""
Rows of other projects, turned into `messages`: ShareGPT, as EAGLE, SpecForge, FastChat and LLaMA-Factory use it.

```text
{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}], "system": ..., "tools": ...}
{"conversation": [{"role": "user", "content": ...}, ...]}
```
"""

import json
from collections.abc import Mapping
from typing import Any


ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "claude": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system", "developer": "developer",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "function_response": "tool",
    "function_call": "function_call", "tool_call": "function_call",
}  # fmt: skip

# Fields that other projects keep a question and its answer in.
_PAIRS = (
    ("instruction", "output"), ("instruction", "response"), ("question", "answer"), ("query", "response"),
    ("input", "output"), ("prompt", "response"), ("prompt", "chosen"), ("problem", "solution"),
)  # fmt: skip


def as_messages(row: Mapping[str, Any]) -> Mapping[str, Any] | str:
    """
    Returns a row with its conversation under `messages`, in the words of chat templates.

    Args:
        row (`Mapping`): The row.

    Returns:
        The row itself where there is nothing to turn, a copy, or why it cannot be turned.

    Answers that come before the first question, with which many ShareGPT conversations begin, are left out: nothing was
    asked. A system prompt that is a field of its own becomes the first message.
    """
    field = next((name for name in ("messages", "conversations", "conversation") if row.get(name) is not None), None)
    if field is None or row.get("prompt_ids") is not None:
        return row
    turns = row[field]
    if field == "messages" and not _is_foreign(turns):
        return row
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        return f"`{field}` is no list of messages"
    messages: list[dict[str, Any]] = []
    for turn in turns:
        message = _as_message(turn)
        if isinstance(message, str):
            return message
        messages.append(message)
    system = messages[:1] if messages[0]["role"] in ("system", "developer") else []
    if not system and isinstance(row.get("system"), str) and row["system"].strip():
        system = [{"role": "system", "content": row["system"]}]
    else:
        messages = messages[len(system) :]
    while messages and messages[0]["role"] == "assistant":
        messages = messages[1:]
    converted = {name: value for name, value in row.items() if name not in (field, "system")}
    converted["messages"] = [*system, *messages]
    if isinstance(row.get("tools"), str):
        tools = _parsed(row["tools"]) if row["tools"].strip() else None
        if tools is not None and not isinstance(tools, list):
            return "`tools` is no list of tools"
        converted["tools"] = tools
    return converted


def what_it_has(row: Mapping[str, Any]) -> str:
    """Says what a row of no known form holds, and how it becomes one, for whoever has to convert it."""
    for question, answer in _PAIRS:
        if row.get(question) is not None and row.get(answer) is not None:
            more = " (with `input` behind it)" if question == "instruction" and row.get("input") else ""
            return f"rename `{question}`{more} to `prompt` and `{answer}` to `completion`"
    return f"it has {', '.join(f'`{name}`' for name in list(row)[:6]) or 'no field'}"


def _is_foreign(turns: Any) -> bool:
    """Checks whether `messages` are written in other words than those of chat templates."""
    if not isinstance(turns, list):
        return False
    return any(
        isinstance(turn, Mapping) and ("from" in turn or turn.get("role") in ("human", "gpt", "chatgpt", "prompter"))
        for turn in turns
    )


def _as_message(turn: Mapping[str, Any]) -> dict[str, Any] | str:
    said_by = turn.get("role") if turn.get("role") is not None else turn.get("from")
    role = ROLES.get(str(said_by).strip().lower()) if said_by is not None else None
    if said_by is None:
        return "a message without `role` (or `from`)"
    if role is None:
        return f"a message from {said_by!r}, which is none of {', '.join(list(ROLES)[:11])}, ..."
    content = next((turn[name] for name in ("content", "value", "text") if turn.get(name) is not None), None)
    others = {
        name: value
        for name, value in turn.items()
        if name in ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking") and value is not None
    }
    if role != "function_call":
        return {"role": role, "content": content, **others}
    calls = _parsed(content) if isinstance(content, str) else content
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        return f"a {said_by} that is no JSON object with `name` and `arguments`"
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
            for call in calls
        ],
    }


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
