"""
Chat templates that render the date (Llama 3.2, Mistral Small, Granite, gpt-oss) give other tokens on another day. What
is begun on one day and goes on the next one, or is answered on one day and trained on another, renders with the clock
that it began with.
"""

from datetime import datetime
from typing import Any

from transformers.utils import chat_template_utils


_FUNCTION = "strftime_now"


def now() -> str:
    """Returns the local time, to the second, as it is recorded: `2026-11-30T17:49:34`."""
    return datetime.now().isoformat(timespec="seconds")


def is_moment(text: Any) -> bool:
    """Checks whether something is a recorded time."""
    try:
        datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return False
    return True


def reads_clock(chat_template: str | None) -> bool:
    """Checks whether what a chat template renders may depend on when it is rendered."""
    return chat_template is not None and _FUNCTION in chat_template


def with_clock(chat_template: str, moment: str) -> str:
    """
    Returns a template that renders at any time what the given one renders at a moment.

    Args:
        chat_template (`str`): The template.
        moment (`str`): From [`now`].
    """
    if not reads_clock(chat_template):
        return chat_template
    # `transformers` keeps one compiled template per text, each in an environment of its own, and takes no functions as
    # variables. With the comment, ours is not that of other callers. Jinja drops a comment and its line feed.
    template = f"{{# at {moment} #}}\n{chat_template}"
    compiled: Any = chat_template_utils._compile_jinja_template(template)
    compiled.environment.globals[_FUNCTION] = datetime.fromisoformat(moment).strftime
    return template
