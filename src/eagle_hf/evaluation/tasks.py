"""
Task sets: prompts to measure on, from files, folders or `datasets`.

A row is one of these, and the first that fits is taken:

```text
{"turns": ["...", "..."]}                what the user says, turn by turn (EAGLE's task sets, Spec-Bench, MT-bench)
{"messages": [{"role": ..., "content": ...}, ...]}       a conversation, up to the last message of the user
{"prompt": "..."}                        one turn; a list of messages as well
```

Everything else in a row is left alone, but for `category` (or `domain`), which splits a file into tasks.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.data_files import MissingDatasets, read_data
from ..data.foreign_rows import as_messages


Message = dict[str, str]

# Spec-Bench counts the eight categories of MT-bench as one of its six tasks.
MT_BENCH_CATEGORIES = frozenset(
    ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
)
FILES = (".jsonl", ".jsonl.gz", ".jsonl.xz")


@dataclass(frozen=True)
class Prompt:
    """
    A prompt of one or several turns.

    Args:
        task (`str`): Its task.
        place (`str`): Where it was read: file and line.
        turns (`Sequence[Sequence[Message]]`):
            Per turn the messages to add before the target answers. Answers between the turns are the target's own.
        number (`int`): Position in its task, which its seed depends on.
    """

    task: str
    place: str
    turns: Sequence[Sequence[Message]]
    number: int = 0

    @property
    def digest(self) -> str:
        """Tells prompts apart by what they say."""
        return hashlib.sha256(json.dumps(self.turns).encode()).hexdigest()[:16]


@dataclass
class Tasks:
    """
    Holds what was read.

    Args:
        prompts (`dict[str, list[Prompt]]`): Prompts by task.
        skipped (`list[tuple[str, str]]`): Rows that were left out: where they stand, and why.
    """

    prompts: dict[str, list[Prompt]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def load_tasks(
    sources: str | Path | Sequence[str | Path],
    max_prompts: int | None = None,
    split: str = "train",
    prompt_field: str = "prompt",
) -> Tasks:
    """
    Reads task sets.

    Args:
        sources (`str`, `Path` or a sequence of them):
            Files (`.jsonl`, `.jsonl.gz`, `.jsonl.xz`), folders of them, or ids of datasets on the Hub (`"org/name"`, or
            `"org/name:config"`). A file is a task with its name, or its folder's where it is called `question.jsonl`;
            one with several categories, such as Spec-Bench's, is a task per category.
        max_prompts (`int`, *optional*): Take so many prompts of every task, spread evenly over it.
        split (`str`, *optional*, defaults to `"train"`): Which split of a dataset.
        prompt_field (`str`, *optional*, defaults to `"prompt"`): The field of single prompts, such as `"question"`.

    Returns:
        [`Tasks`]: rows without a prompt, and those that repeat one, are left out and listed in `skipped`.

    Raises:
        `OSError`, `ValueError`: if there is no such file, or a source has no usable row.
        `ImportError`: if a dataset is named and `datasets` is not installed.
    """
    if max_prompts is not None and max_prompts < 1:
        raise ValueError(f"`max_prompts` must be positive, got {max_prompts}.")
    tasks = Tasks()
    origins: dict[str, str | Path] = {}
    for source in [sources] if isinstance(sources, str | Path) else sources:
        for name, rows in _task_files(source, split):
            by_task = _read_task(name, rows, prompt_field, tasks.skipped)
            if not by_task:
                shown = "".join(f"\n  {place}: {reason}" for place, reason in tasks.skipped[-5:])
                raise ValueError(
                    f"No usable prompt in {source} (task {name}). Rows need `turns`, `messages` or `{prompt_field}`."
                    + shown
                )
            for task, prompts in by_task.items():
                if task in tasks.prompts:
                    raise ValueError(
                        f"{source} and {origins[task]} both hold a task {task!r}. Rename the file, or its folder if "
                        "the file is called question.jsonl."
                    )
                tasks.prompts[task], origins[task] = _spread(prompts, max_prompts), source
    if not tasks.prompts:
        raise ValueError("No task sets were named.")
    return tasks


def _task_files(source: str | Path, split: str) -> Iterator[tuple[str, Iterator[tuple[str, Any]]]]:
    """Yields the names of the tasks of a source, and their rows with places."""
    path = Path(source)
    if path.is_dir() and not any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(FILES))
        if not files:
            raise ValueError(f"No task files in {path}: {', '.join(FILES)} are expected.")
        for file in files:
            yield _name(file), read_data(file)
    elif path.exists() or isinstance(source, Path) or source.endswith(FILES):
        yield _name(path), read_data(path, split)  # says what is missing
    else:
        name, _, config = source.partition(":")
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise MissingDatasets(
                f"There is no file or folder {source}, and reading it as a dataset needs `datasets`: "
                "pip install 'eagle-hf[train]'"
            ) from error
        rows = read_data(load_dataset(name, config or None, split=split))
        yield name.rpartition("/")[2], ((f"{source}, {place}", row) for place, row in rows)


def _name(path: Path) -> str:
    stem = path.name.partition(".")[0]
    return path.resolve().parent.name if stem == "question" else stem


def _read_task(
    name: str, rows: Iterator[tuple[str, Any]], prompt_field: str, skipped: list[tuple[str, str]]
) -> dict[str, list[Prompt]]:
    groups: dict[str, list[Prompt]] = {}
    places: dict[str, str] = {}
    for place, row in rows:
        turns = row if isinstance(row, str) else _turns(row, prompt_field)
        if isinstance(turns, str):
            skipped.append((place, turns))
            continue
        group = str(row.get("category") or row.get("domain") or "")
        prompt = Prompt(group, place, turns)
        if (first := places.setdefault(prompt.digest, place)) != place:
            skipped.append((place, f"the same prompt as {first}"))
            continue
        groups.setdefault(group, []).append(prompt)
    if len(MT_BENCH_CATEGORIES & set(groups)) > len(MT_BENCH_CATEGORIES) // 2:  # others have a category "math" as well
        groups = _as_one(groups, "mt_bench")
    if len(groups) == 1:
        groups = {name: groups.popitem()[1]}
    return {
        group or name: [Prompt(group or name, prompt.place, prompt.turns, i) for i, prompt in enumerate(prompts)]
        for group, prompts in groups.items()
    }


def _as_one(groups: dict[str, list[Prompt]], name: str) -> dict[str, list[Prompt]]:
    merged: dict[str, list[Prompt]] = {}
    for group, prompts in groups.items():
        merged.setdefault(name if group in MT_BENCH_CATEGORIES else group, []).extend(prompts)
    return merged


def _spread(prompts: list[Prompt], most: int | None) -> list[Prompt]:
    if most is None or len(prompts) <= most:
        return prompts
    return [prompts[i * len(prompts) // most] for i in range(most)]


def _turns(row: Any, prompt_field: str) -> list[list[Message]] | str:
    """Turns of a row, or why it has none."""
    if not isinstance(row, Mapping):
        return "not an object"
    if row.get("turns") is None and isinstance(row := as_messages(row), str):
        return row
    if row.get("turns") is not None:
        turns = row["turns"]
        if not isinstance(turns, list) or not turns:
            return "`turns` is no list of texts"
        if not all(isinstance(turn, str) and turn.strip() for turn in turns):
            return "a turn without text"
        return [[{"role": "user", "content": turn}] for turn in turns]
    prompt = row.get("messages") if row.get("messages") is not None else row.get(prompt_field)
    if prompt is None:
        return f"none of `turns`, `messages`, `{prompt_field}`"
    if isinstance(prompt, str):
        return [[{"role": "user", "content": prompt}]] if prompt.strip() else f"`{prompt_field}` is empty"
    return _messages(prompt)


def _messages(messages: Any) -> list[list[Message]] | str:
    if not isinstance(messages, list) or not messages:
        return "no list of messages"
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return "a message without `role`"
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            return f"a message of the {message['role']} without text in `content`"
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        return "no message of the user"
    return [[{"role": message["role"], "content": message["content"]} for message in messages[: last + 1]]]
